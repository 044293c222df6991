"""LLaMA of 120 M parameters (TinyLLaMA's shape) with default attention; the paper's figure 24 shows the scaled one.

    python -m train.prepare --source text.jsonl.xz --tokenizer path/to/llama/tokenizer.json --out data/llama
    python -m train --config configs/tinyllama_120m_default.py --workdir runs/tinyllama_120m_default

Cost: 50,000 steps of 524,288 tokens. Result: not trained by us yet.
"""

from pathlib import Path

from sysout_jax.families.sizes import MODEL_SIZES
from sysout_jax.training.config import OptimizerConfig, TrainConfig

config = TrainConfig(
    model=MODEL_SIZES["tinyllama-120m"],
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
