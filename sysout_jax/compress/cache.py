"""A quantised key-value cache, simulated: attention reads keys and values that were rounded to a symmetric grid.

    tensor     one scale for all keys of a sequence and layer, one for all values
    channel    a scale for every channel of a key head over the tokens of a sequence, and for every token of a value head over its channels
               (the sets of KIVI, Liu et al. 2024, on a symmetric grid)

Tokens that are kept stay in full precision and enter no scale. Extra keys and values of an absorbed prefix are constants of the model and
stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from sysout_jax.capture import hooked
from sysout_jax.compress.quantise import absmax_scale, fake_quantise

CacheSets = Literal["tensor", "channel"]
_TOKENS, _HEADS, _CHANNELS = 1, 2, 3  # axes of (B, T, K, Dh)
#: sets → tap → axes that share a scale
SHARED: dict[str, dict[str, tuple[int, ...]]] = {
    "tensor": {"k": (_TOKENS, _HEADS, _CHANNELS), "v": (_TOKENS, _HEADS, _CHANNELS)},
    "channel": {"k": (_TOKENS,), "v": (_CHANNELS,)},
}


@dataclass(frozen=True)
class QuantisedCache:
    """A block whose attention reads a quantised cache; the first `kept` tokens of each sequence are in full precision."""

    block: nn.Module
    bits: int
    sets: CacheSets
    kept: int = 0

    def apply(self, variables: dict, x, **more) -> Any:
        def hook(name: str, value: jax.Array) -> jax.Array:
            shared = SHARED[self.sets].get(name)
            return value if shared is None else rounded(value, self.bits, shared, self.kept)

        with hooked(hook):
            return self.block.apply(variables, x, **more)


def rounded(x_BxTxKxDh: jax.Array, bits: int, shared: tuple[int, ...], kept: int = 0) -> jax.Array:
    """Keys or values on a grid whose scales the axes `shared` have in common, in their dtype."""
    free_1xTx1x1 = (jnp.arange(x_BxTxKxDh.shape[1]) >= kept)[None, :, None, None]
    magnitude = jnp.abs(x_BxTxKxDh.astype(jnp.float32))
    magnitude = jnp.where(free_1xTx1x1 & jnp.isfinite(magnitude), magnitude, 0.0)
    scale = absmax_scale(magnitude.max(axis=shared, keepdims=True), bits)
    quantised = fake_quantise(x_BxTxKxDh, scale, bits).astype(x_BxTxKxDh.dtype)
    return jnp.where(free_1xTx1x1, quantised, x_BxTxKxDh)
