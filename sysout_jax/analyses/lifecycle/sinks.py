"""How attention treats some tokens, outliers or those of a wave: sums per sequence on the device, and what all sequences together say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
import numpy as np

from sysout_jax.attention import AttentionSpec, attend
from sysout_jax.nonfinite import finite_or
from sysout_jax.outliers.definitions import is_sink, main_part, over_seen_keys, value_drain

#: What `attention_sums` gives and `summed` takes.
SUMMED = frozenset(
    "mass even queries update loudness others qk v_marked v_plain vv_marked vv_plain marked plain".split()
)

#: What `summed` gives of a layer: `Trace` says what each is.
TREATED = ("mass", "even", "drain", "output_drain", "update", "loudness", "qk")


@dataclass(frozen=True)
class SinkHead:
    """A head for which the tokens are sinks."""

    layer: int
    head: int
    mass: float  # share of attention on the tokens, over queries that can see one
    even: float  # what even attention would give them
    dims: tuple[int, ...]  # dims of q and k that carry the logit towards them
    dims_share: float  # of the logit difference; over 1 where the other dims pull the other way
    drain: float  # ‖v‖ of the tokens over the others'
    output_drain: float  # the same of ‖v W_O‖, root mean squares
    update: float  # ‖what the tokens add‖ over ‖head output‖, other queries: a ratio of lengths, which need not sum to 1
    loudness: float  # ‖head output‖ over its mean over the heads of the layer


def sink_heads(layers: Sequence[int], treated: Mapping[str, np.ndarray]) -> tuple[SinkHead, ...]:
    """Those of S layers; `treated` holds what `summed` gives of each, (S, …)."""
    heads = []
    mass_SxH, drain_SxK = treated["mass"], treated["drain"]
    for at, head in np.argwhere(is_sink(mass_SxH, treated["even"][:, None])):
        parts = finite_or(treated["qk"][at, head])
        dims, total = main_part(parts), parts.sum()
        heads.append(
            SinkHead(
                layer=int(layers[at]),
                head=int(head),
                dims=tuple(int(d) for d in np.sort(dims)),
                dims_share=float(parts[dims].sum() / total) if total > 0 else float("nan"),
                even=float(treated["even"][at]),
                drain=float(drain_SxK[at, head * drain_SxK.shape[1] // mass_SxH.shape[1]]),
                **{
                    name: float(treated[name][at, head])
                    for name in ("mass", "output_drain", "update", "loudness")
                },
            )
        )
    return tuple(heads)


def attention_sums(taps, mask_BxT, spec: AttentionSpec):
    """How much attention the tokens of a mask get, what their values add, and which dims of q and k make the difference; sums per sequence."""
    q_BxTxHxDh, k_BxTxKxDh, v_BxTxKxDh = (
        taps[name].astype(jnp.float32) for name in ("q", "k", "v")
    )
    K, Dh = k_BxTxKxDh.shape[2:]
    H = q_BxTxHxDh.shape[2]
    mask = mask_BxT.astype(jnp.float32)
    # the same attention over values that are zero for all other tokens, with one more channel that counts the tokens of the mask
    ones = jnp.ones((*v_BxTxKxDh.shape[:3], 1), jnp.float32)
    marked = jnp.concatenate([v_BxTxKxDh, ones], -1) * mask[:, :, None, None]
    mixed = attend(q_BxTxHxDh, k_BxTxKxDh, marked, kernel="blockwise", spec=spec).out

    seen = partial(over_seen_keys, window=spec.window)
    marked_BxT, others_BxT = seen(mask), seen(1.0 - mask)
    sees = marked_BxT > 0
    others = sees & ~mask_BxT
    added = jnp.linalg.norm(mixed[..., :Dh], axis=-1)
    if "attn_scale" in taps:
        added *= taps["attn_scale"].astype(jnp.float32).transpose(0, 2, 1)
    whole = jnp.linalg.norm(taps["attn_heads"].astype(jnp.float32), axis=-1)
    share = added / jnp.maximum(whole, 1e-30)

    def key(weight_BxT, count_BxT):  # mean of the keys of a kind that each query sees
        total = seen(k_BxTxKxDh * weight_BxT[:, :, None, None])
        return total / jnp.maximum(count_BxT, 1.0)[:, :, None, None]

    difference = key(mask, marked_BxT) - key(1.0 - mask, others_BxT)
    query = (q_BxTxHxDh * others[:, :, None, None]).reshape(*mask.shape, K, H // K, Dh)
    norm = jnp.linalg.norm(v_BxTxKxDh, axis=-1)
    outside = 1.0 - mask

    def moment(weight_BxT):
        return jnp.einsum("btkd,btke,bt->bkde", v_BxTxKxDh, v_BxTxKxDh, weight_BxT)

    return {
        "mass": (mixed[..., Dh] * sees[:, :, None]).sum(1),
        "even": (marked_BxT / (marked_BxT + others_BxT) * sees).sum(1),
        "queries": sees.sum(1),
        "update": (share * others[:, :, None]).sum(1),
        "loudness": (whole * others[:, :, None]).sum(1),
        "others": others.sum(1),
        "qk": jnp.einsum("btkgd,btkd->bkgd", query, difference).reshape(-1, H, Dh)
        * spec.scale_of(Dh),
        "v_marked": (norm * mask[:, :, None]).sum(1),
        "v_plain": (norm * outside[:, :, None]).sum(1),
        "vv_marked": moment(mask),
        "vv_plain": moment(outside),
        "marked": mask.sum(1),
        "plain": outside.sum(1),
    }


def summed(
    seen: dict[str, np.ndarray], holds_N: np.ndarray, kernel_IxD: np.ndarray
) -> dict[str, np.ndarray]:
    """What `attention_sums` gives, over all sequences; values are compared in those that hold a token of the mask in this layer."""
    sums = {name: finite_or(seen[name], np.nan) for name in SUMMED}
    queries, others = (max(sums[name].sum(), 1) for name in ("queries", "others"))
    mass = sums["mass"].sum(0) / queries

    def mean(name: str, kind: str) -> np.ndarray:
        return sums[f"{name}_{kind}"][holds_N].sum(0) / max(sums[kind][holds_N].sum(), 1)

    H, (K, Dh) = len(mass), sums["vv_marked"].shape[1:3]
    kernel_HxDhxD = kernel_IxD.astype(np.float32).reshape(H, Dh, -1)
    gram_HxDhxDh = kernel_HxDhxD @ kernel_HxDhxD.swapaxes(1, 2)

    def output_norm(kind: str) -> np.ndarray:  # root mean square of ‖v W_O‖, per head
        moment = np.repeat(mean("vv", kind), H // K, axis=0)
        return np.sqrt(np.maximum((gram_HxDhxDh * moment).sum((1, 2)), 0.0))

    loudness = sums["loudness"].sum(0) / others
    return {
        "mass": mass,
        "even": sums["even"].sum() / queries,
        "drain": value_drain(mean("v", "marked"), mean("v", "plain")),
        "output_drain": value_drain(output_norm("marked"), output_norm("plain")),
        "update": sums["update"].sum(0) / others,
        "loudness": loudness / max(loudness.mean(), 1e-30),
        "qk": sums["qk"].sum(0) / others,
    }
