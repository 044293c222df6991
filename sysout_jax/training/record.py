"""What a training run recorded, as arrays over steps (paper Figure 12 and Appendix C)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.checkpoint import locate
from sysout_jax.training.metrics import METRICS, read_metrics


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
    found = locate(Path(checkpoint).expanduser())
    if found is None or not (found.home / METRICS).is_file():
        return None
    return _record(read_metrics(found.home))


def _record(rows: list[dict[str, Any]]) -> Record:
    def curve(name: str) -> tuple[np.ndarray, np.ndarray]:
        found = [(row["step"], row[name]) for row in rows if name in row]
        return np.array([s for s, _ in found], int), np.array([v for _, v in found], float)

    looks = [(row["step"], row["monitor"]) for row in rows if "monitor" in row]
    names = sorted(set.intersection(*(set(seen) for _, seen in looks))) if looks else []
    return Record(
        *curve("loss"),
        *curve("val_loss"),
        monitor_steps=np.array([step for step, _ in looks], int),
        monitor={n: np.array([seen[n] for _, seen in looks], float) for n in names},
    )
