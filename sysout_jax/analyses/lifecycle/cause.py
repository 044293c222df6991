"""Do the birth weights cause the outliers? Set them, or the whole columns that they stand in, to zero, beside as many random ones.

A column is all that its channel writes. An entry alone leaves what the channel writes to other dims, which may do more harm than good.
"""

from __future__ import annotations

import numpy as np

from sysout_jax.analyses.lifecycle.results import Birth, Cause, Effect
from sysout_jax.interventions.effects import Measured, Unedited
from sysout_jax.interventions.weights import (
    Entries,
    edit_down_weights,
    random_weights,
    whole_columns,
    zero,
)
from sysout_jax.language_model import LanguageModel
from sysout_jax.outliers.definitions import entering, is_sink
from sysout_jax.statistics.collect import Stats


def find_cause(
    lm: LanguageModel,
    stats: Stats,
    birth: Birth,
    tau: float,
    seed: int = 0,
) -> Cause | None:
    """Five more passes over all sequences, four of them from the first birth on. None where no channel carries a birth."""
    born = birth_weights(birth)
    if not born:
        return None
    random = random_weights(born, lm.config.layer(0).mlp.channels, np.random.default_rng(seed))
    marked = entering(stats.h.outlier_tokens(tau))
    unedited = Unedited(lm, stats.tokens, marked, tau, [min(born)])
    sinks = sink_heads(unedited.measured.mass, unedited.measured.even, birth)

    def effect(measured: Measured) -> Effect:
        return Effect(
            outliers=int(measured.outliers.sum()),
            mass=float(measured.mass[sinks].mean()) if sinks.any() else float("nan"),
            perplexity=measured.perplexity,
            ratio=measured.ratio,
            nonfinite=measured.nonfinite.h.total,
        )

    def zeroed(entries: Entries) -> Effect:
        return effect(unedited.edited(edit_down_weights(lm, entries, zero)))

    return Cause(
        heads=int(sinks.sum()),
        weights=sum(len(channels) * len(dims) for channels, dims in born.values()),
        baseline=effect(unedited.measured),
        zeroed=zeroed(born),
        control=zeroed(random),
        columns=zeroed(whole_columns(born, lm.config.d_model)),
        column_control=zeroed(whole_columns(random, lm.config.d_model)),
    )


def birth_weights(birth: Birth) -> Entries:
    """W_down[d*, c*] of every birth that channels carry."""
    return {
        event.layer: (np.array([c.index for c in event.channels]), np.array(event.dims))
        for event in birth.events
        if event.channels
    }


def sink_heads(mass_LxH: np.ndarray, even_L: np.ndarray, birth: Birth) -> np.ndarray:
    """(L, H) bool: heads after the first birth for which the outlier tokens are sinks."""
    sinks = is_sink(mass_LxH, even_L[:, None])
    sinks[: birth.events[0].layer + 1] = False
    return sinks
