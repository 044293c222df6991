"""Four-bit floats with a shared scale per block of inputs, simulated: values are rounded to what the format holds and returned as floats.

An element is E2M1: ±0, 0.5, 1, 1.5, 2, 3, 4, 6, rounded half to even, cut at ±6. Blocks are consecutive inputs of one output channel, the
last one shorter where the inputs do not divide.

    mxfp4   blocks of 32; scale 2^(⌊log2 max|x|⌋ − 2), an E8M0 (OCP Microscaling Formats 1.0, section 6.3)
    nvfp4   blocks of 16; scale E4M3(max|x| / 6 / g) · g with one float32 g = max|W| / (6 · 448) for the whole matrix (NVIDIA)
"""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp

BlockFormat = Literal["mxfp4", "nvfp4"]
BLOCK_FORMATS: tuple[str, ...] = get_args(BlockFormat)
BLOCK = {"mxfp4": 32, "nvfp4": 16}
LARGEST = 6.0  # of an E2M1
LARGEST_EXPONENT = 2  # of an E2M1: 6 = 1.5 · 2²
LARGEST_SCALE = 448.0  # of an E4M3
E8M0 = (-127, 127)  # exponents


def round_e2m1(x: jax.Array) -> jax.Array:
    """The nearest E2M1, float32; ties go to the even code, which is the even multiple of the local step."""
    magnitude = jnp.minimum(jnp.abs(x.astype(jnp.float32)), LARGEST)
    step = jnp.where(magnitude < 2.0, 0.5, jnp.where(magnitude < 4.0, 1.0, 2.0))
    return jnp.copysign(jnp.round(magnitude / step) * step, x)


def block_scales(largest: jax.Array, whole: jax.Array, kind: BlockFormat) -> jax.Array:
    """What elements are divided by, from the largest magnitudes of blocks and of the whole matrix; 0 for a block of zeros."""
    if kind == "mxfp4":
        exponent = jnp.frexp(largest)[1] - 1 - LARGEST_EXPONENT
        scale = jnp.ldexp(jnp.ones_like(largest), jnp.clip(exponent, *E8M0))
        return jnp.where(largest > 0, scale, 0.0)
    unit = whole / jnp.float32(LARGEST * LARGEST_SCALE)
    wanted = largest / LARGEST / jnp.where(unit > 0, unit, 1.0)
    return jnp.minimum(wanted, LARGEST_SCALE).astype(jnp.float8_e4m3fn).astype(jnp.float32) * unit


@partial(jax.jit, static_argnames=("kind",))
def block_weights(
    kernel_IxO: jax.Array, kept_IxO: jax.Array | None = None, *, kind: BlockFormat
) -> jax.Array:
    """A kernel (inputs, outputs) as the format holds it, in its dtype. `kept` (I, O) bool stays as it is and enters no scale.

    What is not finite stays what it is.
    """
    I, O = kernel_IxO.shape
    width = BLOCK[kind]
    padded = jnp.pad(kernel_IxO.astype(jnp.float32), ((0, -I % width), (0, 0)))
    counts = jnp.isfinite(padded)
    if kept_IxO is not None:
        counts &= ~jnp.pad(kept_IxO, ((0, -I % width), (0, 0)))
    magnitude_GxWxO = jnp.where(counts, jnp.abs(padded), 0.0).reshape(-1, width, O)
    largest_Gx1xO = magnitude_GxWxO.max(axis=1, keepdims=True)
    scale_Gx1xO = block_scales(largest_Gx1xO, largest_Gx1xO.max(), kind)
    divisor = jnp.where(scale_Gx1xO > 0, scale_Gx1xO, 1.0)
    rounded = round_e2m1(padded.reshape(-1, width, O) / divisor) * scale_Gx1xO
    rounded = rounded.reshape(-1, O)[:I]
    return jnp.where(counts[:I], rounded, kernel_IxO).astype(kernel_IxO.dtype)
