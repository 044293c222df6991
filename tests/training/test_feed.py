"""What a run evaluates and probes is the same on every mesh."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from sysout_jax.data.batches import validation_slice
from sysout_jax.sharding import make_mesh
from sysout_jax.training.feed import Feed
from sysout_jax.training.step import make_program
from tests.eight_devices import on_eight_devices

ON_EIGHT_DEVICES = """
from pathlib import Path, PosixPath
from sysout_jax.families.gpt2 import Gpt2Config
from sysout_jax.training.config import MeshConfig, OptimizerConfig, TrainConfig
from tests.training.test_feed import check
check(CONFIG, [(1, 1, 8), (2, 2, 2), (8, 1, 1)], ((8, 8), (8, 13), (24, 47)))
"""


def check(config, meshes, cases) -> None:
    """Each sequence of the slice counts once, and few others are evaluated; the mean is the slice's."""
    want = {}
    for shape in ((1, 1, 1), *meshes):
        mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
        shards = shape[0] * shape[1]
        for batch, sequences in cases:
            this = dataclasses.replace(
                config, batch_size=batch, accumulate=1, eval_sequences=sequences
            )
            rows = validation_slice(this.data, this.seq_len, sequences)
            with jax.set_mesh(mesh):
                program = make_program(this, mesh)
                params = program.init(jax.random.key(0))["params"]
                parts = list(Feed(this, program).validation_parts())
                losses = [program.evaluate(params, p.tokens, p.masked) for p in parts]
                if shape == (1, 1, 1):  # each sequence by itself
                    each = [program.evaluate(params, row[None], False) for row in rows]
                    want[sequences] = np.mean([float(loss) for loss in each])
            found = [np.asarray(part.tokens) for part in parts]
            where = (shape, batch, sequences)
            # one shape but for the last part, which may be smaller
            assert len({len(tokens) for tokens in found[:-1]}) <= 1, where
            assert max(map(len, found)) == len(found[0]) <= batch, where
            assert len(found) <= 2 * -(-sequences // batch), where
            assert sum(map(len, found)) == -(-sequences // shards) * shards, where
            real = np.concatenate(
                [tokens[: p.sequences] for tokens, p in zip(found, parts, strict=True)]
            )
            np.testing.assert_array_equal(real, rows)
            others = np.concatenate(
                [tokens[p.sequences :] for tokens, p in zip(found, parts, strict=True)]
            )
            assert (others == -1).all(), where
            assert {p.masked for p in parts} == {len(others) > 0}, where
            mean = np.average([float(x) for x in losses], weights=[p.sequences for p in parts])
            assert mean == pytest.approx(want[sequences], rel=2e-6), where


@pytest.mark.parametrize("batch", [2, 6, 16])
def test_the_whole_validation_slice_counts_once_on_one_device(batch, config):
    config = dataclasses.replace(config, batch_size=batch, accumulate=1, eval_sequences=9)
    mesh = make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        feed = Feed(config, make_program(config, mesh))
        parts = list(feed.validation_parts())
        assert feed.probe().shape == (config.monitor_sequences, config.seq_len)
    assert not any(part.masked for part in parts)
    found = np.concatenate([np.asarray(part.tokens) for part in parts])
    np.testing.assert_array_equal(found, validation_slice(config.data, config.seq_len, 9))


@pytest.mark.parametrize(
    ("windows", "shards", "rows", "sizes"),
    [
        (479, 8, 16, [120] * 4),  # 3,832 sequences in 479 batches of one for each shard, once
        (479, 64, 2, [128, 128, 128, 128]),
        (97, 1, 12, [12] * 8 + [1]),
        (97, 1, 200, [97]),
        (480, 1, 12, [12] * 40),
    ],
)
def test_sizes_of_the_parts(windows, shards, rows, sizes):
    feed = object.__new__(Feed)
    feed._validation = np.zeros((windows, 3), np.int32)
    feed._shards, feed._rows = shards, shards * rows
    feed._everywhere = lambda tokens: tokens
    parts = list(feed.validation_parts())
    assert [len(part.tokens) for part in parts] == sizes
    assert sum(part.sequences for part in parts) == windows


@pytest.mark.slow
def test_eight_devices_evaluate_the_same_slice(config):
    model = dataclasses.replace(config.model, num_heads=8)
    wide = dataclasses.replace(config, model=model)
    code = ON_EIGHT_DEVICES.replace("CONFIG", repr(wide))
    on_eight_devices(code)
