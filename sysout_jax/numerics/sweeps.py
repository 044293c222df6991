"""Reductions over what is as large as all activations of a layer, in few sweeps through memory and without a second array of that size.

On its own XLA's CPU backend writes the operand of a long reduction out first, and shares it between reductions: memory that nobody needs, and time
for the kernel to hand out its pages. Two ways around it: spans so short that the reduction stays in the loop that computes its operand, and blocks that stay in
the cache, whatever is computed of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sysout_jax.platform import target_platform

SPAN = 32  # elements up to which XLA does not rewrite a reduction into a tree of windows
BLOCK = 2**19  # elements of a block on a CPU


def fold(reduce: Callable[..., jax.Array], values_BxTxC: jax.Array) -> jax.Array:
    """`reduce` (jnp.sum, jnp.min or jnp.max) over spans of at most SPAN rows: (B, spans, C)."""
    B, T, C = values_BxTxC.shape
    even = T - T % SPAN
    parts = []
    if even:
        parts.append(reduce(values_BxTxC[:, :even].reshape(B, -1, SPAN, C), axis=2))
    if even < T:
        parts.append(reduce(values_BxTxC[:, even:], axis=1, keepdims=True))
    # without the barrier the next reduction would be merged with this one
    return jax.lax.optimization_barrier(jnp.concatenate(parts, axis=1))


def count(flags_BxTxC: jax.Array) -> jax.Array:
    """(B,) int32: how many are set."""
    return fold(jnp.sum, flags_BxTxC.astype(jnp.int32)).sum(1).sum(1)


def in_blocks(
    step: Callable[[Any, jax.Array], tuple[Any, Any]], start: Any, x_BxTxC: jax.Array
) -> tuple[Any, Any]:
    """`step(carry, block) -> carry, rows` over blocks (B, R, C) of rows in their order; the last carry, and all `rows` joined, (B, T, …).

    On an accelerator all rows are one block.
    """
    B, T, C = x_BxTxC.shape
    room = BLOCK // (B * C) if target_platform() == "cpu" else T
    size = 2 ** max(room.bit_length() - 1, 0)  # a power of two, so that it divides most T
    if size >= T:
        return step(start, x_BxTxC)

    def step_at(carry, first):
        return step(carry, jax.lax.dynamic_slice_in_dim(x_BxTxC, first, size, axis=1))

    even = T - T % size
    carry, parts = jax.lax.scan(step_at, start, jnp.arange(0, even, size))
    parts = jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(B, even, *a.shape[3:]), parts)
    if even < T:
        carry, last = step(carry, x_BxTxC[:, even:])
        parts = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), parts, last)
    return carry, parts
