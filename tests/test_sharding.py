"""Meshes and what does not fit them: one line each."""

from __future__ import annotations

import dataclasses

import jax
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from sysout_jax.config import LlamaConfig
from sysout_jax.errors import InputError
from sysout_jax.sharding import AXES, check_divisible, make_mesh, parameter_specs

CONFIG = LlamaConfig(
    num_layers=1,
    d_model=8,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    d_ff=12,
    vocab_size=22,
    context_length=8,
)


def mesh_of(data: int, fsdp: int, tensor: int):
    return AbstractMesh((data, fsdp, tensor), AXES)


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        ((-1, -1, 1), "at most one of them -1"),
        ((0, 1, 1), "expected positive sizes"),
        ((4096, 1, 1), "needs 4096 devices, there are 1; make the mesh smaller"),
        ((-1, 3, 1), "devices do not divide by 3"),
    ],
)
def test_meshes_that_cannot_be(sizes, line):
    with pytest.raises(InputError, match=line):
        make_mesh(*sizes, devices=jax.devices()[:1])


@pytest.mark.parametrize(
    ("mesh", "change", "line"),
    [
        ((3, 2, 1), {}, "batch of 8 sequences does not divide by data × fsdp = 6"),
        ((1, 1, 4), {}, "num_kv_heads 2 does not divide by tensor = 4"),
        ((1, 1, 2), {"d_ff": 13}, "d_ff 13 does not divide by tensor = 2"),
        ((1, 1, 2), {"vocab_size": 21}, "vocab_size 21 does not divide by tensor = 2"),
    ],
)
def test_what_a_mesh_cannot_cut(mesh, change, line):
    with pytest.raises(InputError, match=line):
        check_divisible(dataclasses.replace(CONFIG, **change), 8, mesh_of(*mesh))


def test_what_fits_is_no_error():
    check_divisible(CONFIG, 8, mesh_of(2, 4, 2))


def test_an_axis_that_does_not_divide_is_dropped():
    shapes = {
        "embed": {"embedding": jax.ShapeDtypeStruct((21, 8), "float32")},
        "final_norm": {"scale": jax.ShapeDtypeStruct((8,), "float32")},
    }
    specs = parameter_specs(shapes, mesh_of(1, 4, 2))
    assert specs == {"embed": {"embedding": P(None, "fsdp")}, "final_norm": {"scale": P()}}
