"""The close-up of one head: all that it computes over a few positions of one sequence (Figure 8)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from sysout_jax.attention import AttentionSpec
from sysout_jax.attention.rows import causal_logits, scaled

WINDOW = 48  # positions of the close-up of one head


@dataclass(frozen=True)
class HeadCloseUp:
    """One head over `WINDOW` positions of one sequence (Figure 8)."""

    layer: int
    head: int
    start: int  # first position
    x: np.ndarray  # (W, D) what q, k and v are projected from: the residual stream after the norm
    q: np.ndarray  # (W, Dh)
    k: np.ndarray  # (W, Dh)
    v: np.ndarray  # (W, Dh)
    logits: np.ndarray  # (W, W) -inf above the diagonal
    probabilities: np.ndarray  # (W, W)


#: What the close-up shows, and the axis of its positions in one sequence; sigmoid attention has no lse.
_WINDOWED = {"attn_in": 0, "q": 0, "k": 0, "v": 0, "lse": 1}


def window_of(taps, start_B):
    """On the device: what the close-up needs of each sequence, from position `start_B` on."""
    size = min(WINDOW, taps["q"].shape[1])

    def cut(name: str):
        def cut_one(x, start):
            return jax.lax.dynamic_slice_in_dim(x, start, size, _WINDOWED[name])

        return jax.vmap(cut_one)(taps[name].astype(jnp.float32), start_B)

    return {f"window_{name}": cut(name) for name in _WINDOWED if name in taps}


def close_up_of(
    layer: int, head: int, seen: dict[str, np.ndarray], start: int, spec: AttentionSpec
) -> HeadCloseUp:
    """Of the first followed sequence; `seen` holds what `window_of` gave, on the host."""
    q = seen["window_q"][0, :, head]
    group = seen["window_q"].shape[2] // seen["window_k"].shape[2]
    k, v = seen["window_k"][0, :, head // group], seen["window_v"][0, :, head // group]
    at_W = start + jnp.arange(len(q))
    slopes = None if spec.alibi is None else jnp.asarray(spec.alibi[head : head + 1])
    values, seen_pairs, _ = causal_logits(
        scaled(jnp.asarray(q)[None], spec), jnp.asarray(k.T), at_W, at_W, spec, slopes
    )
    logits = np.where(seen_pairs[0], values[0], -np.inf)
    lse = seen["window_lse"][0, head][:, None] if "window_lse" in seen else None
    probabilities = np.asarray(spec.weights(jnp.asarray(logits), lse))
    return HeadCloseUp(
        layer, head, start, seen["window_attn_in"][0], q, k, v, logits, probabilities
    )
