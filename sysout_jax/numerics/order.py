"""Exact medians on the device without sorting.

Sorting two million activations costs more than the layer that made them. Non-negative floats are ordered like their bit
patterns, so the k-th smallest is the smallest pattern x with #{values ≤ x} > k. A sorted subsample gives a bracket around it,
counting passes with interpolated pivots shrink the bracket, and the last steps jump from value to value; it ends exactly, whatever the data are.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sysout_jax.numerics.sweeps import count, fold

INF = 0x7F800000  # pattern of infinity, above those of all numbers
NEAR = 64  # values below the rank at which searching turns into jumping
AIMS = 4  # interpolated pivots after which the bracket is halved
SAMPLE = 4096  # values whose quantiles give the first bracket


def median_of_magnitudes(x_BxTxC: jax.Array, nonfinite_B: jax.Array) -> jax.Array:
    """Median of |x| over what is finite in each sequence, of which `nonfinite_B` elements are not; float32 (B,), 0 where none are."""
    count_B = x_BxTxC.shape[1] * x_BxTxC.shape[2] - nonfinite_B
    lower_rank = jnp.maximum(count_B - 1, 0) // 2
    lower, at_most_lower = _kth_smallest(x_BxTxC, lower_rank, count_B)
    # an even number of values has two middle ones, which may be equal
    single = (count_B % 2 == 1) | (at_most_lower > lower_rank + 1)
    upper = jnp.where(single, lower, _above(x_BxTxC, lower).min((1, 2)))
    return jnp.where(count_B > 0, (lower + upper) / 2, 0.0)


# Both passes compare floats, not patterns: twice as fast on CPU. NaN is in no relation to any number, and no pivot is inf.


def _magnitude(x: jax.Array) -> jax.Array:
    return jnp.abs(x.astype(jnp.float32))


def _count_at_most(x_BxTxC: jax.Array, pivot_B: jax.Array) -> jax.Array:
    # not by |x|, which the compiler would compute once for all passes and write out
    x, pivot = x_BxTxC.astype(jnp.float32), pivot_B[:, None, None]
    return count((x <= pivot) & (x >= -pivot))


def _above(x_BxTxC: jax.Array, floor_B: jax.Array) -> jax.Array:
    """(B, spans, C): the smallest magnitude of every span of tokens that is above `floor`, inf where there is none."""
    magnitude = _magnitude(x_BxTxC)
    above = jnp.where(magnitude > floor_B[:, None, None], magnitude, jnp.inf)
    return fold(jnp.min, above)


class _Bracket(NamedTuple):
    """Patterns around the value that is looked for, `count(lo) <= rank < count(hi)`; each field is (B,)."""

    lo: jax.Array
    hi: jax.Array
    at_lo: jax.Array
    at_hi: jax.Array
    empty: jax.Array  # the last pivot had no values between itself and an end
    verify: jax.Array  # the last pivot, now `hi`, is a value and probably the one
    aims: jax.Array  # pivots since the bracket was last halved; at AIMS it must be

    @property
    def open(self) -> jax.Array:
        return self.hi - self.lo > 1


def _kth_smallest(
    x_BxTxC: jax.Array, rank_B: jax.Array, count_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The magnitude of 0-based `rank_B` among the `count_B` finite ones of each row, and how many are not above it."""
    B, T, C = x_BxTxC.shape
    M = T * C
    no = jnp.zeros(B, bool)
    zero = jnp.zeros_like(rank_B)
    # closed from the start where there is nothing to find
    bracket = _Bracket(zero - 1, jnp.where(count_B > 0, INF, 0), zero, count_B, no, no, zero)

    def narrow(now: _Bracket, pivot_B, jumped_B) -> _Bracket:
        """After a count at a pivot; `jumped` says where the pivot is a value that at least `rank` others do not exceed."""
        pivot = jnp.where(now.open, jnp.clip(pivot_B, now.lo + 1, now.hi - 1), now.hi)
        at_most = _count_at_most(x_BxTxC, pivot.view(jnp.float32))
        low = at_most <= rank_B
        # a value that is itself the only one to reach the rank: nothing below it does
        hit = jumped_B & (pivot == pivot_B) & (at_most == rank_B + 1)
        aims = jnp.where(now.aims == AIMS, 0, now.aims + 1)
        aims = jnp.where(now.verify, AIMS, jnp.where(jumped_B, now.aims, aims))
        return _Bracket(
            lo=jnp.where(hit, pivot - 1, jnp.where(low, pivot, now.lo)),
            hi=jnp.where(low, now.hi, pivot),
            at_lo=jnp.where(low, at_most, now.at_lo),
            at_hi=jnp.where(low, now.at_hi, at_most),
            empty=(at_most == now.at_lo) | (at_most == now.at_hi),
            verify=jumped_B & ~low,
            aims=aims,
        )

    guesses_2xB, turn = jnp.zeros((2, B), jnp.int32), 2
    if M > 4 * SAMPLE:
        # a stride that is odd, so that it does not walk along one feature dimension; gathered, because libtpu fails on such slices
        tokens, channels = np.divmod(np.arange(0, M, (M // SAMPLE) | 1), C)
        sample = jnp.sort(_magnitude(x_BxTxC[:, tokens, channels]), axis=-1).view(jnp.int32)
        size = sample.shape[1]
        centre = (rank_B.astype(jnp.float32) * (size / M)).astype(jnp.int32)
        # two standard deviations of a quantile's rank
        around = jnp.stack([centre - int(size**0.5), centre + int(size**0.5)], axis=-1)
        around = jnp.clip(around, 0, size - 1)
        guesses_2xB, turn = jnp.take_along_axis(sample, around, -1).T, 0

    def aim(now: _Bracket) -> jax.Array:
        # a little below and a little above the rank in turn, so that the bracket closes from both sides; halving
        # bounds the number of passes for any distribution
        inside = jnp.maximum(now.at_hi - now.at_lo, 1).astype(jnp.float32)
        ahead = (rank_B - now.at_lo).astype(jnp.float32)
        ahead += jnp.sqrt(inside) * jnp.where(now.aims % 2 == 0, -1.0, 1.0)
        share = jnp.where(now.aims == AIMS, 0.5, jnp.clip(ahead / inside, 0.0, 1.0))
        return now.lo + (share * (now.hi - now.lo).astype(jnp.float32)).astype(jnp.int32)

    def jump(now: _Bracket) -> jax.Array:
        """The value as many steps above `lo` as the rank is, if no span holds two of those in between; one further on, if one does."""
        floor = jnp.where(now.lo < 0, -1.0, jnp.maximum(now.lo, 0).view(jnp.float32))
        following = _above(x_BxTxC, floor).reshape(B, -1)
        most = min(NEAR, following.shape[1])
        steps = jnp.clip(rank_B - now.at_lo, 0, most - 1)
        smallest = -jax.lax.top_k(-following, most)[0]
        return jnp.take_along_axis(smallest, steps[:, None], -1)[:, 0].view(jnp.int32)

    def step(state):
        turn, now = state
        guessing = turn < len(guesses_2xB)
        near = rank_B - now.at_lo < NEAR
        jumps = now.open & ~now.verify & (now.aims < AIMS) & (near | now.empty) & ~guessing
        value = jax.lax.cond(jumps.any(), jump, lambda now: now.hi, now)
        pivot = jnp.where(now.verify, now.hi - 1, aim(now))
        pivot = jnp.where(guessing, guesses_2xB[jnp.minimum(turn, 1)], pivot)
        return turn + 1, narrow(now, jnp.where(jumps, value, pivot), jumps)

    _, bracket = jax.lax.while_loop(lambda state: state[1].open.any(), step, (turn, bracket))
    return bracket.hi.view(jnp.float32), bracket.at_hi
