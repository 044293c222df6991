"""Meshes and what does not fit them: one line each."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from sysout_jax.config import ATTENTION
from sysout_jax.errors import InputError
from sysout_jax.families.gpt2 import Gpt2Config
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.models import parameter_shapes
from sysout_jax.sharding import AXES, check_divisible, lay, make_mesh, parameter_specs

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


SIZE = {"num_layers": 1, "d_model": 16, "num_heads": 4, "d_ff": 32, "vocab_size": 64}


def every_model():
    for attention, bias, tied in itertools.product(ATTENTION, (False, True), (False, True)):
        common = {**SIZE, "context_length": 8, "attention": attention, "tied_embeddings": tied}
        yield Gpt2Config(**common, bias=bias)
        biases = {"qkv_bias": bias, "o_bias": bias, "mlp_bias": bias}
        yield LlamaConfig(**common, **biases, num_kv_heads=2, head_dim=4)


@pytest.mark.parametrize("tensor", [1, 2])
def test_every_parameter_of_every_model_is_cut_or_listed_as_copied(tensor):
    """On this mesh every axis divides, so that what is copied is what is meant to be."""
    mesh, seen = mesh_of(1, 2, tensor), {}
    for config in every_model():
        shapes = lay(parameter_shapes(config), mesh)
        specs = flatten_dict(parameter_specs(shapes, mesh), sep="/")
        assert specs.keys() == flatten_dict(shapes, sep="/").keys()
        seen |= specs
    whole = {path for path, spec in seen.items() if not any(spec)}
    kinds = {"/".join(path.split("/")[-2:]) for path in whole}
    norms = {f"{n}_norm/{k}" for n in ("attn", "mlp", "final") for k in ("scale", "bias")}
    assert kinds == norms | {"o_proj/bias", "down_proj/bias"}
    assert len(seen) > 25


def test_a_parameter_without_a_rule_is_an_error():
    shapes = {"layer_0": {"mlp": {"router": {"kernel": jax.ShapeDtypeStruct((8, 4), "float32")}}}}
    with pytest.raises(KeyError, match=r"layer_0/mlp/router/kernel \(8, 4\): no sharding rule"):
        parameter_specs(shapes, mesh_of(1, 2, 2))


def test_fused_parts_are_cut_one_by_one():
    tree = {"qkv_proj": {"kernel": np.arange(24).reshape(2, 12), "bias": np.arange(12)}}
    tree["o_proj"] = {"kernel": np.zeros((4, 2))}
    assert lay(tree, None) is lay(tree, mesh_of(4, 2, 1)) is tree
    found = lay({"mu": tree}, mesh_of(1, 2, 2))["mu"]
    assert found["o_proj"]["kernel"].shape == (4, 2)
    np.testing.assert_array_equal(
        found["qkv_proj"]["kernel"][:, 1], [[4, 5, 6, 7], [16, 17, 18, 19]]
    )
    assert parameter_specs(found, mesh_of(1, 2, 2))["qkv_proj"] == {
        "kernel": P("fsdp", None, "tensor"),
        "bias": P(None, "tensor"),
    }
