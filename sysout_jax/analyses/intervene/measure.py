"""`so.intervene`: what happens without the outliers. Set them to zero, to their mean or to resampled values, beside random controls.

Edited are elements of h in the output of the birth layers or of all layers, the birth weights W_down[d*, c*], their whole columns or rows, the
outputs of sink heads, or the value vectors of the sinks.
Massive activations set to zero or to their mean are from Sun et al. 2024; nothing about the outcome is assumed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from sysout_jax.analyses.intervene.runs import USUAL_PLACES, WHAT, Bench, Run, plan, possible_runs
from sysout_jax.analyses.lifecycle.measure import lifecycle
from sysout_jax.analyses.lifecycle.results import Lifecycle
from sysout_jax.calls import check_arguments, check_kind, check_same
from sysout_jax.data.text import Windows
from sysout_jax.errors import InputError
from sysout_jax.interventions.effects import Measured
from sysout_jax.language_model import LanguageModel
from sysout_jax.nonfinite import Nonfinite
from sysout_jax.numerics.intervals import Interval, bootstrap_weights, interval
from sysout_jax.outliers.definitions import TAU
from sysout_jax.perplexity import Protocol, protocol_of
from sysout_jax.printable import Told
from sysout_jax.storage.serialise import plain


@dataclass(frozen=True)
class Outcome:
    """The model under one kind of edit, over its seeds."""

    where: str
    what: str
    target: str
    edited: int  # elements summed over layers, or weights; mean over seeds
    outliers: Interval  # (layer, sequence, token) triples that hold an outlier
    outliers_per_layer: np.ndarray  # (L,)
    mass: Interval  # attention on the original outlier tokens that enter the layer, mean over sink heads; NaN without
    mass_per_sink: np.ndarray  # one per sink head
    mass_later: Interval  # the same, mean over all heads after the first birth
    perplexity: Interval
    ratio: Interval  # perplexity over that of the unedited model, sequences paired
    nonfinite: int  # elements of h that are NaN or inf, all layers; most of any seed


@dataclass(frozen=True)
class Interventions(Told):
    """All outcomes beside the unedited model. Layers, heads and dims are 0-based."""

    model: str
    tau: float
    level: float  # what counts as outlier: τ, or where nothing reaches it a lower one that the strongest elements reach
    found: bool  # outliers at τ
    largest: float  # largest |h| over its sequence's mean
    num_layers: int
    num_sequences: int
    length: int
    birth_layers: tuple[int, ...]
    dims: tuple[int, ...]  # in which elements are edited
    dims_left_out: int  # weaker dims with outliers that are not
    elements: int  # distinct (sequence, token, dim)
    tokens: int  # distinct (sequence, token)
    sinks: tuple[tuple[int, int], ...]  # (layer, head)
    num_seeds: int
    protocol: Protocol  # of every perplexity
    baseline: Outcome
    outcomes: tuple[Outcome, ...]
    notes: tuple[str, ...]
    nonfinite: Nonfinite  # of the unedited model

    def to_dict(self) -> dict:
        """JSON-ready."""
        return plain(self)


def intervene(
    lm: LanguageModel,
    tokens,
    tau: float = TAU,
    *,
    what: Sequence[str] = tuple(WHAT),
    where: Sequence[str] = USUAL_PLACES,
    seeds: int = 5,
    report: Lifecycle | None = None,
    seed: int = 0,
) -> Interventions:
    """Edit the outliers that the lifecycle of `tokens` (N, T) finds and measure all sequences again, once per `plan` entry.

    `report` is `lifecycle` on the same tokens and τ when it is at hand. Where nothing reaches τ its candidates are edited.
    `seed` starts all random draws. Raises InputError where there is neither outlier nor candidate.
    """
    check_arguments(lm, tau=tau, seeds=seeds, seed=seed)
    check_kind("report", report, Lifecycle)
    runs = plan(what, where, seeds)
    lm = lm.reading_once()
    if report is None:
        report = lifecycle(lm, tokens, tau, cause=False)
    else:
        check_same("report", report.stats.tokens, report.tau, lm.check_tokens(tokens), tau)
    life = report if report.found else report.candidate
    if life is None or life.trace is None or not life.birth.events:
        why = (
            "all of h is NaN or inf"
            if report.nonfinite.everything
            else f"no activation is larger than others (largest |h| is {report.largest_h.ratio:g} times the mean)"
        )
        raise InputError(
            f"{report.model}: {why}, so there is nothing to intervene on; give a model with finite weights and a text of some tokens"
        )
    bench = Bench(lm, life, seed)
    runs, notes = possible_runs(bench, runs)
    results: dict[Run, tuple[int, Measured]] = {}
    donated = bench.donated(runs)
    for run in runs:
        results[run] = bench.run(run, donated)
    sinks = bench.sinks
    outcome = partial(_outcome, bench.baseline, sinks, life.birth.events[0].layer)
    kinds = dict.fromkeys((run.where, run.what, run.target) for run in runs)
    return Interventions(
        model=report.model,
        tau=report.tau,
        level=life.tau,
        found=report.found,
        largest=report.largest_h.ratio,
        num_layers=report.num_layers,
        num_sequences=report.num_sequences,
        length=report.length,
        birth_layers=life.birth.layers,
        dims=tuple(int(d) for d in bench.dims),
        dims_left_out=len(bench.flagged) - len(bench.dims),
        elements=len(bench.outliers.places),
        tokens=len(np.unique(bench.outliers.places[:, :2], axis=0)),
        sinks=tuple((int(layer), int(head)) for layer, head in np.argwhere(sinks)),
        num_seeds=seeds,
        protocol=protocol_of(dataclasses.replace(Windows.of(tokens), tokens=bench.tokens)),
        baseline=outcome(("none", "none", "none"), [(0, bench.baseline)]),
        outcomes=tuple(
            outcome(kind, [r for run, r in results.items() if _kind(run) == kind]) for kind in kinds
        ),
        notes=notes,
        nonfinite=bench.baseline.nonfinite,
    )


def _kind(run: Run) -> tuple[str, str, str]:
    return run.where, run.what, run.target


def _outcome(
    baseline: Measured,
    sinks_LxH: np.ndarray,
    birth_layer: int,
    kind: tuple[str, str, str],
    results: Sequence[tuple[int, Measured]],
) -> Outcome:
    edited = [measured for _, measured in results]
    weights_RxN = bootstrap_weights(len(baseline.nll))
    later = np.zeros_like(sinks_LxH)
    later[birth_layer + 1 :] = True

    def mass(heads_LxH: np.ndarray) -> Interval:
        if not heads_LxH.any():
            return interval(np.full((len(weights_RxN), len(edited)), np.nan))
        asked_RxP = weights_RxN @ baseline.queries[np.nonzero(heads_LxH)[0]].T
        known_RxP = asked_RxP > 0  # a resample may have no outlier token in the layer of a head
        shares = [
            np.divide(
                weights_RxN @ m.attention[heads_LxH].T,
                asked_RxP,
                out=np.zeros_like(asked_RxP),
                where=known_RxP,
            )
            for m in edited
        ]
        with np.errstate(invalid="ignore"):
            return interval(np.stack([s.sum(1) / known_RxP.sum(1) for s in shares], axis=1))

    def mean_nll(nll_NxS: np.ndarray) -> np.ndarray:
        return weights_RxN @ nll_NxS / len(nll_NxS)

    nll_NxS = np.stack([m.nll for m in edited], axis=1)
    return Outcome(
        *kind,
        edited=round(np.mean([count for count, _ in results])),
        outliers=interval(weights_RxN @ np.stack([m.outliers.sum(0) for m in edited], axis=1)),
        outliers_per_layer=np.mean([m.outliers.sum(1) for m in edited], axis=0),
        mass=mass(sinks_LxH),
        mass_per_sink=np.mean([m.mass[sinks_LxH] for m in edited], axis=0),
        mass_later=mass(later),
        perplexity=interval(np.exp(mean_nll(nll_NxS))),
        ratio=interval(np.exp(mean_nll(nll_NxS - baseline.nll[:, None]))),
        nonfinite=max(m.nonfinite.h.total for m in edited),
    )
