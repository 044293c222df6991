"""The model of cpu_small_default.py with an explicit context-aware scale on attention, everything else equal.

    python -m train --config configs/cpu_small_context_scale.py --workdir runs/cpu_small_context_scale

Cost: as cpu_small_default.py. Result: validation loss 1.463 nats a byte after 3,000 steps; curves in docs/training.md.
"""

import dataclasses
from pathlib import Path

from sysout_jax.training.config import load_config

base = load_config(Path(__file__).with_name("cpu_small_default.py"))
config = dataclasses.replace(base, model=dataclasses.replace(base.model, attention="context_scale"))
