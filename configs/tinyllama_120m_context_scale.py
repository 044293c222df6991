"""LLaMA of 120 M parameters (TinyLLaMA's shape) with an explicit context-aware scale; the paper's figure 24 shows the scaled one.

    python -m train.prepare --source text.jsonl.xz --tokenizer path/to/llama/tokenizer.json --out data/llama
    python -m train --config configs/tinyllama_120m_context_scale.py --workdir runs/tinyllama_120m_context_scale

Cost: 50,000 steps of 524,288 tokens. Result: not trained by us yet.
"""

import dataclasses
from pathlib import Path

from sysout_jax.training.config import load_config

base = load_config(Path(__file__).with_name("tinyllama_120m_default.py"))
config = dataclasses.replace(base, model=dataclasses.replace(base.model, attention="context_scale"))
