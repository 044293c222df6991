"""The edited passes of `so.intervene`: which ones there are, what they write, and measuring each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sysout_jax.analyses.lifecycle.cause import birth_weights, sink_heads
from sysout_jax.analyses.lifecycle.results import Lifecycle
from sysout_jax.calls import RULES, check_words
from sysout_jax.checks import check
from sysout_jax.errors import InputError
from sysout_jax.interventions.effects import Measured, Unedited
from sysout_jax.interventions.elements import (
    Elements,
    draw_donors,
    draw_others,
    edits,
    find_outliers,
    read_elements,
    write_elements,
)
from sysout_jax.interventions.heads import (
    other_heads,
    other_tokens,
    silence_heads,
    silence_values,
    write_silence,
)
from sysout_jax.interventions.weights import (
    Entries,
    edit_down_weights,
    others,
    touched,
)
from sysout_jax.language_model import LanguageModel
from sysout_jax.outliers.definitions import entering
from sysout_jax.words import percent

#: Values that are written.
WHAT = {
    "zero": "0",
    "mean": "the mean of all outliers of the same dim and layer (control: of the dim over all positions; weight: of the row's others)",
    "resample": "the same layer and dim at a random token that is no outlier in any layer, of another sequence where there is one (weight: another of the row)",
}
#: Where they are written.
WHERE = {
    "birth": "output of the layers that give birth, at their outliers",
    "all": "output of every layer, at its outliers",
    "weight": "W_down[d*, c*] of the layers that give birth",
    "column": "W_down[:, c*], the whole columns, of the layers that give birth",
    "row": "W_down[d*, :], the whole rows, of the layers that give birth",
    "head": "the output of every head after the birth for which the outlier tokens are sinks, at all tokens",
    "value": "the value vectors, in the key/value heads that those heads read, of the outlier tokens that enter the layer",
}
#: Edited unless others are named.
USUAL_PLACES = ("birth", "all", "weight")
#: What is set to zero and to nothing else.
ONLY_ZERO = ("column", "row", "head", "value")
OF_WEIGHTS = ("weight", "column", "row")
OUTLIERS, CONTROL = "outliers", "control"
SAME = 1e-3  # relative: setting outliers to a mean that near is no edit
# what a random generator of a seed is for
(
    _OTHERS, _DONORS, _OTHERS_DONORS, _WEIGHTS, _WEIGHT_DONORS, _WEIGHTS_DONORS, _ROWS, _HEADS, _TOKENS,
) = range(9)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One edited pass."""

    where: str
    what: str
    target: str  # outliers, or as many random others
    seed: int


def plan(what: Sequence[str], where: Sequence[str], seeds: int) -> tuple[Run, ...]:
    """Every pass: controls and resamples once per seed, what has no chance in it once.

    Places in `ONLY_ZERO` have no other passes. Raises InputError for unknown names, and for a place that has no pass.
    """
    check("seeds", seeds, RULES["seeds"])
    what, where = check_words("what", what, WHAT), check_words("where", where, WHERE)
    if idle := [place for place in where if place in ONLY_ZERO and "zero" not in what]:
        raise InputError(
            f"{' and '.join(idle)} can only be set to zero, not to {' or '.join(what)}; name zero, or another place"
        )
    return tuple(
        Run(place, kind, target, seed)
        for place in dict.fromkeys(where)
        for kind in dict.fromkeys(what)
        if kind == "zero" or place not in ONLY_ZERO
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
        living = life.stats.h.outlier_tokens(life.tau)
        self.entering = entering(living)
        self.ever = np.asarray(living.any(axis=0))
        self.outliers, self.values, self.mean = find_outliers(lm, life.stats, life.tau, self.dims)
        self.born = birth_weights(life.birth)
        # the first layer that any run edits
        first = min((*np.flatnonzero(self.outliers.active.any(axis=1)), *life.birth.layers))
        self.unedited = Unedited.run(lm, self.tokens, self.entering, life.tau, [int(first)])
        self.baseline = self.unedited.measured
        self.sinks = sink_heads(self.baseline.mass, self.baseline.even, life.birth)

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
            if run.what == "resample" and run.where in ("birth", "all")
        )
        if not wanted:
            return {}
        places = []
        for target, run_seed in wanted:
            purpose = _DONORS if target == OUTLIERS else _OTHERS_DONORS
            elements = self.elements(target, run_seed)
            places.append(draw_donors(self.rng(run_seed, purpose), elements, ~self.ever))
        values = read_elements(self.lm, self.tokens, np.concatenate(places))
        parts = np.split(values, np.cumsum([len(p) for p in places])[:-1], axis=1)
        return dict(zip(wanted, parts, strict=True))

    def run(self, run: Run, donated) -> tuple[int, Measured]:
        """How much one edit touches, and the model under it. `donated` as `donated` gives it."""
        if run.where in ("birth", "all"):
            return self._edit_elements(run, donated)
        if run.where in ("head", "value"):
            return self._silence(run)
        return self._edit_weights(run)

    def _edit_elements(self, run: Run, donated) -> tuple[int, Measured]:
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
        measured = self.unedited.edited(
            write=write_elements,
            extra=edits(elements, values, self.tokens.shape),
        )
        return int(elements.active.sum()), measured

    def _silence(self, run: Run) -> tuple[int, Measured]:
        shape, control = self.tokens.shape, run.target == CONTROL
        heads_LxH, tokens_LxNxT = self.sinks, self.entering
        first = self.life.birth.events[0].layer + 1
        if run.where == "head":
            if control:
                heads_LxH = other_heads(heads_LxH, first, self.rng(run.seed, _HEADS))
            silenced = silence_heads(heads_LxH, self.num_kv_heads, shape)
        else:
            if control:
                tokens_LxNxT = other_tokens(tokens_LxNxT, self.rng(run.seed, _TOKENS))
            silenced = silence_values(heads_LxH, self.num_kv_heads, tokens_LxNxT)
        measured = self.unedited.edited(
            write=write_silence,
            extra=silenced.extra(),
        )
        return silenced.count, measured

    @property
    def num_kv_heads(self) -> int:
        return self.lm.config.layer(0).heads.kv_heads

    def entries(self, run: Run) -> Entries:
        """Entries of W_down: of the birth weights, or of as many others."""
        edit = "element" if run.where == "weight" else run.where
        if run.target == OUTLIERS:
            return touched(self.lm, self.born, edit)
        rng = self.rng(run.seed, _ROWS if edit == "row" else _WEIGHTS)
        return others(self.lm, self.born, edit, rng, self.flagged)

    def _edit_weights(self, run: Run) -> tuple[int, Measured]:
        entries = self.entries(run)

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
        measured = self.unedited.edited(edited)
        return sum(len(channels) * len(dims) for channels, dims in entries.values()), measured


