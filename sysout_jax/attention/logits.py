"""The range of attention logits, without holding a map."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sysout_jax.attention.spec import PLAIN, AttentionSpec

ROWS = 128  # query rows whose logits are held at once


def logit_range(
    q_BxTxHxDh: jax.Array, k_BxSxKxDh: jax.Array, spec: AttentionSpec = PLAIN
) -> tuple[jax.Array, jax.Array]:
    """The largest and the smallest logit of `spec` over the pairs that see each other, of each sequence, (B,) and (B,) float32."""
    B, T, H, Dh = q_BxTxHxDh.shape
    S, K = k_BxSxKxDh.shape[1:3]
    rows = min(ROWS, T)
    padded = -(-T // rows) * rows
    q = jnp.pad(q_BxTxHxDh, ((0, 0), (0, padded - T), (0, 0), (0, 0)))
    q = q.reshape(B, padded // rows, rows, K, H // K, Dh).swapaxes(0, 1)

    slopes_H = spec.slopes()

    def block(args):
        first, q_BxRxKxGxDh = args
        logits = jnp.einsum(
            "brkgd,bskd->bkgrs", q_BxRxKxGxDh, k_BxSxKxDh, preferred_element_type=jnp.float32
        ) * spec.scale_of(Dh)
        row = first + jnp.arange(rows)
        distance_RxS = row[:, None] - jnp.arange(S)[None]
        seen = spec.sees(distance_RxS) & (row < T)[:, None]
        logits = spec.capped(logits)
        if slopes_H is not None:
            slopes = slopes_H.reshape(1, K, H // K, 1, 1)
            logits = logits - slopes * distance_RxS.astype(jnp.float32)[None, None, None]
        seen = seen[None, None, None]
        high = jnp.where(seen, logits, -jnp.inf).max((1, 2, 3, 4))
        return high, jnp.where(seen, logits, jnp.inf).min((1, 2, 3, 4))

    high, low = jax.lax.map(block, (jnp.arange(0, padded, rows), q))
    return high.max(0), low.min(0)


def first_key_weights(
    q_BxTxHxDh: jax.Array, k_BxSxKxDh: jax.Array, lse_BxHxT: jax.Array, spec: AttentionSpec = PLAIN
) -> jax.Array:
    """The attention of every query to the first key, (B, H, T): softmax weights that belong to `lse`, without the map."""
    T, H, Dh = q_BxTxHxDh.shape[1:]
    first_BxHxDh = jnp.repeat(k_BxSxKxDh[:, 0], H // k_BxSxKxDh.shape[2], axis=1)
    logits_BxHxT = spec.scale_of(Dh) * jnp.einsum(
        "bthd,bhd->bht", q_BxTxHxDh, first_BxHxDh, preferred_element_type=jnp.float32
    )
    logits_BxHxT = spec.capped(logits_BxHxT)
    distance_T = jnp.arange(T)
    slopes_H = spec.slopes()
    if slopes_H is not None:
        far_HxT = slopes_H[:, None] * distance_T.astype(jnp.float32)[None]
        logits_BxHxT = logits_BxHxT - far_HxT[None]
    weights_BxHxT = spec.weights(logits_BxHxT, lse_BxHxT)
    return jnp.where(spec.sees(distance_T)[None, None], weights_BxHxT, 0.0)
