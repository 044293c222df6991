"""What layers write to the large elements of h, of all sequences, at every token that holds one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np

from sysout_jax.config import ModelConfig
from sysout_jax.engine import Observe
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


class Writes:
    """Follows the elements of h that exceed `level` times the mean of their sequence in some layer: an `Observer` of one pass.

    `stats` are those of h on the tokens of the pass. Of the dims at most `MAX_DIMS` are followed, the strongest first.
    """

    def __init__(self, config: ModelConfig, stats: ActivationStats, level: float):
        self.level, self._config, self._stats = level, config, stats
        flagged = np.flatnonzero(stats.outlier_channels(level).any(axis=0))
        order = np.argsort(-stats.channel_ratio.max(axis=0)[flagged], kind="stable")
        self._dims = flagged[order[:MAX_DIMS]] if 0 < level < np.inf else flagged[:0]
        self.dims_left_out = max(len(flagged) - MAX_DIMS, 0)
        marked_NxT = np.asarray(stats.outlier_tokens(level).any(axis=0))
        self._at = np.argwhere(marked_NxT)  # (A, 2)
        wanted = np.resize(self._dims, MAX_DIMS).astype(np.int32)
        self._extra = {
            "dims": np.broadcast_to(wanted, (len(marked_NxT), MAX_DIMS)),
            "marked": marked_NxT,
        }
        self._parts: list[np.ndarray] = []  # (A, 3, P) for each layer
        self._channels: list[Carried] = []

    @property
    def nothing(self) -> bool:
        """Whether no element is followed; a pass would be in vain."""
        return not len(self._dims)

    def observe(self, layer: int) -> Observe:
        return _observe

    def extra(self, layer: int) -> Any:
        # magnitudes of the residual stream before a layer are compared with the mean after it too
        mean_N = self._stats.sequence_mean[layer].astype(np.float32)
        return self._extra | {"least": self.level * mean_N}

    def take(self, layer: int, params: dict, seen: dict[str, np.ndarray]) -> None:
        P = len(self._dims)
        self._parts.append(finite_or(seen["parts"][self._at[:, 0], self._at[:, 1]])[..., :P])
        kernel = np.asarray(self._config.layer(layer).matrix("down").of(params))
        self._channels.append(_strongest(kernel, self._dims, seen) if "met" in seen else {})

    @cached_property
    def followed(self) -> Followed:
        """After the pass."""
        x_in, down, h = np.stack(self._parts, axis=1).astype(np.float64).transpose(2, 1, 0, 3)
        mean_LxA = self._stats.sequence_mean[:, self._at[:, 0]]
        over_AxP = (np.abs(h) > self.level * mean_LxA[..., None]).any(axis=0)
        token, dim = np.nonzero(over_AxP)
        return Followed(
            places=np.column_stack([self._at[token], self._dims[dim]]).astype(int),
            x_in=x_in[:, token, dim],
            down=down[:, token, dim],
            h=h[:, token, dim],
            mean=mean_LxA[:, token],
            channels=self._channels,
        )


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
