"""Exact medians on the device without sorting.

Sorting two million activations costs more than the layer that made them. Non-negative floats are ordered like their bit
patterns, so the k-th smallest is the smallest pattern x with #{values ≤ x} > k. A sorted subsample gives a bracket around it,
counting passes with interpolated pivots shrink the bracket, and it ends exactly, whatever the data are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

INF = 0x7F800000  # the largest pattern that is a number
WALK = 2  # values below the rank at which searching turns into walking
SAMPLE = 4096  # values whose quantiles give the first bracket


def median_of_magnitudes(magnitudes_BxTxC: jax.Array, skip_B: jax.Array) -> jax.Array:
    """Median of each sequence's non-negative float32 values without its `skip_B` smallest; (B,), 0 where none are left.

    Values that do not count (NaN, inf) are passed as 0 and skipped.
    """
    total = magnitudes_BxTxC.shape[1] * magnitudes_BxTxC.shape[2]
    count_B = total - skip_B
    # a rank must exist even where nothing counts: nothing would end a search beyond the last value
    lower_rank = jnp.minimum(skip_B + jnp.maximum(count_B - 1, 0) // 2, total - 1)
    lower, at_most_lower = _kth_smallest(magnitudes_BxTxC, lower_rank)
    # an even number of values has two middle ones, which may be equal
    single = (count_B % 2 == 1) | (at_most_lower > lower_rank + 1)
    upper = jnp.where(single, lower, _next_above(magnitudes_BxTxC, lower))
    return jnp.where(count_B > 0, (lower + upper) / 2, 0.0)


# Both passes reduce over tokens first and compare floats, not patterns: three to eight times as fast on CPU.


def _count_at_most(values_BxTxC: jax.Array, pivot_B: jax.Array) -> jax.Array:
    return (values_BxTxC <= pivot_B[:, None, None]).sum(1, dtype=jnp.int32).sum(1)


def _next_above(values_BxTxC: jax.Array, floor_B: jax.Array) -> jax.Array:
    return jnp.where(values_BxTxC > floor_B[:, None, None], values_BxTxC, jnp.inf).min(1).min(1)


def _kth_smallest(values_BxTxC: jax.Array, rank_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The element of 0-based `rank_B` in each row, and how many elements are not above it."""
    _, T, C = values_BxTxC.shape
    M = T * C

    # invariant: count(lo) <= rank < count(hi)
    lo, hi = jnp.full_like(rank_B, -1), jnp.full_like(rank_B, INF)
    state = (lo, hi, jnp.zeros_like(rank_B), jnp.full_like(rank_B, M))

    def narrow(state, pivot):
        lo, hi, at_lo, at_hi = state
        pivot = jnp.clip(pivot, lo + 1, hi - 1)
        pivot = jnp.where(hi - lo > 1, pivot, jnp.maximum(lo, 0))
        found = _count_at_most(values_BxTxC, pivot.view(jnp.float32))
        low = found <= rank_B
        return (
            jnp.where(low, jnp.maximum(lo, pivot), lo),
            jnp.where(low, hi, pivot),
            jnp.where(low, jnp.maximum(at_lo, found), at_lo),
            jnp.where(low, at_hi, found),
        )

    if M > 4 * SAMPLE:
        # a stride that is odd, so that it does not walk along one feature dimension; gathered, because libtpu fails on such slices
        tokens, channels = np.divmod(np.arange(0, M, (M // SAMPLE) | 1), values_BxTxC.shape[2])
        sample = jnp.sort(values_BxTxC[:, tokens, channels], axis=-1).view(jnp.int32)
        size = sample.shape[1]
        centre = (rank_B.astype(jnp.float32) * (size / M)).astype(jnp.int32)
        for offset in (
            -2 * int(size**0.5),
            2 * int(size**0.5),
        ):  # four standard deviations of a quantile's rank
            at = jnp.clip(centre + offset, 0, size - 1)
            state = narrow(state, jnp.take_along_axis(sample, at[:, None], -1)[:, 0])

    def unfinished(carry):
        _, (lo, hi, at_lo, _) = carry
        return ((rank_B - at_lo > WALK) & (hi - lo > 1)).any()

    def step(carry):
        turn, state = carry
        lo, hi, at_lo, at_hi = state
        # aim a little below and a little above the rank in turn, so that the bracket closes from both sides; every
        # third time halve it, which bounds the number of passes for any distribution
        inside = (at_hi - at_lo).astype(jnp.float32)
        aim = (rank_B - at_lo).astype(jnp.float32) + jnp.sqrt(inside) * jnp.where(
            turn % 3 == 0, -0.5, 0.5
        )
        share = jnp.where(turn % 3 == 2, 0.5, jnp.clip(aim / inside, 0.0, 1.0))
        return turn + 1, narrow(
            state, lo + (share * (hi - lo).astype(jnp.float32)).astype(jnp.int32)
        )

    _, (lo, *_) = jax.lax.while_loop(unfinished, step, (0, state))

    # walk the last steps from value to value: equal values make the count jump over the rank, so it need not be met
    def short(carry):
        _, at_most = carry
        return (at_most <= rank_B).any()

    def walk(carry):
        value, at_most = carry
        following = jnp.where(at_most <= rank_B, _next_above(values_BxTxC, value), value)
        return following, _count_at_most(values_BxTxC, following)

    floor = jnp.where(lo < 0, -1.0, jnp.maximum(lo, 0).view(jnp.float32))
    return jax.lax.while_loop(short, walk, (floor, jnp.zeros_like(rank_B)))
