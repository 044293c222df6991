"""What a run evaluates and probes is the same on every mesh."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from sysout_jax.data.batches import validation_slice
from sysout_jax.sharding import make_mesh
from sysout_jax.training.feed import Feed
from sysout_jax.training.step import make_program

ON_EIGHT_DEVICES = """
import sys
sys.path.insert(0, ROOT)
from pathlib import Path, PosixPath
from sysout_jax.config import Gpt2Config
from sysout_jax.training.config import MeshConfig, OptimizerConfig, TrainConfig
from tests.training.test_feed import check
check(CONFIG, [(1, 1, 8), (2, 2, 2), (4, 1, 2), (8, 1, 1)])
"""


def check(config, meshes) -> None:
    """Each sequence of the slice counts equally often, whatever batch and slice have in common with the devices."""
    for shape in meshes:
        mesh = make_mesh(*shape)
        for batch, sequences in ((8, 8), (16, 10), (24, 7), (8, 13)):
            this = dataclasses.replace(
                config, batch_size=batch, accumulate=1, eval_sequences=sequences
            )
            with jax.set_mesh(mesh):
                feed = Feed(this, make_program(this, mesh))
                found = [np.asarray(x) for x in feed.validation_batches()]
            assert len({x.shape for x in found}) == 1
            assert len(found[0]) <= batch
            want = validation_slice(this.data, this.seq_len, sequences)
            counts = [sum((row == w).all() for x in found for row in x) for w in want]
            assert set(counts) == {sum(map(len, found)) // sequences}, (shape, batch, sequences)


@pytest.mark.parametrize("batch", [2, 6, 16])
def test_the_whole_validation_slice_counts_once_on_one_device(config, batch):
    config = dataclasses.replace(config, batch_size=batch, accumulate=1, eval_sequences=9)
    mesh = make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        feed = Feed(config, make_program(config, mesh))
        found = np.concatenate([np.asarray(x) for x in feed.validation_batches()])
        assert feed.probe().shape == (config.monitor_sequences, config.seq_len)
    np.testing.assert_array_equal(found, validation_slice(config.data, config.seq_len, 9))


@pytest.mark.slow
def test_eight_devices_evaluate_the_same_slice(config):
    model = dataclasses.replace(config.model, num_heads=8)
    wide = dataclasses.replace(config, model=model)
    root = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
    code = ON_EIGHT_DEVICES.replace("ROOT", repr(root)).replace("CONFIG", repr(wide))
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
