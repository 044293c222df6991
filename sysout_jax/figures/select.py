"""What a figure shows of a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Protocol

import numpy as np

from sysout_jax.statistics.collect import Stats


class Measured(Protocol):
    """A report that holds the statistics of all layers."""

    @property
    def tau(self) -> float: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def stats(self) -> Stats: ...


def outlier_layers(report: Measured, place: str) -> np.ndarray:
    """Layers in which `h` or `x_down` holds an activation outlier at the report's τ."""
    return np.flatnonzero(getattr(report.stats, place).ratio > report.tau)


def short_names(models: Sequence[str]) -> list[str]:
    """What models are called side by side: the last part of their paths, or all of it where that is not unique."""
    last = [PurePath(model).name or model for model in models]
    return last if len(set(last)) == len(last) else list(models)
