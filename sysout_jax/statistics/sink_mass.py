"""How much attention goes to no token of the text: to extra keys, or to a logit without a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sysout_jax.models.spec import LayerSpec
from sysout_jax.statistics.statistic import Layer, Statistic


@dataclass(frozen=True)
class SinkMassStats:
    """Of L layers with H heads; the tap `sink_mass`."""

    heads: np.ndarray  # (L, H) g, mean over sequences and queries


def _reduce(spec: LayerSpec, taps: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return {"heads": taps["sink_mass"].astype(jnp.float32).mean(axis=-1)}


def _row(layer: Layer) -> dict[str, Any]:
    return {"heads": layer.seen["sink_mass"]["heads"].mean(axis=0, dtype=np.float64)}


def _join(rows: Sequence[dict[str, Any]], config: Any) -> SinkMassStats:
    return SinkMassStats(np.stack([row["heads"] for row in rows]))


STATISTIC = Statistic(
    "sink_mass",
    taps=("sink_mass",),
    reduce=_reduce,
    row=_row,
    join=_join,
    columns=lambda stats: {"mean": stats.heads.mean(axis=1), "heads": stats.heads},
)
