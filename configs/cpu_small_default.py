"""GPT-2 of 0.8 M parameters on bytes, default attention, trained on books on two CPU cores.

    python -m train.prepare --source books.jsonl.xz --tokenizer bytes --out data/books
    python -m train --config configs/cpu_small_default.py --workdir runs/cpu_small_default

Cost: 12.3 M bytes, eight minutes on two cores. Result: validation loss 1.423 nats a byte after 3,000 steps, no attention sink
(the first token ends with 0.014 of the attention); curves in docs/training.md.
"""

from pathlib import Path

from sysout_jax.families.gpt2 import Gpt2Config
from sysout_jax.training.config import OptimizerConfig, TrainConfig

config = TrainConfig(
    model=Gpt2Config(
        num_layers=4,
        d_model=128,
        num_heads=4,
        d_ff=512,
        vocab_size=257,
        context_length=256,
        bias=False,
        activation="gelu",
    ),
    data=Path("data/books"),
    steps=3000,
    batch_size=16,
    seq_len=256,
    optimizer=OptimizerConfig(lr=3e-3, min_lr=3e-4, warmup_steps=100, decay_steps=3000),
    dtype="float32",
    eval_every=250,
    eval_sequences=32,
    save_every=500,
    monitor_every=100,
)
