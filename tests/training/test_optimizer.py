"""Optimisers against their rules in numpy, how their state lies on a mesh, and what a resumed run of each gives."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

import sysout_jax as so
from sysout_jax.errors import InputError
from sysout_jax.families.gpt2 import Gpt2Config
from sysout_jax.families.mixtral import MixtralConfig
from sysout_jax.models import parameter_shapes
from sysout_jax.sharding import AXES, lay, parameter_specs
from sysout_jax.training.config import OptimizerConfig
from sysout_jax.training.loop import fit
from sysout_jax.training.optimizer import MUON_RMS, make_optimizer, optimizer_specs, schedule

MODEL = Gpt2Config(
    num_layers=1, d_model=16, num_heads=2, d_ff=32, vocab_size=24, context_length=8,
    attention="learned_sink",
)  # fmt: skip
NAMES = ("adamw", "muon", "sgd")


def settings(name: str, **more) -> OptimizerConfig:
    return OptimizerConfig(
        name=name, lr=0.01, min_lr=0.01, warmup_steps=0, decay_steps=10, clip=0.0, **more
    )


def two_updates(config: OptimizerConfig, params, grads):
    """The sum of two steps' updates, under the parameters' paths."""
    optimizer = make_optimizer(config)

    @jax.jit
    def run(params):
        state, moved = optimizer.init(params), params
        for grad in grads:
            update, state = optimizer.update(grad, state, moved)
            moved = jax.tree.map(jnp.add, moved, update)
        return jax.tree.map(jnp.subtract, moved, params)

    return run(params)


def drawn(seed: int, scale: float = 1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, scale, leaf.shape), jnp.float32),
        parameter_shapes(MODEL),
    )


def test_sgd_is_its_rule():
    config = settings("sgd", momentum=0.8, weight_decay=0.3)
    params, grads = drawn(1), [drawn(2), drawn(3)]
    found = two_updates(config, params, grads)
    for path, moved in jax.tree.leaves_with_path(found):
        w = start = np.float64(dict(jax.tree.leaves_with_path(params))[path])
        decay = 0.3 if path[-1].key in ("kernel", "embedding") else 0.0
        trace = 0.0
        for step, grad in enumerate(grads):
            trace = 0.8 * trace + np.float64(dict(jax.tree.leaves_with_path(grad))[path])
            w = w - float(schedule(config)(step)) * (trace + decay * w)
        np.testing.assert_allclose(moved, w - start, 1e-4, 1e-6, err_msg=str(path))


def test_muon_takes_the_matrices_of_layers_and_adamw_the_rest():
    params, grads = drawn(1), [drawn(2), drawn(3)]
    plain = two_updates(settings("adamw"), params, grads)
    found = two_updates(settings("muon"), params, grads)
    for (path, moved), (_, same) in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves_with_path(plain), strict=True
    ):
        names = [key.key for key in path]
        if names[0] == "layer_0" and names[-1] == "kernel":
            assert np.abs(moved - same).max() > 1e-3, names
        else:
            np.testing.assert_array_equal(moved, same, err_msg=str(names))


def test_muon_orthogonalises():
    """Its update has singular values near one another, and the root mean square that goes with AdamW's learning rate."""
    config = settings("muon", weight_decay=0.0)
    grad = drawn(2)
    # nearly of rank one: an update along the gradient would be, too
    kernel = grad["layer_0"]["mlp"]["up_proj"]["kernel"]
    grad["layer_0"]["mlp"]["up_proj"]["kernel"] = 0.05 * kernel + jnp.ones_like(kernel)
    moved = two_updates(config, drawn(1), [grad])["layer_0"]["mlp"]["up_proj"]["kernel"]
    values = np.linalg.svd(np.float64(moved), compute_uv=False)
    assert values.max() / values.min() < 3
    rms = np.sqrt(np.mean(np.float64(moved) ** 2)) / float(schedule(config)(0))
    assert rms == pytest.approx(MUON_RMS, rel=0.3)


@pytest.mark.parametrize("name", NAMES)
def test_state_lies_like_its_parameters(name):
    mesh = AbstractMesh((1, 2, 2), AXES)
    shapes = lay(parameter_shapes(MODEL), mesh)
    optimizer = make_optimizer(settings(name))
    specs = optimizer_specs(optimizer, shapes, parameter_specs(shapes, mesh))
    state = jax.eval_shape(optimizer.init, shapes)
    is_spec = lambda leaf: isinstance(leaf, P)  # noqa: E731
    assert jax.tree.structure(specs, is_leaf=is_spec) == jax.tree.structure(state)
    lie = {
        jax.tree_util.keystr(path): spec
        for path, spec in jax.tree_util.tree_leaves_with_path(specs, is_leaf=is_spec)
    }
    up = [spec for path, spec in lie.items() if "['up_proj']['kernel']" in path]
    assert up == [P("fsdp", "tensor")] * (2 if name == "adamw" else 1)
    assert {spec for path, spec in lie.items() if "['sink']" in path} == {P("tensor")}


def test_bad_settings_are_refused():
    with pytest.raises(
        InputError, match=r"optimizer.name is 'adam'; expected one of adamw, muon, sgd"
    ):
        OptimizerConfig(name="adam")
    with pytest.raises(InputError, match="optimizer.momentum"):
        OptimizerConfig(name="sgd", momentum=1.0)


def test_muon_is_refused_for_experts(config):
    own = {
        "num_layers": 1,
        "d_model": 16,
        "num_heads": 2,
        "num_kv_heads": 2,
        "head_dim": 8,
        "d_ff": 8,
    }
    model = MixtralConfig(**own, vocab_size=64, context_length=16, num_experts=4, experts_used=2)
    with pytest.raises(InputError, match="expected adamw or sgd for a mixture of experts"):
        dataclasses.replace(config, model=model, optimizer=settings("muon"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["muon", "sgd"])
def test_a_resumed_run_goes_on_bit_for_bit(name, config, tmp_path):
    """With a learned sink, whose logits are in the checkpoint."""
    config = dataclasses.replace(
        config,
        steps=6,
        save_every=3,
        model=dataclasses.replace(config.model, attention="learned_sink"),
        optimizer=dataclasses.replace(config.optimizer, name=name),
    )
    fit(config, tmp_path / "whole")
    calls = iter(range(100))
    assert fit(config, tmp_path / "cut", should_stop=lambda: next(calls) == 3).step == 3
    assert fit(config, tmp_path / "cut").step == 6
    whole, cut = (so.load(tmp_path / run) for run in ("whole", "cut"))
    jax.tree.map(np.testing.assert_array_equal, whole.params, cut.params)
    assert whole.config.attention == "learned_sink"
    assert np.abs(whole.params["layer_0"]["attn"]["sink"]).min() > 0
