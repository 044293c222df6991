"""Ahead-of-time plans: what is counted in a program, and programs for platforms that are not there."""

from __future__ import annotations

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from sysout_jax.errors import InputError
from sysout_jax.planning import plan_analysis, plan_training
from sysout_jax.planning.costs import (
    Collective,
    count_products,
    find_collectives,
    find_quadratic,
)
from sysout_jax.platform import compiling_for
from sysout_jax.sharding import MeshConfig, make_mesh
from sysout_jax.training.step import make_program


def test_products_are_counted_with_their_loops():
    w = jnp.ones((8, 16))

    def program(x):
        def body(carry, _):
            return carry, (x @ w).sum()

        _, sums = jax.lax.scan(body, 0.0, length=5)
        return sums.sum() + jax.jit(lambda x: (x @ w).sum())(x)

    assert count_products(jax.make_jaxpr(program)(jnp.ones((4, 8)))) == 6 * 2 * 4 * 8 * 16


TEXT = """
  %a = f32[8,16]{1,0:T(8,128)} all-gather(%x), dimensions={0}
  %b = (bf16[4]{0}, bf16[4]{0}) all-reduce(%x, %y), to_apply=%add
  %c = f32[2,3]{1,0} all-reduce-start(%x), to_apply=%add
  %d = f32[4,16,16]{2,1,0} add(%x, %y)
"""


def test_collectives_and_quadratic_buffers_are_read_off_the_program(config):
    assert find_collectives(TEXT) == (
        Collective("all-reduce", 2, 4 * 2 * 2 + 24),
        Collective("all-gather", 1, 512),
    )
    wide = dataclasses.replace(config.model, d_model=48, d_ff=96, num_heads=2)
    assert find_quadratic(TEXT, wide, config.seq_len) == ("f32[4,16,16]",)


@pytest.mark.parametrize("topology", ["v9:2x2", "v5e", "v5e:two"])
def test_bad_topology(topology, config):
    with pytest.raises(InputError, match=r"expected one of .*v5e:16x16"):
        plan_training(config, topology)


def test_plan_without_libtpu_says_what_to_install(config, monkeypatch):
    def refuse(**which):  # as jax does where it finds none
        raise RuntimeError("Unable to initialize backend 'tpu': libtpu.so was not found")

    if importlib.util.find_spec("libtpu"):
        monkeypatch.setattr(topologies, "get_topology_desc", refuse)
    with pytest.raises(InputError, match=r"sysout_jax\[tpu\]"):
        plan_training(config, "v5e:2x2")


@pytest.fixture
def libtpu() -> None:
    if not importlib.util.find_spec("libtpu"):
        pytest.skip("needs libtpu, from the tpu extra")


@pytest.mark.usefixtures("libtpu")
def test_a_kernel_that_cannot_compute_the_variant(config):
    sigmoid = dataclasses.replace(config.model, attention="sigmoid")
    with pytest.raises(InputError, match=r"'fused' does not compute.*use auto"):
        plan_training(dataclasses.replace(config, model=sigmoid, kernel="fused"), "v5e:2x2")


@pytest.mark.usefixtures("libtpu")
def test_plan_of_a_slice(config):
    wide = dataclasses.replace(config.model, d_model=256, d_ff=512, context_length=256)
    config = dataclasses.replace(config, model=wide, seq_len=256, dtype="bfloat16")
    found = plan_training(config, "v5e:2x2")
    assert found.chips == 4 and found.fits and found.kernel == "splash"
    assert not found.quadratic
    assert any(its.kind == "all-reduce" for its in found.collectives)
    mesh = MeshConfig(data=1, fsdp=2, tensor=2)
    layer = plan_analysis(dataclasses.replace(config, mesh=mesh), "v5e:2x2")
    assert layer.fits and not layer.quadratic and 0.5 < layer.program_flops / layer.model_flops < 2
    assert any(its.kind == "all-gather" for its in layer.collectives)


@pytest.mark.parametrize("attention", ["default", "context_bias", "sigmoid"])
def test_the_step_lowers_for_cuda(config, attention):
    model = dataclasses.replace(config.model, attention=attention)
    config = dataclasses.replace(config, model=model, kernel="blockwise", dtype="bfloat16")
    mesh = make_mesh(devices=jax.devices()[:1])
    with compiling_for("gpu"), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        program = make_program(config, mesh)
        shape = (config.accumulate, config.batch_size // config.accumulate, config.seq_len + 1)
        batch = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=program.batch_sharding)
        exported = jax.export.export(program.train, platforms=["cuda"])(program.shapes, batch)
    assert exported.platforms == ("cuda",)
