"""Which code computes causal attention: one dict of kernels, and what each of them can give.

Variant (the mathematics) and kernel (how) are separate settings. Every kernel gives the same numbers to rounding; an explicit request is
honoured or refused with a reason, never replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from sysout_jax.attention.blocks import Attended, accumulator, blockwise, reference, split_heads
from sysout_jax.attention.fused import fused
from sysout_jax.platform import target_platform
from sysout_jax.sharding import BATCH_AXES, current_mesh, per_device


@dataclass(frozen=True)
class Kernel:
    """`run(q, k, v[, bias])`; `rows` says whether it returns `lse` (with its gradient) and `sums`, and knows sigmoid."""

    run: Callable[..., Attended]
    rows: bool


KERNELS: dict[str, Kernel] = {
    "reference": Kernel(reference, rows=True),
    "blockwise": Kernel(blockwise, rows=True),
    "fused": Kernel(fused, rows=False),
}


def resolve_kernel(kernel: str, dtype: Any = jnp.float32) -> str:
    """The kernel that `auto` stands for on this platform and compute dtype. ValueError for an unknown name."""
    if kernel == "auto":
        half = jnp.dtype(dtype).itemsize == 2
        return "fused" if half and target_platform() == "gpu" else "blockwise"
    if kernel not in KERNELS:
        raise ValueError(
            f"attention kernel {kernel!r} is unknown; expected auto or one of {', '.join(KERNELS)}"
        )
    return kernel


def attend(
    q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, *, kernel: str = "auto", bias: float | None = None
) -> Attended:
    """Causal attention, `softmax(q kᵀ / √Dh) v`, with H a multiple of K (query heads share key heads in order).

    With a `bias`, `σ(q kᵀ / √Dh + bias) v` instead. Logits, `lse` and `sums` are at least float32 whatever the inputs are;
    `out` has the dtype of `v`. Raises ValueError for an unknown kernel and for one that cannot compute what is asked.
    """
    name = resolve_kernel(kernel, q_BxTxHxDh.dtype)
    if bias is not None and not KERNELS[name].rows:
        raise ValueError(
            f"attention kernel {name!r} computes softmax only; sigmoid attention needs blockwise or reference"
        )

    def run(q, k, v):
        return KERNELS[name].run(q, k, v) if bias is None else KERNELS[name].run(q, k, v, bias)

    mesh, K = current_mesh(), k_BxSxKxDh.shape[2]
    if mesh is not None:
        batch = mesh.shape["data"] * mesh.shape["fsdp"]
        # a batch of one at initialisation is left to the compiler
        if q_BxTxHxDh.shape[0] % batch == 0 and K % mesh.shape["tensor"] == 0:
            heads, rows = P(BATCH_AXES, None, "tensor"), P(BATCH_AXES, "tensor")
            # None leaves have no spec
            held = KERNELS[name].rows
            lse = rows if held and bias is None else None
            specs: Any = Attended(heads, lse, rows if held else None)  # type: ignore[arg-type]
            run = per_device(run, (heads, heads, heads), specs)
    return run(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv)


def attend_with_key(
    q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, key_HxDh, *, kernel: str = "auto"
) -> tuple[jax.Array, jax.Array, Attended]:
    """Attention with one more key per query head, `k'`, that every query sees and whose value is zero.

    Returns `(1 − g) out` (B, T, H, Dh), `g` (B, H, T), the attention that k' takes, and what `attend` gives without k'
    (its `out` is then `(1 − g) out / (1 − g)` on a kernel that has no `lse`). By expanding the softmax, `g = σ(q·k'/√Dh − lse)`.
    """
    name = resolve_kernel(kernel, q_BxTxHxDh.dtype)
    if KERNELS[name].rows:
        attended = attend(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, kernel=name)
        scale = q_BxTxHxDh.shape[-1] ** -0.5
        logit_BxHxT = scale * jnp.einsum(
            "bthd,hd->bht",
            q_BxTxHxDh,
            key_HxDh.astype(q_BxTxHxDh.dtype),
            preferred_element_type=accumulator(q_BxTxHxDh.dtype),
        )
        g_BxHxT = jax.nn.sigmoid(logit_BxHxT - attended.lse)
        return per_head(1.0 - g_BxHxT, attended.out), g_BxHxT, attended
    return _prepended(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, key_HxDh, name)


def _prepended(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, key_HxDh, kernel: str):
    # Position 0 holds k' and a query that nobody reads: plain causal attention over T + 1 positions is exactly what is asked, and
    # a value channel that is 1 for k' and 0 elsewhere gives g. A fused kernel has no gradient through its lse.
    B, H = q_BxTxHxDh.shape[0], q_BxTxHxDh.shape[2]
    group = H // k_BxSxKxDh.shape[2]
    k_BxSxHxDh, v_BxSxHxDv = (jnp.repeat(x, group, axis=2) for x in (k_BxSxKxDh, v_BxSxKxDv))
    key = jnp.broadcast_to(key_HxDh.astype(k_BxSxHxDh.dtype)[None, None], (B, 1, *key_HxDh.shape))
    q = jnp.concatenate([jnp.zeros_like(q_BxTxHxDh[:, :1]), q_BxTxHxDh], axis=1)
    k = jnp.concatenate([key, k_BxSxHxDh], axis=1)
    real = jnp.pad(v_BxSxHxDv, ((0, 0), (0, 0), (0, 0), (0, 1)))
    taken = jnp.zeros_like(real[:, :1]).at[..., -1].set(1)
    mixed = attend(q, k, jnp.concatenate([taken, real], axis=1), kernel=kernel).out[:, 1:]
    kept_BxTxHxDv, g_BxHxT = mixed[..., :-1], mixed[..., -1].transpose(0, 2, 1)
    g_BxHxT = g_BxHxT.astype(accumulator(g_BxHxT.dtype))
    out = per_head(1.0 / (1.0 - g_BxHxT), kept_BxTxHxDv)
    return kept_BxTxHxDv, g_BxHxT, Attended(out, None, None)


def per_head(scale_BxHxT, x_BxTxHxD) -> jax.Array:
    """Multiply every head's output by a number per query, in the output's dtype."""
    scale_BxTxHx1 = scale_BxHxT.transpose(0, 2, 1)[..., None]
    return (scale_BxTxHx1 * x_BxTxHxD.astype(scale_BxHxT.dtype)).astype(x_BxTxHxD.dtype)


def attention_map(q_BxTxHxDh, k_BxSxKxDh, lse_BxHxT=None, bias: float | None = None) -> jax.Array:
    """The (B, H, T, S) weights: probabilities that belong to `lse`, or with a `bias` sigmoids. Quadratic: for short prompts."""
    B, T, H, Dh = q_BxTxHxDh.shape
    S, K = k_BxSxKxDh.shape[1:3]
    rows = split_heads(q_BxTxHxDh, K).reshape(B, K, H // K * T, Dh)
    logits = jnp.matmul(
        rows,
        k_BxSxKxDh.transpose(0, 2, 3, 1),
        preferred_element_type=accumulator(q_BxTxHxDh.dtype),
    ).reshape(B, H, T, S)
    seen_TxS = jnp.arange(T)[:, None] >= jnp.arange(S)[None, :]
    if bias is None:
        weights = jnp.exp(logits - lse_BxHxT[..., None])
    else:
        weights = jax.nn.sigmoid(logits + bias)
    return jnp.where(seen_TxS[None, None], weights, 0.0)
