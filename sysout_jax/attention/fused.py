"""`jax.nn.dot_product_attention`: cuDNN's flash attention on a GPU, XLA's own form elsewhere."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from sysout_jax.attention.rows import Attended
from sysout_jax.attention.spec import AttentionSpec
from sysout_jax.platform import target_platform

CHANNELS = 8  # cuDNN wants head sizes in multiples of this


def refusal(platform: str, dtype: Any) -> str | None:
    """Why the kernel cannot run, or None."""
    if platform == "gpu" and jnp.dtype(dtype).itemsize != 2:
        return f"is cuDNN's on a GPU and takes float16 or bfloat16, got {jnp.dtype(dtype).name}"
    return None


def fused(
    q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, spec: AttentionSpec, slopes_H: jax.Array | None = None
) -> Attended:
    """Causal softmax attention as the platform's library computes it; `out` only.

    Where there is no cuDNN, XLA materialises the map, in float32 at most, which is right and slow, so `auto` never chooses it there. jax
    returns the log-sum-exp as well, but no gradient flows through it (jax 0.10), so it is not offered.
    """
    Dh, Dv = q_BxTxHxDh.shape[-1], v_BxSxKxDv.shape[-1]
    # q, k and v share one size there; zeros change neither logits nor values
    size = -(-max(Dh, Dv) // CHANNELS) * CHANNELS
    q, k, v = (
        jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, size - x.shape[-1])))
        for x in (q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv)
    )
    library: Literal["cudnn", "xla"] = "cudnn" if target_platform() == "gpu" else "xla"
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        is_causal=True,
        scale=spec.scale_of(Dh),
        local_window_size=None if spec.window is None else (spec.window - 1, 0),
        implementation=library,
    )
    return Attended(out[..., :Dv], None, None)
