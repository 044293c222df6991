"""What layers write to the large elements of h: one pass over all sequences, at every token that holds one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from sysout_jax.engine import Stream
from sysout_jax.language_model import LanguageModel
from sysout_jax.nonfinite import finite_or
from sysout_jax.outliers import definitions as rules
from sysout_jax.statistics.activations import ActivationStats

MAX_DIMS = 32  # strongest dims that are followed; one shape, hence one compilation
KEPT_CHANNELS = 8  # strongest channels named per layer and dim
LEAST_SHARE = 0.02  # weaker channels are not named

#: (births or deaths, dim) → channels as (index, share of what the MLP writes to its elements)
Carried = Mapping[tuple[str, int], tuple[tuple[int, float], ...]]


@dataclass(frozen=True)
class Followed:
    """K elements of h through all layers."""

    places: np.ndarray  # (K, 3) sequence, token, dim
    x_in: np.ndarray  # (L, K) before the layer
    down: np.ndarray  # (L, K) added by the MLP
    h: np.ndarray  # (L, K) after it
    mean: np.ndarray  # (L, K) mean |h| of its sequence after the layer
    channels: Sequence[Carried]  # per layer


def follow_writes(
    lm: LanguageModel, tokens: np.ndarray, stats: ActivationStats, dims: np.ndarray, level: float
) -> Followed:
    """The elements of `dims` (P,), at most `MAX_DIMS`, that exceed `level` times the mean of their sequence in some layer.

    `stats` are those of h on `tokens` (N, T).
    """
    at = np.argwhere(stats.outlier_tokens(level).any(axis=0))  # (A, 2)
    N = len(tokens)
    wanted = np.broadcast_to(np.resize(dims, MAX_DIMS).astype(np.int32), (N, MAX_DIMS))
    marked = np.zeros(tokens.shape, bool)
    marked[at[:, 0], at[:, 1]] = True
    # magnitudes of the residual stream before a layer are compared with the mean after it too
    extra = [
        {"dims": wanted, "marked": marked, "least": level * mean_N}
        for mean_N in stats.sequence_mean.astype(np.float32)
    ]
    x_in, down, h, channels = [], [], [], []
    for layer, params, seen in Stream(lm, tokens).layers(_observe, extra):
        parts = finite_or(seen["parts"][at[:, 0], at[:, 1]])[..., : len(dims)]  # (A, 3, P)
        x_in.append(parts[:, 0])
        down.append(parts[:, 1])
        h.append(parts[:, 2])
        kernel = np.asarray(lm.config.layer(layer).matrix("down").of(params))
        channels.append(_strongest(kernel, dims, seen) if "met" in seen else {})
    stacked = [np.stack(part).astype(np.float64) for part in (x_in, down, h)]
    mean_LxA = stats.sequence_mean[:, at[:, 0]]
    over = (np.abs(stacked[2]) > level * mean_LxA[..., None]).any(axis=0)  # (A, P)
    token, dim = np.nonzero(over)
    x_in_LxK, down_LxK, h_LxK = (part[:, token, dim] for part in stacked)
    places = np.column_stack([at[token], dims[dim]]).astype(int)
    return Followed(places, x_in_LxK, down_LxK, h_LxK, mean_LxA[:, token], channels)


def _observe(x_in, taps, extra):
    """At the followed dims of all tokens what comes in, what the MLP adds and what goes out; and which channels add it."""

    def at_dims(x_BxTxD):
        index = extra["dims"][:, None, :]
        return jnp.take_along_axis(x_BxTxD.astype(jnp.float32), index, axis=2)

    before, down, after = at_dims(x_in), at_dims(taps["down"]), at_dims(taps["h"])
    seen = {"parts": jnp.stack([before, down, after], axis=2)}
    if "expert" in taps:
        return seen
    # births and deaths apart: elements that are large before or after, and that the MLP raises or lowers
    largest = jnp.maximum(jnp.abs(before), jnp.abs(after))
    large = extra["marked"][..., None] & (largest > extra["least"][:, None, None])
    large &= jnp.abs(down) > rules.WRITE_SHARE * largest
    risen = jnp.abs(after) > jnp.abs(before)
    chosen = jnp.stack([large & risen, large & ~risen], axis=2)  # (B, T, 2, P)
    x_down = taps["x_down"].astype(jnp.float32)
    x_down = jnp.where(jnp.isfinite(x_down), x_down, 0.0)
    weight = jnp.where(chosen, jnp.sign(down)[:, :, None], 0.0)
    if "down_gain" in taps:
        weight *= at_dims(taps["down_gain"])[:, :, None]
    total = jnp.where(chosen, jnp.abs(down)[:, :, None], 0.0).sum(1)
    return seen | {"met": jnp.einsum("btf,btkp->bkpf", x_down, weight), "total": total}


def _strongest(kernel_FxD: np.ndarray, dims: np.ndarray, seen: dict[str, np.ndarray]) -> Carried:
    """Of the births and of the deaths of each dim."""
    met_2xPxF, total_2xP = seen["met"].sum(0), seen["total"].sum(0)
    carriers = {}
    for side, p in np.argwhere(total_2xP[:, : len(dims)] > 0):
        column_F = finite_or(kernel_FxD[:, dims[p]].astype(np.float32))
        share_F = met_2xPxF[side, p] * column_F / total_2xP[side, p]
        order = np.argsort(-share_F, kind="stable")[:KEPT_CHANNELS]
        carried = np.cumsum(share_F[order])
        enough = int(np.searchsorted(carried, rules.MAIN_SHARE)) + 1
        carriers[("births", "deaths")[side], int(dims[p])] = tuple(
            (int(c), float(share_F[c])) for c in order[:enough] if share_F[c] >= LEAST_SHARE
        )
    return carriers
