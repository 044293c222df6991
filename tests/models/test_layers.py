"""Norms against flax's own, forward and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sysout_jax.models.layers import Norm
from sysout_jax.models.spec import NormSpec

CASES = {
    "RMSNorm": ({}, lambda **kw: nn.RMSNorm(1e-5, **kw)),
    "LayerNorm": (
        {"centred": True},
        lambda **kw: nn.LayerNorm(1e-5, use_bias=False, use_fast_variance=False, **kw),
    ),
    "LayerNorm with bias": (
        {"centred": True, "bias": True},
        lambda **kw: nn.LayerNorm(1e-5, use_fast_variance=False, **kw),
    ),
}


def drawn(rng, D: int, bias: bool, dtype) -> dict:
    names = ("scale", "bias") if bias else ("scale",)
    return {"params": {name: jnp.asarray(rng.standard_normal(D), dtype) for name in names}}


@pytest.mark.parametrize("case", CASES)
def test_equals_flax_in_float64(case):
    rng = np.random.default_rng()
    settings, theirs = CASES[case]
    with jax.enable_x64(True):
        f64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        x = jnp.asarray(rng.standard_normal((2, 5, 12)) + 3.0)
        x = x.at[0, 1, 3].set(4000.0)  # an outlier
        params = drawn(rng, 12, settings.get("bias", False), jnp.float64)
        weight = jnp.asarray(rng.standard_normal(x.shape))

        def loss(module, params, x):
            y = module.apply(params, x)
            return (weight * y**2).sum(), y

        found, want = (
            jax.value_and_grad(loss, (1, 2), has_aux=True)(module, params, x)
            for module in (Norm(NormSpec(1e-5, **settings), **f64), theirs(**f64))
        )
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
def test_computes_in_float32_and_gives_the_dtypes_asked_for(case):
    rng = np.random.default_rng()
    settings, theirs = CASES[case]
    x = jnp.asarray(rng.standard_normal((1, 4, 64)), jnp.bfloat16)
    params = drawn(rng, 64, settings.get("bias", False), jnp.float32)
    dtypes = {"dtype": jnp.bfloat16, "param_dtype": jnp.float32}
    ours = Norm(NormSpec(1e-5, **settings), **dtypes)
    np.testing.assert_allclose(
        ours.apply(params, x).astype(jnp.float32),
        theirs(**dtypes).apply(params, x).astype(jnp.float32),
        rtol=2**-8,
        atol=1e-3,
    )
    shapes = jax.eval_shape(ours.init, jax.random.key(0), x)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), params
    )
    grads = jax.grad(lambda p, x: ours.apply(p, x).astype(jnp.float32).sum(), (0, 1))(params, x)
    assert grads[1].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(grads[0])} == {jnp.dtype("float32")}
