"""Activation functions and their gradients against Python's own erfc and exp, in every dtype that models are run in."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.models.activations import gelu, gelu_tanh, quick_gelu, silu

POINTS = [-12.0, -9.0, -6.0, -5.5, -5.0, -4.0, -3.5, -3.0, -2.5, -2.0, -1.0, -0.1, 0.0, 0.1, 1.0]
POINTS += [2.0, 4.0, 6.0, 12.0]
DTYPES = ("bfloat16", "float16", "float32", "float64")


def inner(x: float) -> tuple[float, float]:
    """2u of the tanh approximation, and its derivative."""
    root = 2 * math.sqrt(2 / math.pi)
    return root * (x + 0.044715 * x**3), root * (1 + 3 * 0.044715 * x**2)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def gelu_value(x: float) -> float:
    return 0.5 * x * math.erfc(-x / math.sqrt(2))


def gelu_slope(x: float) -> float:
    density = math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return 0.5 * math.erfc(-x / math.sqrt(2)) + x * density


def tanh_value(x: float) -> float:
    return x * sigmoid(inner(x)[0])


def tanh_slope(x: float) -> float:
    u, du = inner(x)
    return sigmoid(u) + x * sigmoid(u) * sigmoid(-u) * du


def silu_value(x: float) -> float:
    return x * sigmoid(x)


def silu_slope(x: float) -> float:
    return sigmoid(x) + x * sigmoid(x) * sigmoid(-x)


def quick_value(x: float) -> float:
    return x * sigmoid(1.702 * x)


def quick_slope(x: float) -> float:
    return sigmoid(1.702 * x) + 1.702 * x * sigmoid(1.702 * x) * sigmoid(-1.702 * x)


TRUTH = {
    quick_gelu: (quick_value, quick_slope),
    gelu: (gelu_value, gelu_slope),
    gelu_tanh: (tanh_value, tanh_slope),
    silu: (silu_value, silu_slope),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", TRUTH, ids=lambda f: f.__name__)
def test_values_and_gradients_are_right_to_the_last_bits(activation, dtype):
    value, slope = TRUTH[activation]
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(POINTS, dtype)
        y, pull = jax.vjp(jax.jit(activation), x)
        (gradient,) = pull(jnp.ones_like(x))
        assert y.dtype == gradient.dtype == x.dtype
        exact = np.asarray(x, np.float64)
        info = jnp.finfo(dtype)
        inside = float(jnp.finfo(jnp.promote_types(dtype, jnp.float32)).eps)
        # one rounding at the end; inside, exp(-z) carries z's own rounding: |z| is at most x² or 2u
        bounds = np.abs([inner(point)[0] for point in exact]) + exact**2
        rtol = 0.51 * float(info.eps) + 4 * inside * (1 + bounds)
        for got, truth in ((y, value), (gradient, slope)):
            want = np.array([truth(float(point)) for point in exact])
            # what is smaller than the smallest normal number may be flushed to zero
            error = np.abs(np.asarray(got, np.float64) - want)
            least = float(info.tiny) + 13 * float(jnp.finfo(jnp.float32).tiny)
            assert (error <= rtol * np.abs(want) + least).all(), (got, want)


def test_bfloat16_gelu_keeps_its_tail():
    """The values that 1 + erf in bfloat16 gave as -0.00586, 0 and 0."""
    x = jnp.asarray([-3.0, -3.5, -4.0], jnp.bfloat16)
    want = [-0.00405, -0.000814, -0.000127]
    np.testing.assert_allclose(np.asarray(gelu(x), float), want, rtol=2**-8)


@pytest.mark.parametrize("activation", TRUTH, ids=lambda f: f.__name__)
def test_the_gradient_keeps_nothing_but_x(activation):
    x = jnp.ones((4, 8), jnp.bfloat16)
    kept = jax.tree.leaves(jax.vjp(activation, x)[1])
    assert [(leaf.shape, leaf.dtype) for leaf in kept if leaf.shape] == [(x.shape, x.dtype)]
