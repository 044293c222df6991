"""`so.census`: the strongest writers of a model, each taken away by itself, in pairs, and beside controls.

That one weight can carry a model is from Yu et al. 2024 (super weights); whether a writer that ranks high is one that matters is measured here, not assumed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from sysout_jax.analyses.census.results import Agreement, Census, Control, Effect, Entry, Pair
from sysout_jax.analyses.census.writers import RANKINGS, Writer, find_writers
from sysout_jax.calls import check_arguments
from sysout_jax.checks import Whole, check, scalar
from sysout_jax.data.text import Windows
from sysout_jax.errors import InputError
from sysout_jax.interventions.effects import Measured, Unedited
from sysout_jax.interventions.weights import (
    CONTROLLED,
    CONTROLS,
    EDITS,
    PAIRED,
    Entries,
    control,
    edited,
)
from sysout_jax.language_model import LanguageModel
from sysout_jax.numerics.intervals import Interval, bootstrap_weights, interval
from sysout_jax.outliers.definitions import TAU, entering
from sysout_jax.perplexity import protocol_of
from sysout_jax.statistics.collect import Stats, at_hand

#: The edit that a ranking speaks about.
RANKS = {"column": "column", "row": "row", "activation": "element"}
PAIRED_WRITERS = 3  # all pairs of the largest writes
MOST_WRITERS = 1000


def census(
    lm: LanguageModel,
    tokens,
    tau: float = TAU,
    *,
    count: int = 2,
    seeds: int = 1,
    stats: Stats | None = None,
    seed: int = 0,
) -> Census:
    """Take away the `count` strongest writers by each of `RANKINGS` and measure the perplexity of `tokens` (N, T) again.

    Pairs are those of the `PAIRED_WRITERS` largest writes. Each control is drawn `seeds` times from `seed`. `stats` are `collect`'s on the same
    tokens when they are at hand; `tau` says only which tokens hold outliers. Raises InputError for windows of one token.
    """
    check_arguments(lm, tau=tau, seeds=seeds, seed=seed)
    check("count", scalar(count), Whole(1, MOST_WRITERS))
    if lm.check_tokens(tokens).shape[1] < 2:
        raise InputError("windows of one token predict nothing; expected at least 2 tokens each")
    lm = lm.reading_once()
    stats = at_hand(stats, lm, tokens, tau)
    writers = find_writers(lm, stats, count)
    bench = _Bench(lm, stats, tau, writers, seeds, seed)
    entries = tuple(bench.entry(writer) for writer in writers)
    baseline = bench.baseline
    return Census(
        model=lm.name,
        tau=float(tau),
        num_layers=lm.num_layers,
        num_sequences=len(stats.tokens),
        length=stats.tokens.shape[1],
        count=count,
        num_seeds=seeds,
        protocol=protocol_of(dataclasses.replace(Windows.of(tokens), tokens=stats.tokens)),
        perplexity=bench.effect("none", [baseline]).perplexity,
        loss=float(baseline.nll.mean()),
        largest=baseline.ratio,
        entries=entries,
        pairs=tuple(
            bench.pair(writers, *pair, edit) for edit in PAIRED for pair in _pairs(writers)
        ),
        agreements=tuple(_agreement(entries, name) for name in RANKINGS),
        nonfinite=baseline.nonfinite,
    )


class _Bench:
    """What all edits of one model on one set of tokens share. Each runs once, from the first layer that it changes."""

    def __init__(
        self,
        lm: LanguageModel,
        stats: Stats,
        tau: float,
        writers: Sequence[Writer],
        seeds: int,
        seed: int,
    ):
        self.lm, self.seeds, self.seed = lm, seeds, seed
        layers = {writer.layer for writer in writers}
        if lm.passes.on_plan:
            lm.passes.on_plan(lm.num_layers + _layers_of_edits(lm, writers, seeds))
        marked = entering(stats.h.outlier_tokens(tau))
        self.unedited = Unedited.run(lm, stats.tokens, marked, tau, layers)
        self.baseline = self.unedited.measured
        self.weights_RxN = bootstrap_weights(len(stats.tokens))
        self._done: dict[tuple[int, str, int, int], Measured] = {}

    def entry(self, writer: Writer) -> Entry:
        def beside(kind: str, edit: str) -> Effect:
            return self.effect(
                edit, [self._control(writer, kind, edit, run) for run in range(self.seeds)]
            )

        return Entry(
            writer=writer,
            effects=tuple(self.effect(edit, [self.edited(writer, edit)]) for edit in EDITS),
            controls=tuple(
                Control(kind, beside(kind, edit)) for edit in CONTROLLED for kind in CONTROLS
            ),
        )

    def pair(self, writers: Sequence[Writer], first: int, second: int, edit: str) -> Pair:
        a, b = writers[first], writers[second]
        changed = edited(edited(self.lm, _entries(a), edit), _entries(b), edit)
        together = self.unedited.edited(changed, start=min(a.layer, b.layer))
        base_N = self.baseline.nll
        alone_N = self.edited(a, edit).nll + self.edited(b, edit).nll - base_N
        return Pair(
            first,
            second,
            self.effect(edit, [together]),
            self._relative((together.nll - alone_N)[:, None]),
        )

    def edited(self, writer: Writer, edit: str) -> Measured:
        key = _line(writer, edit)
        if key not in self._done:
            changed = edited(self.lm, _entries(writer), edit)
            self._done[key] = self.unedited.edited(changed, start=writer.layer)
        return self._done[key]

    def effect(self, edit: str, runs: Sequence[Measured]) -> Effect:
        nll_NxS = np.stack([run.nll for run in runs], axis=1)
        with np.errstate(over="ignore"):
            perplexity = interval(np.exp(self.weights_RxN @ nll_NxS / len(nll_NxS)))
        return Effect(
            edit=edit,
            perplexity=perplexity,
            loss_change=self._relative(nll_NxS - self.baseline.nll[:, None]),
            ratio=float(np.mean([run.ratio for run in runs])),
            nonfinite=max(run.nonfinite.h.total for run in runs),
        )

    def _relative(self, more_NxS: np.ndarray) -> Interval:
        """Of nats more, over the loss of the same sequences unedited."""
        return interval((self.weights_RxN @ more_NxS) / (self.weights_RxN @ self.baseline.nll)[:, None])  # fmt: skip

    def _control(self, writer: Writer, kind: str, edit: str, run: int) -> Measured:
        purpose = [list(CONTROLS).index(kind), CONTROLLED.index(edit)]
        rng = np.random.default_rng([self.seed, run, *purpose, *writer.place])
        changed = control(self.lm, _entries(writer), edit, kind, rng)
        return self.unedited.edited(changed, start=writer.layer)


def _pairs(writers: Sequence[Writer]) -> list[tuple[int, int]]:
    return list(combinations(range(min(PAIRED_WRITERS, len(writers))), 2))


def _line(writer: Writer, edit: str) -> tuple[int, str, int, int]:
    """What an edit of a writer changes: of two writers in one column, the column's is the same."""
    row = writer.row if edit != "column" else -1
    return writer.layer, edit, row, writer.column if edit != "row" else -1


