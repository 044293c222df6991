"""`so.consistency`: do weight, activation and attention outliers coincide? Paper Table 1 with the formula of B.2.

Everything is read off the statistics of one pass, at any threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sysout_jax.calls import check_arguments
from sysout_jax.language_model import LanguageModel
from sysout_jax.nonfinite import Nonfinite
from sysout_jax.numerics.intervals import Interval, bootstrap_weights, interval
from sysout_jax.outliers import definitions as rules
from sysout_jax.outliers.definitions import TAU, TAUS
from sysout_jax.printable import Told
from sysout_jax.statistics.collect import Stats, at_hand
from sysout_jax.storage.serialise import plain

KINDS = ("W_down", "x_down", "h", "attention")  # what has a threshold


@dataclass(frozen=True)
class Row:
    """Two types of outliers and the indices that are compared. `first` is what the formula divides by."""

    first: str
    second: str
    dimension: str  # feature or sequence
    kinds: tuple[str, ...]  # whose thresholds decide
    of_paper: bool = False  # one of the four rows of Table 1


#: The paper's four rows. Then the first two by the extremal ratio of columns, which the paper finds weight outliers with, and the last by the
#: published code's rule, and against the h that attention reads.
ROWS = (
    Row("W_down columns", "x_down", "feature", ("W_down", "x_down"), True),
    Row("W_down rows", "h", "feature", ("W_down", "h"), True),
    Row("x_down", "h", "sequence", ("x_down", "h"), True),
    Row("h", "attention", "sequence", ("h", "attention"), True),
    Row("W_down extremal columns", "x_down", "feature", ("x_down",)),
    Row("W_down rows of these", "h", "feature", ("x_down", "h")),
    Row("h", "attention (code's rule)", "sequence", ("h",)),
    Row("h before the layer", "attention", "sequence", ("h", "attention")),
    Row("h before the layer", "attention (code's rule)", "sequence", ("h",)),
)
MEASURES = ("overlap", "reverse", "iou")


@dataclass(frozen=True)
class Agreement:
    """R rows at the thresholds `levels`, for every layer and sample; NaN where a set to divide by is empty, and where a threshold is out of
    reach (`rules.reachable`).

    `overlap` = |first ∩ second| / |first| (B.2; mean over heads where there are heads), `reverse` the share of the second set,
    `iou` the intersection over the union.
    """

    levels: dict[str, float]  # kind → threshold
    overlap: np.ndarray  # (R, L, N)
    reverse: np.ndarray  # (R, L, N)
    iou: np.ndarray  # (R, L, N)
    first_size: np.ndarray  # (R, L) mean size of the first set
    second_size: np.ndarray  # (R, L) of the second, mean over samples and heads

    def layers(self, measure: str) -> np.ndarray:
        """(R, L) mean over the samples where it is defined; NaN without any."""
        values = getattr(self, measure)
        seen = np.isfinite(values)
        return np.where(seen, values, 0.0).sum(-1) / np.where(seen.any(-1), seen.sum(-1), np.nan)

    def averages(self, measure: str, seed: int = 0) -> tuple[Interval, ...]:
        """Each row's mean over the layers and samples with an outlier of the first type, the same ones for every measure, with 95 %
        bootstrap intervals over samples."""
        values = np.where(np.isfinite(self.overlap), getattr(self, measure), np.nan)
        weights_RxN = bootstrap_weights(values.shape[-1], seed)
        return tuple(_average(row, weights_RxN) for row in values)


@dataclass(frozen=True)
class Consistency(Told):
    """The report. `candidate` puts a share of its largest ratio in place of τ for every kind that has no outlier."""

    model: str
    tau: float
    seed: int
    num_layers: int
    num_sequences: int
    length: int
    ratios: dict[str, float]  # kind → largest ratio, what τ is compared with
    counts: dict[str, int]  # kind → values that a mean goes over, which a ratio cannot exceed
    at_tau: Agreement
    others: dict[float, Agreement]  # at the thresholds of TAUS
    candidate: Agreement | None
    nonfinite: Nonfinite

    @property
    def found(self) -> bool:
        """Is there an activation outlier at τ, in h or x_down?"""
        return max(self.ratios["h"], self.ratios["x_down"]) > self.tau

    @property
    def missing(self) -> tuple[str, ...]:
        """Kinds without any outlier at τ."""
        return tuple(kind for kind, ratio in self.ratios.items() if not ratio > self.tau)

    def out_of_reach(self, tau: float) -> tuple[str, ...]:
        """Kinds that cannot have an outlier at `tau`, whatever the model."""
        return tuple(kind for kind, n in self.counts.items() if not rules.reachable(tau, n))

    @property
    def shown(self) -> Agreement:
        """What figures draw: the agreement at τ, or that of the candidates where some kind has no outlier."""
        return self.candidate or self.at_tau

    def to_dict(self) -> dict:
        """JSON-ready numbers, samples averaged."""
        names = "model tau seed num_layers num_sequences length found ratios counts missing nonfinite".split()
        result = {name: getattr(self, name) for name in names} | {"rows": ROWS}
        result["out_of_reach"] = {f"{tau:g}": self.out_of_reach(tau) for tau in (self.tau, *TAUS)}
        tables = {"at_tau": self.at_tau, "candidate": self.candidate}
        tables |= {f"at_{tau:g}": agreement for tau, agreement in self.others.items()}
        for name, agreement in tables.items():
            result[name] = agreement and {
                "levels": agreement.levels,
                "first_size": agreement.first_size,
                "second_size": agreement.second_size,
                "layers": {measure: agreement.layers(measure) for measure in MEASURES},
                "average": {
                    measure: [
                        {"value": i.value, "low": i.low, "high": i.high}
                        for i in agreement.averages(measure, self.seed)
                    ]
                    for measure in MEASURES
                },
            }
        return plain(result)


def consistency(
    lm: LanguageModel,
    tokens,
    tau: float = TAU,
    *,
    stats: Stats | None = None,
    seed: int = 0,
) -> Consistency:
    """Which outliers of a model coincide on samples `tokens` (N, T), at threshold τ; one pass.

    `stats` are those of `collect` on the same tokens when they are at hand. `seed` draws the bootstrap samples. Raises InputError
    for bad tokens and bad τ.
    """
    check_arguments(lm, tau=tau, seed=seed)
    stats = at_hand(stats, lm, tokens, tau)
    (N, T), D = stats.tokens.shape, lm.config.d_model
    mlp = lm.config.layer(0).mlp
    counts = {
        "W_down": mlp.channels,
        "x_down": T * mlp.width * mlp.rows,
        "h": T * D,
        "attention": T,
    }

    def at(levels: dict[str, float]) -> Agreement:
        return _agreement(stats, levels, counts)

    ratios = _ratios(stats)
    lowered = {kind: rules.level_of(ratio, tau) for kind, ratio in ratios.items()}
    lower = any(level != tau for level in lowered.values()) and all(lowered.values())
    return Consistency(
        model=lm.name,
        tau=float(tau),
        seed=seed,
        num_layers=lm.num_layers,
        num_sequences=N,
        length=T,
        ratios=ratios,
        counts=counts,
        at_tau=at(dict.fromkeys(KINDS, float(tau))),
        others={each: at(dict.fromkeys(KINDS, each)) for each in TAUS},
        candidate=at(lowered) if lower else None,
        nonfinite=stats.nonfinite,
    )


def _ratios(stats: Stats) -> dict[str, float]:
    """Kind → its largest ratio."""
    return {
        "W_down": float(stats.weights.down_row_ratios.max()),
        "x_down": float(stats.x_down.ratio.max()),
        "h": float(stats.h.ratio.max()),
        "attention": float(stats.attention.ratio.max()),
    }


def _agreement(stats: Stats, levels: dict[str, float], counts: dict[str, int]) -> Agreement:
    """All rows at these thresholds, layer by layer."""
    layers: list[dict[str, np.ndarray]] = []
    N, T = stats.tokens.shape
    before = np.zeros((N, T), bool), np.zeros((N, stats.h.channel_max.shape[2]), bool)
    for layer in range(len(stats.h.ratio)):
        sets, before = _sets(stats, layer, levels, *before)
        layers.append(_compare(sets))
    measures = {name: np.stack([layer[name] for layer in layers], axis=1) for name in layers[0]}
    reach = np.array(
        [all(rules.reachable(levels[kind], counts[kind]) for kind in row.kinds) for row in ROWS]
    )
    for measure in MEASURES:
        measures[measure] = np.where(reach[:, None, None], measures[measure], np.nan)
    return Agreement(levels=levels, **measures)


def _sets(
    stats: Stats,
    layer: int,
    levels: dict[str, float],
    before_NxT: np.ndarray,
    before_NxD: np.ndarray,
) -> tuple[list[tuple[np.ndarray, np.ndarray]], tuple[np.ndarray, np.ndarray]]:
    """Both index sets of each row as masks, first (N, X), second (N, G, X) with G heads or 1; and the tokens and dims with an outlier of h,
    which the next layer gets as those before it."""
    weights, N = stats.weights, len(stats.tokens)

    def over(place: str, what: str) -> np.ndarray:
        activations = getattr(stats, place)
        mean = activations.sequence_mean[layer][:, None]
        return np.asarray(rules.exceeds(getattr(activations, what)[layer], mean, levels[place]))

    def every(lines_X: np.ndarray) -> np.ndarray:
        return np.broadcast_to(lines_X, (N, *lines_X.shape))

    tokens, channels = over("h", "token_max"), over("x_down", "channel_max")
    dims = over("h", "channel_max")
    # where outliers die, x_down holds what takes them back: they are in the h that enters
    dying_Nx1 = before_NxT.any(1, keepdims=True) & ~tokens.any(1, keepdims=True)
    written = np.where(dying_Nx1, before_NxT, tokens)
    written_dims = np.where(dying_Nx1, before_NxD, dims)
    sums = stats.attention.sums[layer].astype(np.float64)
    keys = rules.attention_outliers(sums, levels["attention"])
    wide = rules.code_outliers(sums.mean(axis=1))[:, None]
    # every matrix has a column of largest ratio: it is compared where there is an outlier to compare with
    extremal, writes_Nx1 = _extremal_columns(stats, layer), channels.any(1, keepdims=True)
    rows = np.isin(np.arange(dims.shape[1]), weights.down_largest_rows[layer][extremal])
    sets = [
        (every(weights.down_weight_ratios[layer] > levels["W_down"]), channels[:, None]),
        (every(weights.down_row_ratios[layer] > levels["W_down"]), dims[:, None]),
        (over("x_down", "token_max"), written[:, None]),
        (tokens, keys),
        (every(extremal) & writes_Nx1, channels[:, None]),
        (every(rows) & writes_Nx1, written_dims[:, None]),
        (tokens, wide),
        (before_NxT, keys),
        (before_NxT, wide),
    ]
    return sets, (tokens, dims)


def _extremal_columns(stats: Stats, layer: int) -> np.ndarray:
    """(F,) columns of W_down whose extremal ratio is near the largest of the layer."""
    ratios = stats.weights.down_column_ratios[layer]
    return ratios > rules.candidate_level(ratios.max())


def _compare(sets: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """Overlap, reverse and iou (R, N), sizes (R,)."""
    columns: dict[str, list] = {}
    for first_NxX, second_NxGxX in sets:
        reverse_NxGx1 = rules.overlap(second_NxGxX, first_NxX[:, None, None])
        row = {
            "overlap": _over_heads(rules.overlap(first_NxX, second_NxGxX)),
            "reverse": _over_heads(reverse_NxGx1[..., 0]),
            "iou": _over_heads(rules.intersection_over_union(first_NxX, second_NxGxX)),
            "first_size": first_NxX.sum(axis=-1).mean(),
            "second_size": second_NxGxX.sum(axis=-1).mean(),
        }
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in columns.items()}


def _over_heads(values_NxG: np.ndarray) -> np.ndarray:
    """(N,) mean over the heads where it is defined; NaN without any."""
    seen = np.isfinite(values_NxG)
    return np.where(seen, values_NxG, 0.0).sum(axis=1) / np.where(
        seen.any(axis=1), seen.sum(axis=1), np.nan
    )


def _average(values_LxN: np.ndarray, weights_RxN: np.ndarray) -> Interval:
    seen = np.isfinite(values_LxN)
    total_RxL = weights_RxN @ seen.T
    mean_RxL = (
        weights_RxN @ np.where(seen, values_LxN, 0.0).T / np.where(total_RxL > 0, total_RxL, 1.0)
    )
    layers_R = (total_RxL > 0).sum(axis=1)
    mean_R = mean_RxL.sum(axis=1) / np.where(layers_R > 0, layers_R, np.nan)
    return interval(mean_R[:, None])
