"""LLaMA-2-7B's shapes on a pod, data × fsdp × tensor; written for `train.plan`, which proves that it fits before anybody pays.

    python -m train.plan --config configs/llama2_7b.py:default --topology v5e:16x16
    python -m train --config configs/llama2_7b.py:default --data data/llama --workdir runs/llama2_7b

Cost: 2 T tokens in the original; none here. Result: not trained by us; the plans are in docs/pods.md.
"""

import dataclasses
from pathlib import Path

from sysout_jax.families.sizes import MODEL_SIZES
from sysout_jax.sharding import MeshConfig
from sysout_jax.training.config import OptimizerConfig, TrainConfig


def config(attention: str) -> TrainConfig:
    return TrainConfig(
        model=dataclasses.replace(MODEL_SIZES["llama-2-7b"], attention=attention),
        data=Path("data/llama"),
        steps=500_000,
        batch_size=1024,
        seq_len=4096,
        accumulate=16,
        optimizer=OptimizerConfig(lr=3e-4, min_lr=3e-5, warmup_steps=2000, decay_steps=500_000),
        remat=True,
        mesh=MeshConfig(data=-1, fsdp=16, tensor=4),
        eval_sequences=64,
    )
