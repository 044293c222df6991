"""What the lifecycle's figures follow: the outliers, or the strongest candidates where nothing reached τ."""

from __future__ import annotations

import numpy as np

from sysout_jax.analyses.lifecycle.measure import outlier_elements
from sysout_jax.analyses.lifecycle.results import Lifecycle
from sysout_jax.analyses.lifecycle.trace import Trace
from sysout_jax.words import number


def followed(report: Lifecycle) -> Lifecycle | None:
    """The lifecycle that was traced: the report itself, or its candidate where nothing reached τ; None without either."""
    life = report if report.found else report.candidate
    return life if life is not None and life.trace is not None and life.birth.events else None


def traced(report: Lifecycle) -> tuple[Lifecycle, Trace]:
    """`followed` and its trace; ValueError where there is nothing to follow."""
    life = followed(report)
    if life is None or life.trace is None:
        raise ValueError(
            f"{report.model}: no outlier and no candidate was traced; this figure does not apply"
        )
    return life, life.trace


def subtitle(report: Lifecycle) -> str:
    """Says so where what is drawn is not an outlier."""
    if report.found:
        return ""
    return (
        f"no outlier at τ = {report.tau:g}; strongest candidate, ratio {number(report.largest_h.ratio)}, "
        "shown for orientation"
    )


def called(report: Lifecycle) -> str:
    """How sentences call the followed elements."""
    return "outlier" if report.found else "candidate"


def holders(life: Lifecycle, trace: Trace, dim: int) -> np.ndarray:
    """(E, M) the followed tokens at which the followed dim of this index is over τ (of a candidate: its level) after some layer."""
    _, after_LxExMxP = outlier_elements(life.stats, trace, life.tau)
    over = np.any(after_LxExMxP[..., dim], axis=0)
    return over if over.any() else trace.targets.valid


def element_mean(values_ExM: np.ndarray, chosen_ExM: np.ndarray) -> float:
    """Mean over the chosen tokens, without NaN."""
    chosen = values_ExM[chosen_ExM]
    chosen = chosen[np.isfinite(chosen)]
    return float(chosen.mean()) if len(chosen) else float("nan")
