"""Attention as a value: how queries and keys become weights, apart from the numbers themselves."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class AttentionSpec:
    """The rule behind the weights A_ts of query t and key s, for one layer; hashable, a static argument of every kernel.

    logit_ts = cap(scale · q_t·k_s) − slope_h · (t − s)     for t − window < s ≤ t, cap(x) = softcap · tanh(x / softcap)
    A_ts = softmax over s, or σ(logit_ts + sigmoid), or max(e^logit_ts − 1, 0) / Σ_s |e^logit_ts − 1|
    """

    sigmoid: float | None = None
    """b of sigmoid attention (Ramapuram et al. 2024); None: softmax."""
    softpick: float | None = None
    """Softpick attention (Zuhri et al. 2025): this is added to Σ|e^(logit − m) − e^(−m)|, m the row's largest logit, at least 0. None: softmax."""
    scale: float | None = None
    """None: 1/√Dh."""
    softcap: float | None = None
    """Logits stay within ± this (Gemma 2); None: no cap."""
    window: int | None = None
    """Keys that a query sees, itself included (Mistral); None: all before it."""
    alibi: tuple[float, ...] | None = None
    """A slope per query head (Press et al. 2022); None: no distance enters."""

    def scale_of(self, head_dim: int) -> float:
        """The factor on q·k."""
        return head_dim**-0.5 if self.scale is None else self.scale

    def capped(self, logits: jax.Array) -> jax.Array:
        """Logits within the soft cap."""
        return logits if self.softcap is None else self.softcap * jnp.tanh(logits / self.softcap)

    def sees(self, distance: jax.Array) -> jax.Array:
        """bool: whether a query sees a key so many positions before it."""
        seen = distance >= 0
        return seen if self.window is None else seen & (distance < self.window)

    def slopes(self) -> jax.Array | None:
        """(H,) float32 slopes, None without ALiBi."""
        return None if self.alibi is None else jnp.asarray(self.alibi, jnp.float32)

    def weights(self, logits: jax.Array, lse: jax.Array | None) -> jax.Array:
        """A from logits that are seen; `lse` is the logarithm of what a row is divided by, beside `logits`; sigmoids need none."""
        if self.sigmoid is not None:
            return jax.nn.sigmoid(logits + self.sigmoid)
        assert lse is not None
        if self.softpick is not None:
            return jnp.maximum(less_one(logits, lse), 0.0)
        return jnp.exp(logits - lse)

    @property
    def features(self) -> frozenset[str]:
        """Names of what goes beyond plain softmax attention; a kernel says which of them it computes."""
        names = ("sigmoid", "softpick", "softcap", "window", "alibi")
        return frozenset(name for name in names if getattr(self, name) is not None)


def less_one(logits: jax.Array, shift: jax.Array) -> jax.Array:
    """(e^logits − 1) e^(−shift), without overflow where logits ≤ shift, and exact to rounding where they are small."""
    small = jnp.expm1(jnp.minimum(logits, 1.0)) * jnp.exp(-shift)
    return jnp.where(logits < 1.0, small, jnp.exp(logits - shift) - jnp.exp(-shift))


#: softmax(q kᵀ / √Dh) over all keys up to the query.
PLAIN = AttentionSpec()
