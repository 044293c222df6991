"""GPT-2 124M in every attention variant of An et al. 2025 and their successors, trained as in its appendix B.3.

    python -m train.prepare --source openwebtext.jsonl.xz --tokenizer path/to/gpt2/tokenizer.json --out data/openwebtext
    python -m train --config configs/gpt2.py:context_scale --workdir runs/gpt2_context_scale

Cost: 50,000 steps of 491,520 tokens; the paper's text says about 2 billion tokens in all, its code runs all steps (24.6 B); `--tokens
2000000000` stops there. Result: not trained by us yet; the paper reports validation losses near nanoGPT's 2.85 to 2.9.
"""

import dataclasses
from pathlib import Path

from sysout_jax.families.sizes import MODEL_SIZES
from sysout_jax.training.config import OptimizerConfig, TrainConfig


def config(attention: str) -> TrainConfig:
    return TrainConfig(
        model=dataclasses.replace(MODEL_SIZES["gpt2-nanogpt"], attention=attention),
        data=Path("data/openwebtext"),
        steps=50_000,
        batch_size=12 * 40,
        seq_len=1024,
        accumulate=40,
        optimizer=OptimizerConfig(lr=6e-4, min_lr=6e-5, warmup_steps=2000, decay_steps=600_000),
        eval_every=1000,
        eval_sequences=480,
        save_every=1000,
    )
