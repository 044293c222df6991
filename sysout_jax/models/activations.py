"""Activation functions of the model families: in at least float32, in forms that do not cancel, with gradients that keep nothing but x."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import jax
import jax.numpy as jnp
import numpy as np

from sysout_jax.models.spec import MlpSpec


def _activation(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """An elementwise function that is computed in float32, or float64 where x is, and returned in the dtype of x.

    In bfloat16, which has 8 bits, `1 + erf` or `1 + tanh` of a negative x leaves nothing. The gradient is computed from x again.
    """

    @jax.custom_vjp
    @wraps(function)
    def activation(x: jax.Array) -> jax.Array:
        return function(_wide(x)).astype(x.dtype)

    def forward(x: jax.Array):
        return activation(x), x

    def backward(x: jax.Array, grad: jax.Array):
        # without the barrier XLA finds that the function was computed before, and keeps its parts from then until now
        x, grad = jax.lax.optimization_barrier((x, grad))
        _, pull = jax.vjp(function, _wide(x))
        return (pull(_wide(grad))[0].astype(x.dtype),)

    activation.defvjp(forward, backward)
    return activation


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@_activation
def gelu(x: jax.Array) -> jax.Array:
    """x Φ(x) with the exact normal distribution function (Hendrycks & Gimpel 2016).

    By erfc, whose value for negative x is as exact as for positive; 1 + erf(x / √2) is 0 from x = -5.5 on in float32.
    """
    return 0.5 * x * jax.lax.erfc(-x * 0.5**0.5)


@_activation
def gelu_tanh(x: jax.Array) -> jax.Array:
    """The tanh approximation of GELU, ½ x (1 + tanh u); by (1 + tanh u) / 2 = σ(2u), which does not cancel."""
    u = (2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)
    return x * jax.nn.sigmoid(2.0 * u)


@_activation
def silu(x: jax.Array) -> jax.Array:
    """x σ(x), the activation of SwiGLU; in float16, exp(-x) would overflow from x = -11 on."""
    return x * jax.nn.sigmoid(x)


@_activation
def quick_gelu(x: jax.Array) -> jax.Array:
    """x σ(1.702 x), the sigmoid approximation of GELU (Hendrycks & Gimpel 2016)."""
    return x * jax.nn.sigmoid(1.702 * x)


@_activation
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0)."""
    return jax.nn.relu(x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": relu,
}


def down_input(mlp: MlpSpec, gate: jax.Array | None, up: jax.Array) -> jax.Array:
    """x_down; `gate` is None without one."""
    activation = ACTIVATIONS[mlp.activation]
    if gate is None:
        return activation(up)
    if mlp.limit is not None:
        gate, up = jnp.minimum(gate, mlp.limit), jnp.clip(up, -mlp.limit, mlp.limit)
    if mlp.up_offset:
        up = up + mlp.up_offset
    return activation(gate) * up