def possible_runs(bench: Bench, runs: tuple[Run, ...]) -> tuple[tuple[Run, ...], tuple[str, ...]]:
    """The runs that this model and text allow, and why others are left out."""
    notes = []
    if any(run.where in OF_WEIGHTS for run in runs):
        most = max((len(channels) for channels, _ in bench.born.values()), default=0)
        if not most or 2 * most >= bench.lm.config.layer(0).mlp.channels:
            why = "no channel carries the birth" if not most else "too many channels carry it"
            notes.append(f"No edit of the birth weight: {why}.")
            runs = tuple(run for run in runs if run.where not in OF_WEIGHTS)
    if any(run.where in ("head", "value") for run in runs) and not bench.sinks.any():
        notes.append("No edit of heads or values: the outlier tokens are a sink for no head.")
        runs = tuple(run for run in runs if run.where not in ("head", "value"))
    if any(run.where == "head" for run in runs):
        free = int((~bench.sinks[bench.life.birth.events[0].layer + 1 :]).sum())
        if free < bench.sinks.sum():
            notes.append(
                f"After the birth {bench.sinks.sum()} heads are sink heads and {free} are not: fewer other heads can be silenced."
            )
    if bench.ever.all() and any(run.what == "resample" for run in runs):
        notes.append("No resample of h: every token holds one of the followed elements.")
        runs = tuple(run for run in runs if run.what != "resample" or run.where == "weight")
    if any(run.what == "mean" and run.where != "weight" for run in runs):
        moved = _moved_by_mean(bench.outliers, bench.values)
        if moved < SAME:
            notes.append(
                "The mean of the outliers is what they are already, so setting them to it shows nothing."
            )
        else:
            notes.append(
                f"The mean that outliers are set to is nearly their own value: none differs from it by more than {percent(moved)}."
            )
    return runs, tuple(notes)


def _moved_by_mean(elements: Elements, values_LxK: np.ndarray) -> float:
    """The largest step from an outlier to the mean of its dim and layer, over that mean."""
    means_LxK = _mean_per_dim(elements, values_LxK)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps_LxK = np.abs(values_LxK / means_LxK - 1)
    return float(steps_LxK[elements.active].max(initial=0.0))


def _mean_per_dim(elements: Elements, values_LxK: np.ndarray) -> np.ndarray:
    """(L, K) mean over the active elements of the same dim in each layer."""
    values = np.where(elements.active, values_LxK.astype(np.float64), 0.0)
    means, dims = np.zeros_like(values), elements.places[:, 2]
    for dim in np.unique(dims):
        same = dims == dim
        count = np.maximum(elements.active[:, same].sum(1, keepdims=True), 1)
        means[:, same] = values[:, same].sum(1, keepdims=True) / count
    return means
