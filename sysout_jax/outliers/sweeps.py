"""Reductions over tokens that XLA's CPU backend does in one sweep through memory.

A reduction of up to 32 elements stays in the loop that computes its operand. Longer ones are rewritten into a tree of windows, and then the operand,
as large as all activations of a layer, is first written out; so it is where two reductions share an operand. Reduced together, they share the sweep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

SPAN = 32


class Reduction(NamedTuple):
    """An associative `combine` with its identity."""

    combine: Callable[[jax.Array, jax.Array], jax.Array]
    identity: float


SUM = Reduction(jax.lax.add, 0)
MAX = Reduction(jax.lax.max, -jnp.inf)
MIN = Reduction(jax.lax.min, jnp.inf)


def fold(*each: tuple[Reduction, jax.Array]) -> tuple[jax.Array, ...]:
    """Reduce every (B, T, C) array over spans of at most SPAN tokens, all in one sweep: (B, spans, C) each."""
    B, T, C = each[0][1].shape
    even = T - T % SPAN

    def combine(left, right):
        return tuple(how.combine(a, b) for (how, _), a, b in zip(each, left, right, strict=True))

    def reduce(cut: Callable[[jax.Array], jax.Array]) -> tuple[jax.Array, ...]:
        arrays = tuple(cut(values) for _, values in each)
        starts = tuple(
            jnp.asarray(how.identity, a.dtype) for (how, _), a in zip(each, arrays, strict=True)
        )
        return jax.lax.reduce(arrays, starts, combine, (2,))

    parts = []
    if even:
        parts.append(reduce(lambda values: values[:, :even].reshape(B, -1, SPAN, C)))
    if even < T:
        parts.append(reduce(lambda values: values[:, None, even:]))
    # without the barrier the next reduction would be merged with this one
    return jax.lax.optimization_barrier(
        tuple(jnp.concatenate(found, axis=1) for found in zip(*parts, strict=True))
    )


def total(values_BxTxC: jax.Array) -> jax.Array:
    """(B,) sum over everything, channels last; bool counts as int32."""
    if values_BxTxC.dtype == bool:
        values_BxTxC = values_BxTxC.astype(jnp.int32)
    (sums_BxSxC,) = fold((SUM, values_BxTxC))
    return sums_BxSxC.sum(1).sum(1)
