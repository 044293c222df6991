"""Command lines of the analyses: parse, call the library, write files."""

import logging
import os

import sysout_jax as sysout_jax  # first: from here on a command answers signals (sysout_jax/interrupts.py)

# before matplotlib is imported: a backend that cannot be loaded would end the import, and a bad matplotlibrc is told at length
os.environ["MPLBACKEND"] = "agg"
logging.getLogger("matplotlib").setLevel(logging.ERROR)
