"""serveproof: which LLM-serving optimizations pay on this machine, by how much, and at what cost in accuracy."""
