"""`jax.nn.dot_product_attention`: cuDNN's flash attention on a GPU, XLA's own form elsewhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sysout_jax.attention.blocks import Attended
from sysout_jax.platform import target_platform

CHANNELS = 8  # cuDNN wants head sizes in multiples of this


def fused(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv) -> Attended:
    """Causal softmax attention as the platform's library computes it; `out` only.

    cuDNN takes 16-bit inputs; ValueError for others on a GPU. Elsewhere XLA materialises the map, which is right and slow. jax returns the
    log-sum-exp as well, but no gradient flows through it (jax 0.10), so it is not offered.
    """
    gpu = target_platform() == "gpu"
    if gpu and jnp.dtype(q_BxTxHxDh.dtype).itemsize != 2:
        raise ValueError(
            f"attention kernel 'fused' is cuDNN's on a GPU and takes float16 or bfloat16, got {q_BxTxHxDh.dtype}; "
            "use blockwise"
        )
    Dh, Dv = q_BxTxHxDh.shape[-1], v_BxSxKxDv.shape[-1]
    # q, k and v share one size there; zeros change neither logits nor values
    size = -(-max(Dh, Dv) // CHANNELS) * CHANNELS
    q, k, v = (
        jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, size - x.shape[-1])))
        for x in (q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv)
    )
    out = jax.nn.dot_product_attention(
        q, k, v, is_causal=True, scale=Dh**-0.5, implementation="cudnn" if gpu else "xla"
    )
    return Attended(out[..., :Dv], None, None)
