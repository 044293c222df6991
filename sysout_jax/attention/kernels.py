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
from sysout_jax.attention.rows import Attended, causal_logits, reference, split_heads
from sysout_jax.attention.spec import PLAIN, AttentionSpec
from sysout_jax.errors import InputError
from sysout_jax.platform import target_platform
from sysout_jax.sharding import BATCH_AXES, current_mesh, per_device


def _runs_everywhere(platform: str, dtype: Any) -> str | None:
    return None


@dataclass(frozen=True)
class Kernel:
    """`run(q, k, v, spec, slopes)`; `rows` says whether it returns `lse` (with its gradient) and `sums`.

    `computes` names the `AttentionSpec.features` that it knows. `refusal(platform, dtype)` tells why it cannot run there, or None.
    """

    run: Callable[..., Attended]
    rows: bool
    computes: frozenset[str]
    refusal: Callable[[str, Any], str | None] = _runs_everywhere


_ALL = frozenset({"sigmoid", "softpick", "softcap", "window", "alibi"})
KERNELS: dict[str, Kernel] = {
    "reference": Kernel(reference, True, _ALL),
    "blockwise": Kernel(blockwise, True, _ALL),
    "fused": Kernel(fused.fused, False, frozenset({"window"}), fused.refusal),
    "splash": Kernel(splash.splash, False, frozenset({"window", "softcap"}), splash.refusal),
}
#: What `auto` stands for on a platform, where the kernel computes what is asked for.
_FASTEST = {"tpu": "splash", "gpu": "fused"}


def resolve_kernel(
    kernel: str,
    dtype: Any = jnp.float32,
    *,
    spec: AttentionSpec = PLAIN,
    platform: str | None = None,
) -> str:
    """The kernel that computes `spec` in a compute dtype: what `auto` stands for, or the one asked for.

    `platform` (cpu, gpu, tpu) defaults to what is compiled for, see `target_platform`. Raises InputError for an unknown kernel and, with
    the reason, for one that cannot run there.
    """
    platform = platform or target_platform()
    if kernel == "auto":
        fastest = _FASTEST.get(platform, "blockwise")
        return "blockwise" if _reason(fastest, platform, dtype, spec) else fastest
    if kernel not in KERNELS:
        raise InputError(
            f"attention kernel {kernel!r} is unknown; expected auto or one of {', '.join(KERNELS)}"
        )
    if reason := _reason(kernel, platform, dtype, spec):
        raise InputError(f"attention kernel {kernel!r} {reason}; use auto, blockwise or reference")
    return kernel


def with_rows(kernel: str, dtype: Any, spec: AttentionSpec) -> str:
    """The kernel, which must give lse with its gradient; `auto` is one that does. ValueError for another."""
    name = resolve_kernel(kernel, dtype, spec=spec)
    if KERNELS[name].rows:
        return name
    if kernel == "auto":
        return "blockwise"
    raise ValueError(
        f"attention kernel {kernel!r} gives no log-sum-exp, which a learned sink needs; use auto, blockwise or reference"
    )


def _reason(kernel: str, platform: str, dtype: Any, spec: AttentionSpec) -> str | None:
    """Why a kernel cannot compute that there, or None."""
    missing = spec.features - KERNELS[kernel].computes
    if missing:
        return f"does not compute attention with {', '.join(sorted(missing))}"
    return KERNELS[kernel].refusal(platform, dtype)


def attend(
    q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, *, kernel: str = "auto", spec: AttentionSpec = PLAIN
) -> Attended:
    """Causal attention, `A v` with the weights A of `spec`, H a multiple of K (query heads share key heads in order).

    Logits, `lse` and `sums` are at least float32 whatever the inputs are;
    `out` has the dtype of `v`. Raises ValueError for an unknown kernel and for one that cannot compute what is asked.
    """
    chosen = KERNELS[resolve_kernel(kernel, q_BxTxHxDh.dtype, spec=spec)]
    slopes_H = spec.slopes()

    def run(q, k, v, slopes):
        return chosen.run(q, k, v, spec, slopes)

    mesh, K = current_mesh(), k_BxSxKxDh.shape[2]
    if mesh is not None:
        batch = mesh.shape["data"] * mesh.shape["fsdp"]
        # a batch of one at initialisation is left to the compiler
        if q_BxTxHxDh.shape[0] % batch == 0 and K % mesh.shape["tensor"] == 0:
            heads, rows = P(BATCH_AXES, None, "tensor"), P(BATCH_AXES, "tensor")
            # None leaves have no spec
            lse = rows if chosen.rows and spec.sigmoid is None else None
            specs: Any = Attended(heads, lse, rows if chosen.rows else None)  # type: ignore[arg-type]
            by_head = None if slopes_H is None else P("tensor")
            run = per_device(run, (heads, heads, heads, by_head), specs)
    return run(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, slopes_H)


def attention_map(
    q_BxTxHxDh, k_BxTxKxDh, lse_BxHxT=None, spec: AttentionSpec = PLAIN, positions_BxT=None
) -> jax.Array:
    """The (B, H, T, T) weights between some positions (default: all of 0 … T−1): those that belong to `lse`, or sigmoids.

    Quadratic: for short prompts.
    """
    B, T, H, _ = q_BxTxHxDh.shape
    K = k_BxTxKxDh.shape[2]
    if positions_BxT is None:
        positions_BxT = jnp.broadcast_to(jnp.arange(T), (B, T))
    rows = split_heads(q_BxTxHxDh, K, spec)
    keys = k_BxTxKxDh.transpose(0, 2, 3, 1)
    slopes_H = spec.slopes()
    slopes_KxG = None if slopes_H is None else slopes_H.reshape(K, H // K)

    def of_key_head(q_GxTxDh, k_DhxT, slopes_G, at_T):
        logits, seen, _ = causal_logits(q_GxTxDh, k_DhxT, at_T, at_T, spec, slopes_G)
        return logits, jnp.broadcast_to(seen, logits.shape)

    of_sequence = jax.vmap(of_key_head, (0, 0, None if slopes_KxG is None else 0, None))
    parts = jax.vmap(of_sequence, (0, 0, None, 0))(rows, keys, slopes_KxG, positions_BxT)
    logits, seen = (x.reshape(B, H, T, T) for x in parts)
    weights = spec.weights(logits, None if lse_BxHxT is None else lse_BxHxT[..., None])
    return jnp.where(seen, weights, 0.0)