def _layers_of_edits(lm: LanguageModel, writers: Sequence[Writer], seeds: int) -> int:
    """How many layers all passes of `_Bench` go through, each from the first layer that it changes."""
    starts = [layer for layer, *_ in {_line(writer, edit) for writer in writers for edit in EDITS}]
    starts += [w.layer for w in writers] * (len(CONTROLLED) * len(CONTROLS) * seeds)
    pairs = [min(writers[i].layer, writers[j].layer) for i, j in _pairs(writers)]
    return sum(lm.num_layers - start for start in starts + pairs * len(PAIRED))


def _entries(writer: Writer) -> Entries:
    return {writer.layer: (np.array([writer.column]), np.array([writer.row]))}


def _agreement(entries: Sequence[Entry], ranking: str) -> Agreement:
    """Over the distinct lines that an edit touches."""
    edit = RANKS[ranking]
    seen = {}
    for entry in entries:
        w = entry.writer
        value, line = {
            "column": (w.column_ratio, (w.layer, w.column)),
            "row": (w.row_ratio, (w.layer, w.row)),
            "activation": (w.write, w.place),
        }[ranking]
        seen[line] = value, entry.effect(edit).loss_change.value
    values, effects = (np.array(each, float) for each in zip(*seen.values(), strict=True))
    return Agreement(ranking, edit, len(seen), _rank_correlation(values, effects))


def _rank_correlation(x_N: np.ndarray, y_N: np.ndarray) -> float:
    """Spearman's ρ; NaN where fewer than three values or all the same tell nothing."""
    from scipy.stats import spearmanr  # takes longer to import than all of this library

    if len(x_N) < 3 or (x_N == x_N[0]).all() or (y_N == y_N[0]).all():
        return float("nan")
    return float(spearmanr(x_N, y_N).statistic)
