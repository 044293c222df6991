"""Hostile and careless input by the thousand, and kills at random moments: `python -m tests.adversary --help`, `make fuzz`.

A case is data: a copy of an undamaged original, a list of edits (`edits.py`) and one command. (kind, seed) draws the same case every time as long as
the generators stay as they are; what found a fault is kept in `corpus/` as the edits themselves.
"""
