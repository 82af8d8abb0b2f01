"""Runs through SLURM: what each rule asks for, what its jobs used, and whether a cluster can take them."""
