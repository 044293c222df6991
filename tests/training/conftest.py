"""A tiny data directory and run, so that whole trainings take seconds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from sysout_jax.families.gpt2 import Gpt2Config
from sysout_jax.training.config import OptimizerConfig, TrainConfig

VOCABULARY = 61


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """nanoGPT's layout, with structure to learn: each token follows from the one before, but for noise."""
    directory = tmp_path / "data"
    directory.mkdir()
    rng = np.random.default_rng(0)
    for split, size in (("train", 6000), ("val", 900)):
        tokens = np.zeros(size, np.uint16)
        for i in range(1, size):
            known = rng.random() < 0.8
            tokens[i] = (tokens[i - 1] * 7 + 3) % VOCABULARY if known else rng.integers(VOCABULARY)
        tokens.tofile(directory / f"{split}.bin")
    return directory


@pytest.fixture
def config(data: Path) -> TrainConfig:
    return TrainConfig(
        model=Gpt2Config(
            num_layers=2,
            d_model=16,
            num_heads=2,
            d_ff=32,
            vocab_size=VOCABULARY + 3,
            context_length=16,
            bias=False,
        ),
        data=data,
        steps=12,
        batch_size=8,
        seq_len=16,
        accumulate=2,
        optimizer=OptimizerConfig(lr=1e-2, min_lr=1e-3, warmup_steps=3, decay_steps=12),
        dtype="float32",
        loss_chunk=8,
        eval_every=4,
        eval_sequences=8,
        log_every=1,
        save_every=4,
        monitor_every=6,
        monitor_sequences=2,
    )


@pytest.fixture
def config_file(config: TrainConfig, tmp_path: Path) -> Path:
    """The same run as a file for the command line."""
    path = tmp_path / "tiny.py"
    path.write_text(
        "from pathlib import Path\n"
        "from sysout_jax.families.gpt2 import Gpt2Config\n"
        "from sysout_jax.training.config import MeshConfig, OptimizerConfig, TrainConfig\n"
        f"PosixPath = Path\nconfig = {dataclasses.replace(config)!r}\n"
    )
    return path
