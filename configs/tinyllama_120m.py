"""LLaMA of 120 M parameters (TinyLLaMA's shape) in any attention variant; the paper's figure 24 shows context_scale.

    python -m train.prepare --source text.jsonl.xz --tokenizer path/to/llama/tokenizer.json --out data/llama
    python -m train --config configs/tinyllama_120m.py:context_scale --workdir runs/tinyllama_120m_context_scale

Cost: 50,000 steps of 524,288 tokens. Result: not trained by us yet.
"""

import dataclasses
from pathlib import Path

from sysout_jax.families.sizes import MODEL_SIZES
from sysout_jax.training.config import OptimizerConfig, TrainConfig


def config(attention: str) -> TrainConfig:
    return TrainConfig(
        model=dataclasses.replace(MODEL_SIZES["tinyllama-120m"], attention=attention),
        data=Path("data/llama"),
        steps=50_000,
        batch_size=256,
        seq_len=2048,
        accumulate=8,
        optimizer=OptimizerConfig(lr=6e-4, min_lr=6e-5, warmup_steps=2000, decay_steps=50_000),
        eval_every=1000,
        eval_sequences=256,
        save_every=1000,
    )
