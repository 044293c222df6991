"""Weights on disk: those that we wrote, as Orbax holds them, and below `formats` those of others."""
