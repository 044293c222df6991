"""Does the birth weight cause the outliers? Set it to zero and compare, beside as many random weights of the same rows."""

from __future__ import annotations

import numpy as np

from sysout_jax.analyses.lifecycle.results import Birth, Cause, Effect
from sysout_jax.analyses.lifecycle.trace import Trace
from sysout_jax.interventions.effects import measure
from sysout_jax.interventions.weights import Entries, edit_down_weights, random_weights, zero
from sysout_jax.language_model import LanguageModel
from sysout_jax.outliers.definitions import is_sink
from sysout_jax.perplexity import of_mean_nll
from sysout_jax.statistics.collect import Stats


def find_cause(
    lm: LanguageModel,
    stats: Stats,
    path: Trace,
    birth: Birth,
    tau: float,
    seed: int = 0,
) -> Cause | None:
    """Two more passes over the traced sequences. None where no channel carries a birth."""
    born = birth_weights(birth)
    if not born:
        return None
    random = random_weights(born, lm.config.layer(0).mlp.channels, np.random.default_rng(seed))
    sinks = sink_heads(path.mass, birth)
    alive = stats.h.outlier_tokens(tau)[:, path.targets.sequences]
    baseline = Effect(
        outliers=int(alive.sum()),
        mass=float(path.mass[sinks].mean()) if sinks.any() else float("nan"),
        perplexity=of_mean_nll(np.mean(path.nll, dtype=np.float64))
        if path.nll.size
        else float("nan"),
        nonfinite=path.nonfinite.h.total,
    )

    def zeroed(entries: Entries) -> Effect:
        edited = edit_down_weights(lm, entries, zero)
        tokens = stats.tokens[path.targets.sequences]
        found = measure(edited, tokens, path.targets.mask, tau)
        mass = float(found.mass[sinks].mean()) if sinks.any() else float("nan")
        outliers, nonfinite = int(found.outliers.sum()), found.nonfinite.h.total
        return Effect(outliers, mass, found.perplexity, nonfinite)

    return Cause(
        weights=sum(len(channels) * len(dims) for channels, dims in born.values()),
        baseline=baseline,
        zeroed=zeroed(born),
        control=zeroed(random),
    )


def birth_weights(birth: Birth) -> Entries:
    """W_down[d*, c*] of every birth that channels carry."""
    return {
        event.layer: (np.array([c.index for c in event.channels]), np.array(event.dims))
        for event in birth.events
        if event.channels
    }


def sink_heads(mass_LxH: np.ndarray, birth: Birth) -> np.ndarray:
    """(L, H) bool: heads after the first birth for which the outlier tokens are sinks."""
    sinks = is_sink(mass_LxH)
    sinks[: birth.events[0].layer + 1] = False
    return sinks
