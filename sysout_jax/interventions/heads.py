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
    tokens: np.ndarray  # (L, N, T) bool
    kv_heads: np.ndarray  # (L, K) bool, of `tokens` only

    @property
    def count(self) -> int:
        """Heads, and value vectors."""
        return int(self.heads.sum() + self.kv_heads.sum(1) @ self.tokens.sum((1, 2)))

    def extra(self) -> Sequence[dict[str, Any]]:
        """What `write_silence` needs in each layer."""
        count = self.tokens.shape[1]
        return [
            {
                "heads": np.broadcast_to(heads, (count, len(heads))),
                "kv_heads": np.broadcast_to(kv_heads, (count, len(kv_heads))),
                "tokens": tokens,
            }
            for heads, kv_heads, tokens in zip(self.heads, self.kv_heads, self.tokens, strict=True)
        ]


def silence_heads(heads_LxH: np.ndarray, num_kv_heads: int, shape: tuple[int, int]) -> Silenced:
    """Outputs of heads, in sequences of `shape` (N, T)."""
    layers = len(heads_LxH)
    return Silenced(
        heads_LxH, np.zeros((layers, *shape), bool), np.zeros((layers, num_kv_heads), bool)
    )


def silence_values(heads_LxH: np.ndarray, num_kv_heads: int, tokens_LxNxT: np.ndarray) -> Silenced:
    """Value vectors of each layer's tokens in the key/value heads that these heads read, which other heads may read too."""
    groups_LxKxG = heads_LxH.reshape(len(heads_LxH), num_kv_heads, -1)
    read_LxK = np.asarray(groups_LxKxG.any(axis=2))
    return Silenced(np.zeros_like(heads_LxH), tokens_LxNxT, read_LxK)


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


def other_tokens(tokens_LxNxT: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(L, N, T) bool: for every token that is marked in some layer a random one of its sequence that is marked in none, in the same layers;
    fewer only where a sequence has no more."""
    others = np.zeros_like(tokens_LxNxT)
    for n, taken in enumerate(np.asarray(tokens_LxNxT.any(axis=0))):
        marked, free = np.flatnonzero(taken), np.flatnonzero(~taken)
        chosen = rng.choice(free, min(len(marked), len(free)), replace=False)
        others[:, n, chosen] = tokens_LxNxT[:, n, marked[: len(chosen)]]
    return others
