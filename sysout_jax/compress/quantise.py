"""Symmetric integer quantisation, simulated: values are rounded to a grid and returned as floats.

AbsMax maps the largest magnitude of a set of values to the largest integer: `scale = max|x| / (2^(bits−1) − 1)`, and
`x ≈ scale · round(x / scale)`, rounding half to even. The sets: a whole tensor; the weights of one output channel; a group of
consecutive inputs of one output channel (the last group is shorter where the inputs do not divide); one token's activations.
An error is at most half a scale. Values that are `kept` stay as they are and do not count towards the maximum, unless asked to.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp

Granularity = Literal["tensor", "channel", "group"]
GRANULARITIES: tuple[str, ...] = get_args(Granularity)


def levels(bits: int) -> int:
    """The largest integer of a symmetric grid: 127 for 8 bits. ValueError below 2 bits."""
    if bits < 2:
        raise ValueError(f"{bits} bits; a symmetric grid needs at least 2")
    return 2 ** (bits - 1) - 1


def absmax_scale(magnitude: jax.Array, bits: int) -> jax.Array:
    """Largest magnitude to scale."""
    return magnitude / levels(bits)


def quantise(x: jax.Array, scale: jax.Array, bits: int) -> jax.Array:
    """Integers, int32, of the shape of `x`; `scale` has its rank. Values beyond the grid are clipped; a scale of 0 gives 0."""
    steps = jnp.round(x.astype(jnp.float32) / jnp.where(scale > 0, scale, 1.0))
    return jnp.clip(steps, -levels(bits), levels(bits)).astype(jnp.int32)


def fake_quantise(x: jax.Array, scale: jax.Array, bits: int) -> jax.Array:
    """Quantised and back, float32. Values that are not finite stay what they are."""
    dequantised = quantise(x, scale, bits).astype(jnp.float32) * scale
    return jnp.where(jnp.isfinite(x), dequantised, x.astype(jnp.float32))


@partial(jax.jit, static_argnames=("bits", "granularity", "group_size", "kept_in_scale"))
def absmax_weights(
    kernel_IxO: jax.Array,
    kept_IxO: jax.Array | None = None,
    *,
    bits: int,
    granularity: Granularity = "tensor",
    group_size: int = 64,
    kept_in_scale: bool = False,
) -> jax.Array:
    """A kernel (inputs, outputs) after AbsMax, in its dtype. `kept` (I, O) bool stays in full precision, and out of the scales unless they are to count it."""
    I, O = kernel_IxO.shape
    width = {"tensor": I, "channel": I, "group": min(group_size, I)}[granularity]
    padded = jnp.pad(kernel_IxO, ((0, -I % width), (0, 0)))  # zeros do not change a maximum
    magnitude = jnp.abs(padded.astype(jnp.float32))
    if kept_IxO is not None and not kept_in_scale:
        kept = jnp.pad(kept_IxO, ((0, -I % width), (0, 0)))
        magnitude = jnp.where(kept, 0.0, magnitude)
    groups_GxWxO = magnitude.reshape(-1, width, O)
    groups_GxWxO = jnp.where(jnp.isfinite(groups_GxWxO), groups_GxWxO, 0.0)
    largest = groups_GxWxO.max(axis=(0, 1, 2) if granularity == "tensor" else 1, keepdims=True)
    rounded = fake_quantise(padded.reshape(-1, width, O), absmax_scale(largest, bits), bits)
    rounded = rounded.reshape(-1, O)[:I].astype(kernel_IxO.dtype)
    return rounded if kept_IxO is None else jnp.where(kept_IxO, kernel_IxO, rounded)
