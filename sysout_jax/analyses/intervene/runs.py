"""The edited passes of `so.intervene`: which ones there are, what they write, and measuring each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sysout_jax.analyses.lifecycle.cause import birth_weights
from sysout_jax.analyses.lifecycle.results import Lifecycle
from sysout_jax.calls import RULES, check_words
from sysout_jax.checks import check
from sysout_jax.interventions.effects import Measured, measure
from sysout_jax.interventions.elements import (
    Elements,
    draw_donors,
    draw_others,
    edits,
    find_outliers,
    read_elements,
    write_elements,
)
from sysout_jax.interventions.weights import Entries, edit_down_weights, random_weights
from sysout_jax.language_model import LanguageModel

#: Values that are written.
WHAT = {
    "zero": "0",
    "mean": "the mean of all outliers of the same dim and layer (control: of the dim over all positions; weight: of the row's others)",
    "resample": "the same layer and dim at a random ordinary token, of another sequence where there is one (weight: another of the row)",
}
#: Where they are written.
WHERE = {
    "birth": "output of the layers that give birth, at their outliers",
    "all": "output of every layer, at its outliers",
    "weight": "W_down[d*, c*] of the layers that give birth",
}
OUTLIERS, CONTROL = "outliers", "control"
# what a random generator of a seed is for
_OTHERS, _DONORS, _OTHERS_DONORS, _WEIGHTS, _WEIGHT_DONORS, _WEIGHTS_DONORS = range(6)


@dataclass(frozen=True)
class Run:
    """One edited pass."""

    where: str
    what: str
    target: str  # outliers, or as many random others
    seed: int


def plan(what: Sequence[str], where: Sequence[str], seeds: int) -> tuple[Run, ...]:
    """Every pass: controls and resamples once per seed, what has no chance in it once. InputError for unknown names."""
    check("seeds", seeds, RULES["seeds"])
    what, where = check_words("what", what, WHAT), check_words("where", where, WHERE)
    return tuple(
        Run(place, kind, target, seed)
        for place in dict.fromkeys(where)
        for kind in dict.fromkeys(what)
        for target in (OUTLIERS, CONTROL)
        for seed in range(seeds if kind == "resample" or target == CONTROL else 1)
    )


class Bench:
    """What all runs on one model and one set of tokens share. `life` holds a trace and a birth."""

    def __init__(
        self,
        lm: LanguageModel,
        life: Lifecycle,
        seed: int = 0,
    ):
        assert life.trace is not None
        self.lm, self.life, self.seed = lm, life, seed
        self.tokens = life.stats.tokens
        self.flagged = np.flatnonzero(life.stats.h.outlier_channels(life.tau).any(axis=0))
        self.dims = life.trace.targets.dims
        self.marked = np.asarray(life.stats.h.outlier_tokens(life.tau).any(axis=0))
        self.outliers, self.values, self.mean = find_outliers(lm, life.stats, life.tau, self.dims)
        self.born = birth_weights(life.birth)
        self.baseline = measure(lm, self.tokens, self.marked, life.tau)

    def rng(self, run_seed: int, purpose: int, layer: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, run_seed, purpose, layer])

    def elements(self, target: str, run_seed: int) -> Elements:
        if target == OUTLIERS:
            return self.outliers
        free = np.setdiff1d(np.arange(self.lm.config.d_model), self.flagged)
        length = self.tokens.shape[1]
        return draw_others(self.rng(run_seed, _OTHERS), self.outliers, length, free)

    def donated(self, runs: Sequence[Run]) -> dict[tuple[str, int], np.ndarray]:
        """(target, seed) → (L, K) values of donors in the unedited model. One pass for all of them."""
        wanted = dict.fromkeys(
            (run.target, run.seed)
            for run in runs
            if run.what == "resample" and run.where != "weight"
        )
        if not wanted:
            return {}
        places = []
        for target, run_seed in wanted:
            purpose = _DONORS if target == OUTLIERS else _OTHERS_DONORS
            elements = self.elements(target, run_seed)
            places.append(draw_donors(self.rng(run_seed, purpose), elements, ~self.marked))
        found = read_elements(self.lm, self.tokens, np.concatenate(places))
        parts = np.split(found, np.cumsum([len(p) for p in places])[:-1], axis=1)
        return dict(zip(wanted, parts, strict=True))

    def run(self, run: Run, donated) -> tuple[int, Measured]:
        """Edit elements of h."""
        elements = self.elements(run.target, run.seed)
        if run.what == "zero":
            values = np.zeros(elements.active.shape)
        elif run.what == "resample":
            values = donated[run.target, run.seed]
        elif run.target == CONTROL:
            values = self.mean[:, elements.places[:, 2]]
        else:
            values = _mean_per_dim(elements, self.values)
        if run.where == "birth":
            elements = elements.only(self.life.birth.layers)
        found = measure(
            self.lm,
            self.tokens,
            self.marked,
            self.life.tau,
            write=write_elements,
            extra=edits(elements, values, self.tokens.shape),
        )
        return int(elements.active.sum()), found

    def weight_run(self, run: Run) -> tuple[int, Measured]:
        """Edit entries of W_down."""
        entries: Entries = self.born
        if run.target == CONTROL:
            rng = self.rng(run.seed, _WEIGHTS)
            entries = random_weights(self.born, self.lm.config.layer(0).mlp.channels, rng)

        def fill(layer: int, kernel_FxD: np.ndarray) -> np.ndarray:
            channels, dims = entries[layer]
            if run.what == "zero":
                return np.zeros((1, 1))
            # ordinary entries of the same rows of W
            rest = np.delete(kernel_FxD[:, dims], np.union1d(channels, self.born[layer][0]), axis=0)
            if run.what == "mean":
                return rest.astype(np.float32).mean(axis=0, keepdims=True)
            purpose = _WEIGHT_DONORS if run.target == OUTLIERS else _WEIGHTS_DONORS
            rng = self.rng(run.seed, purpose, layer)
            chosen = rng.integers(len(rest), size=(len(channels), len(dims)))
            return np.take_along_axis(rest, chosen, axis=0)

        edited = edit_down_weights(self.lm, entries, fill)
        found = measure(edited, self.tokens, self.marked, self.life.tau)
        return sum(len(channels) * len(dims) for channels, dims in entries.values()), found


def possible_runs(bench: Bench, runs: tuple[Run, ...]) -> tuple[tuple[Run, ...], tuple[str, ...]]:
    """The runs that this model and text allow, and why others are left out."""
    notes = []
    if any(run.where == "weight" for run in runs):
        most = max((len(channels) for channels, _ in bench.born.values()), default=0)
        if not most or 2 * most >= bench.lm.config.layer(0).mlp.channels:
            why = "no channel carries the birth" if not most else "too many channels carry it"
            notes.append(f"No edit of the birth weight: {why}.")
            runs = tuple(run for run in runs if run.where != "weight")
    if bench.marked.all() and any(run.what == "resample" for run in runs):
        notes.append("No resample of h: every token holds one of the followed elements.")
        runs = tuple(run for run in runs if run.what != "resample" or run.where == "weight")
    return runs, tuple(notes)


def _mean_per_dim(elements: Elements, values_LxK: np.ndarray) -> np.ndarray:
    """(L, K) mean over the active elements of the same dim in each layer."""
    values = np.where(elements.active, values_LxK.astype(np.float64), 0.0)
    means, dims = np.zeros_like(values), elements.places[:, 2]
    for dim in np.unique(dims):
        same = dims == dim
        count = np.maximum(elements.active[:, same].sum(1, keepdims=True), 1)
        means[:, same] = values[:, same].sum(1, keepdims=True) / count
    return means
