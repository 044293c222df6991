"""Heads that are silenced and value vectors that are set to zero, as a layer's `Write`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Silenced:
    """What is set to zero in each layer: the outputs of heads at every token, and value vectors of tokens in key/value heads."""

    heads: np.ndarray  # (L, H) bool
    tokens: np.ndarray  # (N, T) bool
    kv_heads: np.ndarray  # (L, K) bool, of `tokens` only

    @property
    def count(self) -> int:
        """Heads, and value vectors."""
        return int(self.heads.sum() + self.kv_heads.sum() * self.tokens.sum())

    def extra(self) -> Sequence[dict[str, Any]]:
        """What `write_silence` needs in each layer."""
        count = len(self.tokens)
        return [
            {
                "heads": np.broadcast_to(heads, (count, len(heads))),
                "kv_heads": np.broadcast_to(kv_heads, (count, len(kv_heads))),
                "tokens": self.tokens,
            }
            for heads, kv_heads in zip(self.heads, self.kv_heads, strict=True)
        ]


def silence_heads(heads_LxH: np.ndarray, num_kv_heads: int, shape: tuple[int, int]) -> Silenced:
    """Outputs of heads, in sequences of `shape` (N, T)."""
    return Silenced(
        heads_LxH, np.zeros(shape, bool), np.zeros((len(heads_LxH), num_kv_heads), bool)
    )


def silence_values(heads_LxH: np.ndarray, num_kv_heads: int, tokens_NxT: np.ndarray) -> Silenced:
    """Value vectors of tokens in the key/value heads that these heads read, which other heads may read too."""
    groups_LxKxG = heads_LxH.reshape(len(heads_LxH), num_kv_heads, -1)
    read_LxK = np.asarray(groups_LxKxG.any(axis=2))
    return Silenced(np.zeros_like(heads_LxH), tokens_NxT, read_LxK)


def write_silence(name: str, value: jax.Array, extra: dict[str, jax.Array]) -> jax.Array:
    """The `Write` of `Silenced`."""
    if name == "attn_heads":
        return jnp.where(extra["heads"][:, None, :, None], 0, value)
    if name == "v":
        at_BxTxK = extra["tokens"][:, :, None] & extra["kv_heads"][:, None, :]
        return jnp.where(at_BxTxK[..., None], 0, value)
    return value


def other_heads(heads_LxH: np.ndarray, first: int, rng: np.random.Generator) -> np.ndarray:
    """(L, H) bool: as many random heads that are not among these, from layer `first` on; fewer only where there are no more."""
    free = np.argwhere(~heads_LxH & (np.arange(len(heads_LxH)) >= first)[:, None])
    chosen = free[rng.choice(len(free), min(int(heads_LxH.sum()), len(free)), replace=False)]
    others = np.zeros_like(heads_LxH)
    others[chosen[:, 0], chosen[:, 1]] = True
    return others


def other_tokens(tokens_NxT: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N, T) bool: in every sequence as many random tokens that are not among these, or as many as there are."""
    others = np.zeros_like(tokens_NxT)
    for row, taken in zip(others, tokens_NxT, strict=True):
        free = np.flatnonzero(~taken)
        row[rng.choice(free, min(int(taken.sum()), len(free)), replace=False)] = True
    return others
