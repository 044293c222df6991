"""How a wave spreads: what attention gives its tokens, and what they give back, in the layers that they enter alive.

Read from what `collect` keeps of every key, so that each wave has numbers of its own without a pass of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from sysout_jax.language_model import LanguageModel
from sysout_jax.nonfinite import finite_or
from sysout_jax.outliers import definitions as rules
from sysout_jax.statistics.collect import Stats

#: (sequence, token)
Place = tuple[int, int]


@dataclass(frozen=True)
class WaveSpread:
    """In the S layers that a token of the wave enters alive; 0-based, ascending."""

    layers: tuple[int, ...]
    tokens: np.ndarray  # (S,) int: of the wave that enter the layer
    mass: np.ndarray  # (S, H) attention on them, mean over queries that can see one; a share but with sigmoid attention and softpick
    even: np.ndarray  # (S,) what attention that is even over the keys a query sees would give them, mean over the same queries
    drain: np.ndarray  # (S, K) mean ‖v‖ of them over that of the other tokens of their sequences
    sinks: tuple[tuple[int, int], ...]  # (layer, head) for which they are sinks

    @property
    def strongest(self) -> tuple[int, int] | None:
        """Place in `layers` and head with the most attention on them; None where no layer follows, or nothing is finite."""
        if not np.isfinite(self.mass).any():
            return None
        at, head = np.unravel_index(np.nanargmax(self.mass), self.mass.shape)
        return int(at), int(head)

    def drain_of(self, at: int, head: int) -> float:
        """Of the values that a query head reads, in the layer at that place."""
        return float(self.drain[at, head * self.drain.shape[1] // self.mass.shape[1]])


#: Of the tokens that enter each layer alive, one collection for each of L layers.
Spreading = Callable[[Sequence[Collection[Place]]], WaveSpread]


def spreading(lm: LanguageModel, stats: Stats) -> Spreading:
    """`stats` are those of `collect` on the sequences of the waves."""
    length = stats.tokens.shape[1]
    windows = lm.attention_windows(length)
    return lambda entering: spread_of(entering, stats.attention.sums, stats.values.by_head, windows)


def spread_of(
    entering: Sequence[Collection[Place]],
    sums_LxNxHxT: np.ndarray,
    norm_LxNxKxT: np.ndarray,
    windows: Sequence[int | None],
) -> WaveSpread:
    """From column sums of attention and lengths of values, of all keys; a query sees its own key and those before it, of them only the last `windows[l]`."""
    L, _, H, T = sums_LxNxHxT.shape
    layers = tuple(layer for layer in range(L) if entering[layer])
    tokens = np.array([len(entering[layer]) for layer in layers], int)
    mass, drain = np.zeros((len(layers), H)), np.zeros((len(layers), norm_LxNxKxT.shape[2]))
    even = np.zeros(len(layers))
    for at, layer in enumerate(layers):
        places = np.array(sorted(entering[layer]))
        held, row = np.unique(places[:, 0], return_inverse=True)
        marked_NxT = np.zeros((len(held), T), bool)
        marked_NxT[row, places[:, 1]] = True
        sees_NxT = rules.over_seen_keys(marked_NxT.astype(np.int64), windows[layer]) > 0
        given_H = np.einsum("nht,nt->h", sums_LxNxHxT[layer, held], marked_NxT, dtype=np.float64)
        mass[at] = given_H / sees_NxT.sum()
        even[at] = rules.even_share_of(marked_NxT, windows[layer])
        norm_KxNxT = finite_or(norm_LxNxKxT[layer, held].swapaxes(0, 1).astype(np.float64), np.nan)
        theirs_K, others_K = (
            norm_KxNxT[:, where].sum(1) / max(where.sum(), 1) for where in (marked_NxT, ~marked_NxT)
        )
        drain[at] = rules.value_drain(theirs_K, others_K)  # NaN where there are no others
    found = np.argwhere(rules.is_sink(mass, even[:, None]))
    sinks = tuple((layers[at], int(head)) for at, head in found)
    return WaveSpread(layers, tokens, mass, even, drain, sinks)
