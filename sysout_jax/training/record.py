"""What a training run recorded, as arrays over steps (paper Figure 12 and Appendix C)."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.checkpoints.checkpoint import home_of
from sysout_jax.training.metrics_file import METRICS, read_metrics


@dataclass(frozen=True)
class Record:
    """One run. Losses are in nats; `monitor` has what `monitor_layer` names, and `grad_norm_k`, `_v`, `_down`."""

    steps: np.ndarray  # (S,) of the training losses
    loss: np.ndarray  # (S,)
    val_steps: np.ndarray  # (E,)
    val_loss: np.ndarray  # (E,)
    monitor_steps: np.ndarray  # (M,)
    monitor: dict[str, np.ndarray]  # name -> (M, L)


def training_record(checkpoint: str | Path) -> Record | None:
    """The record of the run that a checkpoint (a run's directory, or one step in it) belongs to; None where there is none."""
    home = home_of(Path(os.path.expanduser(checkpoint)))
    if home is None or not (home / METRICS).is_file():
        return None
    return _record(read_metrics(home))


def _record(rows: list[dict[str, Any]]) -> Record:
    def curve(name: str) -> tuple[np.ndarray, np.ndarray]:
        points = [(row["step"], row[name]) for row in rows if _is_number(row.get(name))]
        return np.array([s for s, _ in points], int), np.array([v for _, v in points], float)

    looks = [(row["step"], row["monitor"]) for row in rows if _is_look(row.get("monitor"))]
    layers = Counter(_layers(seen) for _, seen in looks).most_common(1)
    looks = [(step, seen) for step, seen in looks if _layers(seen) == layers[0][0]]
    names = sorted(set.intersection(*(set(seen) for _, seen in looks))) if looks else []
    return Record(
        *curve("loss"),
        *curve("val_loss"),
        monitor_steps=np.array([step for step, _ in looks], int),
        monitor={n: np.array([seen[n] for _, seen in looks], float) for n in names},
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_look(seen: Any) -> bool:
    """Whether this is what the monitor writes: a number per layer under each name. A damaged line may be JSON and still not that."""
    return (
        isinstance(seen, dict)
        and bool(seen)
        and all(isinstance(v, list) and all(map(_is_number, v)) for v in seen.values())
        and len({len(v) for v in seen.values()}) == 1
    )


def _layers(seen: dict[str, list[float]]) -> int:
    return len(next(iter(seen.values())))
