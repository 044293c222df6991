"""GPT-2 of 0.8 M parameters on bytes, in any attention variant, trained on books on two CPU cores.

    python -m train.prepare --source books.jsonl.xz --tokenizer bytes --out data/books
    python -m train --config configs/cpu_small.py:default --workdir runs/cpu_small_default
    python -m train --config configs/cpu_small.py:context_scale --workdir runs/cpu_small_context_scale

Cost: 12.3 M bytes, eight minutes on two cores. Result: validation loss 1.423 nats a byte after 3,000 steps with default attention, 1.463
with context_scale; no attention sink (the first token ends with 0.014 of default attention); curves in docs/training.md.
"""

from pathlib import Path

from sysout_jax.families.gpt2 import Gpt2Config
from sysout_jax.training.config import OptimizerConfig, TrainConfig


def config(attention: str) -> TrainConfig:
    return TrainConfig(
        model=Gpt2Config(
            num_layers=4,
            d_model=128,
            num_heads=4,
            d_ff=512,
            vocab_size=257,
            context_length=256,
            bias=False,
            activation="gelu",
            attention=attention,
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
