"""How long the values are that tokens offer to attention: the drain of sinks, token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sysout_jax.models.spec import LayerSpec
from sysout_jax.statistics.statistic import Statistic


@dataclass(frozen=True)
class ValueStats:
    """Over N sequences of T tokens in L layers. NaN where a value is not finite."""

    norm: np.ndarray  # (L, N, T) ‖v‖ of the token, mean over key/value heads

    @property
    def over_mean(self) -> np.ndarray:
        """(L, N, T) the norm over the mean of its sequence."""
        finite = np.where(np.isfinite(self.norm), self.norm, np.nan)
        count = np.maximum(np.isfinite(finite).sum(axis=-1, keepdims=True), 1)
        mean = np.nansum(finite, axis=-1, keepdims=True) / count
        return finite / np.where(mean > 0, mean, np.nan)


def _reduce(spec: LayerSpec, taps: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    v_BxTxKxDh = taps["v"].astype(jnp.float32)
    largest = jnp.max(jnp.abs(v_BxTxKxDh), axis=-1, keepdims=True)
    unit = jnp.where(
        (largest > 0) & jnp.isfinite(largest), largest, 1.0
    )  # no square leaves float32
    norm = jnp.linalg.norm(v_BxTxKxDh / unit, axis=-1) * unit[..., 0]
    return {"norm": norm.mean(axis=-1)}


def _join(rows: Sequence[dict[str, Any]], config: Any) -> ValueStats:
    return ValueStats(np.stack([row["norm"] for row in rows]))


STATISTIC = Statistic(
    "values",
    taps=("v",),
    reduce=_reduce,
    row=lambda layer: dict(layer.seen["values"]),
    join=_join,
    columns=lambda stats: {
        "norm": [row[np.isfinite(row)].mean() if np.isfinite(row).any() else np.nan for row in stats.norm],
        "first_token_over_mean": stats.over_mean[:, :, 0].mean(axis=1),
    },
)  # fmt: skip
