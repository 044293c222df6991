"""GPT-2 of 1.3 M parameters, default attention, trained on books on two CPU cores.

    python -m train.prepare --source books.jsonl.xz --tokenizer path/to/tokenizer.json --out data/books
    python -m train --config configs/cpu_small_default.py --workdir runs/cpu_small_default

Cost: 4.1 M tokens, minutes on two cores. Result: validation loss 4.654 after 1,000 steps, no
outlier at τ = 1000 (15.9 times the mean at most); curves in docs/training.md.
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
    data=Path("data/books"),
    steps=1000,
    batch_size=16,
    seq_len=256,
    optimizer=OptimizerConfig(lr=3e-3, min_lr=3e-4, warmup_steps=100, decay_steps=1000),
    dtype="float32",
    eval_every=100,
    eval_sequences=32,
    save_every=250,
    monitor_every=100,
)
