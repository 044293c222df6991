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

from sysout_jax.attention import fused, splash
from sysout_jax.attention.blocks import blockwise
from sysout_jax.attention.rows import Attended, accumulator, reference, split_heads
from sysout_jax.platform import target_platform
from sysout_jax.sharding import BATCH_AXES, current_mesh, per_device


def _runs_everywhere(platform: str, dtype: Any) -> str | None:
    return None


@dataclass(frozen=True)
class Kernel:
    """`run(q, k, v[, bias])`; `rows` says whether it returns `lse` (with its gradient) and `sums`, and knows sigmoid.

    `refusal(platform, dtype)` tells why it cannot run there, or None.
    """

    run: Callable[..., Attended]
    rows: bool
    refusal: Callable[[str, Any], str | None] = _runs_everywhere


KERNELS: dict[str, Kernel] = {
    "reference": Kernel(reference, rows=True),
    "blockwise": Kernel(blockwise, rows=True),
    "fused": Kernel(fused.fused, rows=False, refusal=fused.refusal),
    "splash": Kernel(splash.splash, rows=False, refusal=splash.refusal),
}


def resolve_kernel(
    kernel: str,
    dtype: Any = jnp.float32,
    *,
    variant: str = "default",
    platform: str | None = None,
) -> str:
    """The kernel that runs a `variant` of attention in a compute dtype: what `auto` stands for, or the one asked for.

    `platform` (cpu, gpu, tpu) defaults to what is compiled for, see `target_platform`. Raises ValueError for an unknown kernel and, with
    the reason, for one that cannot run there.
    """
    platform = platform or target_platform()
    if kernel == "auto":
        if variant != "sigmoid" and platform == "tpu":
            return "splash"
        if variant != "sigmoid" and platform == "gpu" and not fused.refusal(platform, dtype):
            return "fused"
        return "blockwise"
    if kernel not in KERNELS:
        raise ValueError(
            f"attention kernel {kernel!r} is unknown; expected auto or one of {', '.join(KERNELS)}"
        )
    reason = KERNELS[kernel].refusal(platform, dtype)
    if variant == "sigmoid" and not KERNELS[kernel].rows:
        reason = "computes softmax only, not sigmoid attention"
    if reason:
        raise ValueError(f"attention kernel {kernel!r} {reason}; use auto, blockwise or reference")
    return kernel


def attend(
    q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, *, kernel: str = "auto", bias: float | None = None
) -> Attended:
    """Causal attention, `softmax(q kᵀ / √Dh) v`, with H a multiple of K (query heads share key heads in order).

    With a `bias`, `σ(q kᵀ / √Dh + bias) v` instead. Logits, `lse` and `sums` are at least float32 whatever the inputs are;
    `out` has the dtype of `v`. Raises ValueError for an unknown kernel and for one that cannot compute what is asked.
    """
    variant = "default" if bias is None else "sigmoid"
    chosen = KERNELS[resolve_kernel(kernel, q_BxTxHxDh.dtype, variant=variant)]

    def run(q, k, v):
        return chosen.run(q, k, v) if bias is None else chosen.run(q, k, v, bias)

    mesh, K = current_mesh(), k_BxSxKxDh.shape[2]
    if mesh is not None:
        batch = mesh.shape["data"] * mesh.shape["fsdp"]
        # a batch of one at initialisation is left to the compiler
        if q_BxTxHxDh.shape[0] % batch == 0 and K % mesh.shape["tensor"] == 0:
            heads, rows = P(BATCH_AXES, None, "tensor"), P(BATCH_AXES, "tensor")
            # None leaves have no spec
            lse = rows if chosen.rows and bias is None else None
            specs: Any = Attended(heads, lse, rows if chosen.rows else None)  # type: ignore[arg-type]
            run = per_device(run, (heads, heads, heads), specs)
    return run(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv)


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
