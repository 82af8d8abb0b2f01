"""OpenAI's API over HTTP in one process, the engine in another: `python -m serveproof.server --model DIR`."""
