"""Kernels and generators that more than one pair uses: torch, triton and numpy only."""
