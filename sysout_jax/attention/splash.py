"""jax's splash attention, the Pallas kernel for TPUs: blocks in the future are not computed, memory is linear in T both ways."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as library

from sysout_jax.attention.rows import Attended, scaled
from sysout_jax.attention.spec import AttentionSpec

BLOCKS = (512, 256, 128)  # rows and keys per tile; a large tile is fast, 128 is the least
PADDING = 1 / 8  # share of rows that may be added to fill the last tile


def refusal(platform: str, dtype: Any) -> str | None:
    """Why the kernel cannot run, or None."""
    return (
        None if platform == "tpu" else f"runs on a TPU only, and this program is for a {platform}"
    )


def splash(
    q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, spec: AttentionSpec, slopes_H: jax.Array | None = None
) -> Attended:
    """Causal softmax attention over T = S positions; `out` only, because the kernel's log-sum-exp carries no gradient."""
    T, H = q_BxTxHxDh.shape[1:3]
    block = block_size(T)
    padded = -(-T // block) * block

    def to_tiles(x_BxTxHxD):
        # keys added at the end lie in every real query's future
        return jnp.pad(x_BxTxHxD.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, padded - T), (0, 0)))

    mask: Any = library.CausalMask((padded, padded))
    if spec.window is not None:
        mask = library.LocalMask((padded, padded), (spec.window - 1, 0), 0)
    run = library.make_splash_mha_single_device(
        library.MultiHeadMask([mask] * H),
        attn_logits_soft_cap=spec.softcap,
        block_sizes=library.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
    )
    out_BxHxTxDv = jax.vmap(run)(
        to_tiles(scaled(q_BxTxHxDh, spec)), to_tiles(k_BxSxKxDh), to_tiles(v_BxSxKxDv)
    )
    return Attended(out_BxHxTxDv[:, :, :T].transpose(0, 2, 1, 3), None, None)


def block_size(length: int) -> int:
    """The largest tile that adds little padding to `length` positions."""
    return next((b for b in BLOCKS if -length % b <= PADDING * length), BLOCKS[-1])
