"""Do the writers of a birth cause the outliers? Take them away by every edit there is, together and alone, beside controls.

A column is all that its channel writes. An entry alone leaves what the channel writes to other dims, which may do more harm than good; and
writers that mask each other do less alone than together.
"""

from __future__ import annotations

import numpy as np

from sysout_jax.analyses.lifecycle.results import Birth, BirthWriter, Cause, Edit, Effect
from sysout_jax.interventions.effects import Measured, Unedited
from sysout_jax.interventions.weights import (
    CONTROLLED,
    CONTROLS,
    EDITS,
    Entries,
    control,
    edited,
    touched,
)
from sysout_jax.language_model import LanguageModel
from sysout_jax.outliers.definitions import TAUS, is_sink
from sysout_jax.statistics.collect import Stats

# every edit is a pass; so.census makes all of them, for the strongest writers of the whole model
MAX_SINGLES = 2  # strongest writers whose element is also zeroed alone
BESIDE_CONTROLS = ("element", "column")


def find_cause(
    lm: LanguageModel,
    stats: Stats,
    birth: Birth,
    tau: float,
    unedited: Unedited,
    seed: int = 0,
) -> Cause | None:
    """An edit is one pass over all sequences from the first birth on, where `unedited` starts. None where no channel carries a birth."""
    born = birth_weights(birth)
    if not born:
        return None
    first = min(born)
    taken = np.flatnonzero(stats.h.outlier_channels(tau).any(axis=0))
    writers = birth_writers(birth)
    singles = writers[:MAX_SINGLES] if len(writers) > 1 else ()
    sinks = sink_heads(unedited.measured.mass, unedited.measured.even, birth)

    def effect(measured: Measured) -> Effect:
        return Effect(
            outliers=int(measured.outliers[first:].sum()),
            flags={
                f"{t:g}": int(n) for t, n in zip(TAUS, measured.flags[first:].sum(0), strict=True)
            },
            ratio=float(measured.ratios[first:].max()),
            mass=float(measured.mass[sinks].mean()) if sinks.any() else float("nan"),
            perplexity=measured.perplexity,
            ratio_per_layer=measured.ratios,
            mass_per_layer=measured.mass.mean(axis=1),
            nonfinite=measured.nonfinite.h.total,
        )

    def under(changed: LanguageModel) -> Effect:
        return effect(unedited.edited(changed))

    def beside(edit: str, kind: str) -> Effect:
        rng = np.random.default_rng([seed, CONTROLLED.index(edit), list(CONTROLS).index(kind)])
        return under(control(lm, born, edit, kind, rng, taken))

    def edit_of(edit: str) -> Edit:
        alone = [_entries(writer) for writer in singles] if edit == "element" else []
        return Edit(
            weights=sum(len(cs) * len(ds) for cs, ds in touched(lm, born, edit).values()),
            effect=under(edited(lm, born, edit)),
            controls={kind: beside(edit, kind) for kind in CONTROLS}
            if edit in BESIDE_CONTROLS
            else {},
            alone=tuple(under(edited(lm, entries, edit)) for entries in alone),
        )

    return Cause(
        heads=int(sinks.sum()),
        writers=writers,
        singles=singles,
        baseline=effect(unedited.measured),
        edits={edit: edit_of(edit) for edit in EDITS},
        first=first,
    )


def birth_weights(birth: Birth) -> Entries:
    """W_down[d*, c*] of every birth that channels carry."""
    return {
        event.layer: (np.array([c.index for c in event.channels]), np.array(event.dims))
        for event in birth.events
        if event.channels
    }


def birth_writers(birth: Birth) -> tuple[BirthWriter, ...]:
    """The channels of all births, those that write most first."""
    writes = [
        (channel.share * max(map(abs, event.values)), BirthWriter(event.layer, channel.index, channel.label, event.dims))
        for event in birth.events
        for channel in event.channels
    ]  # fmt: skip
    return tuple(writer for _, writer in sorted(writes, key=lambda write: -write[0]))


def _entries(writer: BirthWriter) -> Entries:
    return {writer.layer: (np.array([writer.channel]), np.array(writer.dims))}


def sink_heads(mass_LxH: np.ndarray, even_L: np.ndarray, birth: Birth) -> np.ndarray:
    """(L, H) bool: heads after the first birth for which the outlier tokens are sinks."""
    sinks = is_sink(mass_LxH, even_L[:, None])
    sinks[: birth.events[0].layer + 1] = False
    return sinks
