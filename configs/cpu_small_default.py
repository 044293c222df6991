"""A GPT-2 of 1.4 M parameters that trains on two CPU cores.

    python -m train.prepare --source books.jsonl.xz --tokenizer bytes --out data/books-bytes
    python -m train --config configs/cpu_small_default.py --data data/books-bytes --workdir runs/cpu_small_default

Cost: about 10 minutes on two cores for 2,000 steps of 4,096 tokens.
"""

from pathlib import Path

from sysout_jax.config import Gpt2Config
from sysout_jax.training.config import OptimizerConfig, TrainConfig

config = TrainConfig(
    model=Gpt2Config(
        num_layers=4,
        d_model=128,
        num_heads=4,
        d_ff=512,
        vocab_size=4096,
        context_length=256,
        bias=False,
        activation="gelu",
    ),
    data=Path("data/books-bytes"),
    steps=2000,
    batch_size=16,
    seq_len=256,
    optimizer=OptimizerConfig(lr=2e-3, min_lr=2e-4, warmup_steps=100, decay_steps=2000),
    dtype="float32",
    eval_every=250,
    eval_sequences=64,
    save_every=500,
    monitor_every=100,
)
