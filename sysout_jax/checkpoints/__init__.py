"""Weights that we wrote: converted directories and checkpoints of runs, as Orbax holds them."""
