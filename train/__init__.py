"""Command lines of training."""

import sysout_jax as sysout_jax  # first: from here on a command answers signals (sysout_jax/interrupts.py)
