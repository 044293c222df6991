"""What a statistic is, as a value. A new one is one file here that ends in `STATISTIC`, and one line in `STATISTICS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from sysout_jax.config import ModelConfig
from sysout_jax.models.spec import LayerSpec

TOP = 16  # largest elements that are kept of every layer


@dataclass(frozen=True)
class Layer:
    """One layer after all sequences went through it."""

    spec: LayerSpec
    params: dict
    tau: float
    seen: Mapping[str, dict[str, Any]]
    """What every statistic's `reduce` gave, by its name: numpy arrays, one row per sequence."""


def nothing(spec: LayerSpec, taps: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The `reduce` of a statistic that reads no activations."""
    return {}


@dataclass(frozen=True)
class Statistic:
    """How one statistic of a streaming pass comes about."""

    name: str
    taps: tuple[str, ...]
    """What of `sysout_jax.TAPS` it reads; a model that lacks one of them in some layer has no such statistic."""
    row: Callable[[Layer], dict[str, Any]]
    """A layer's numbers, on the host."""
    join: Callable[[Sequence[dict[str, Any]], ModelConfig], Any]
    """The rows of all layers to what `Stats` holds under its name."""
    columns: Callable[[Any], dict[str, Any]]
    """What of the joined value goes into a report's JSON: something for every layer."""
    reduce: Callable[[LayerSpec, Mapping[str, jax.Array]], dict[str, jax.Array]] = nothing
    """Taps of a layer to arrays with the sequence as leading axis; pure, on the device, inside the step."""
