"""`so.consistency`: do weight, activation and attention outliers coincide? Paper Table 1 with the formula of B.2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np

from sysout_jax.calls import check_arguments
from sysout_jax.engine import Stream
from sysout_jax.language_model import LanguageModel
from sysout_jax.models.spec import MlpSpec
from sysout_jax.nonfinite import Nonfinite, finite_or
from sysout_jax.numerics.intervals import Interval, bootstrap_weights, interval
from sysout_jax.outliers import definitions as rules
from sysout_jax.outliers.definitions import TAU, TAUS
from sysout_jax.statistics.activations import reduce_activations, reduce_x_down
from sysout_jax.statistics.weights import outlier_lines
from sysout_jax.storage.serialise import plain

KINDS = ("W_down", "x_down", "h", "attention")  # what has a threshold


@dataclass(frozen=True)
class Row:
    """Two types of outliers and the indices that are compared. `first` is what the formula divides by."""

    first: str
    second: str
    dimension: str  # feature or sequence
    of_paper: bool  # one of the four rows of Table 1


#: The paper's four rows, and the last of them by the published code's rule, and against the h that attention reads.
ROWS = (
    Row("W_down columns", "x_down", "feature", True),
    Row("W_down rows", "h", "feature", True),
    Row("x_down", "h", "sequence", True),
    Row("h", "attention", "sequence", True),
    Row("h", "attention (code's rule)", "sequence", False),
    Row("h before the layer", "attention", "sequence", False),
    Row("h before the layer", "attention (code's rule)", "sequence", False),
)
MEASURES = ("overlap", "reverse", "iou")


@dataclass(frozen=True)
class Agreement:
    """R rows at the thresholds `levels`, for every layer and sample; NaN where a set to divide by is empty.

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
        """Each row's mean over its layers, with 95 % bootstrap intervals over samples."""
        values = getattr(self, measure)
        weights_RxN = bootstrap_weights(values.shape[-1], seed)
        return tuple(_average(row, weights_RxN) for row in values)


@dataclass(frozen=True)
class Consistency:
    """The report. `candidate` puts a share of its largest ratio in place of τ for every kind that has no outlier."""

    model: str
    tau: float
    seed: int
    num_layers: int
    num_sequences: int
    length: int
    ratios: dict[str, float]  # kind → largest ratio, what τ is compared with
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

    @property
    def shown(self) -> Agreement:
        """What figures draw: the agreement at τ, or that of the candidates where some kind has no outlier."""
        return self.candidate or self.at_tau

    def to_dict(self) -> dict:
        """JSON-ready numbers, samples averaged."""
        names = (
            "model tau seed num_layers num_sequences length found ratios missing nonfinite".split()
        )
        result = {name: getattr(self, name) for name in names} | {"rows": ROWS}
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
    seed: int = 0,
) -> Consistency:
    """Which outliers of a model coincide on samples `tokens` (N, T), at threshold τ. One pass, two where a kind has no outlier.

    `seed` draws the bootstrap samples. Raises InputError for bad tokens and
    bad τ.
    """
    check_arguments(lm, tau=tau, seed=seed)
    levels = [dict.fromkeys(KINDS, float(each)) for each in (tau, *TAUS)]
    (at_tau, *others), ratios, nonfinite = _pass(lm, tokens, levels)
    candidate = None
    lowered = {kind: rules.level_of(ratio, tau) for kind, ratio in ratios.items()}
    if lowered != levels[0] and all(lowered.values()):
        (candidate,), *_ = _pass(lm, tokens, [lowered])
    N, T = np.shape(tokens)
    return Consistency(
        model=lm.name,
        tau=float(tau),
        seed=seed,
        num_layers=lm.num_layers,
        num_sequences=N,
        length=T,
        ratios=ratios,
        at_tau=at_tau,
        others=dict(zip(TAUS, others, strict=True)),
        candidate=candidate,
        nonfinite=nonfinite,
    )


def _pass(
    lm: LanguageModel, tokens, levels: list[dict[str, float]]
) -> tuple[list[Agreement], dict[str, float], Nonfinite]:
    """One agreement for each choice of thresholds, the largest ratio of each kind, and what is not finite."""
    stream = Stream(lm, tokens)
    found: list[list[dict[str, np.ndarray]]] = [[] for _ in levels]
    before: list[np.ndarray | None] = [None for _ in levels]
    ratios = dict.fromkeys(KINDS, 0.0)
    observes = [_Largest(lm.config.layer(l).mlp) for l in range(lm.num_layers)]
    for layer, params, seen in stream.layers(observes):
        kernel = lm.config.layer(layer).matrix("down").of(params)
        seen["sums"] = finite_or(seen["sums"]).astype(np.float64)
        for i, level in enumerate(levels):
            lines = jax.device_get(outlier_lines(kernel, np.float32(level["W_down"])))
            for kind, ratio in _ratios(lines, seen).items():
                ratios[kind] = max(ratios[kind], ratio)
            sets = _sets(lines, seen, level, before[i])
            before[i] = sets[3][0]
            found[i].append(_compare(sets))
    agreements = [
        Agreement(
            levels=level,
            **{name: np.stack([layer[name] for layer in layers], axis=1) for name in layers[0]},
        )
        for level, layers in zip(levels, found, strict=True)
    ]
    return agreements, ratios, stream.nonfinite()


@dataclass(frozen=True)
class _Largest:
    """The `Observe` that keeps the largest magnitudes."""

    mlp: MlpSpec

    def __call__(self, x_in, taps, extra):
        places = {
            "h": reduce_activations(taps["h"], 1),
            "x_down": reduce_x_down(self.mlp, taps, 1),
        }
        names = ("token_max", "channel_max", "mean")
        found = {place: {name: got[name] for name in names} for place, got in places.items()}
        return found | {"sums": taps["attn_sums"]}


def _ratios(lines: tuple, seen: Mapping) -> dict[str, float]:
    def activation(place: str) -> float:
        mean = seen[place]["mean"].astype(np.float64)
        return float(rules.ratio(seen[place]["token_max"].max(axis=1), mean).max())

    sums = seen["sums"]
    return {
        "W_down": float(lines[2]),
        "x_down": activation("x_down"),
        "h": activation("h"),
        "attention": float(rules.ratio(sums.max(axis=-1), sums.mean(axis=-1)).max()),
    }


def _sets(
    lines: tuple, seen: Mapping, level: dict[str, float], before: np.ndarray | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Both index sets of each row as masks: first (N, X), second (N, G, X) with G heads or 1."""
    N = len(seen["sums"])
    columns_F, rows_D, _ = lines

    def over(place: str, what: str) -> np.ndarray:
        mean = seen[place]["mean"][:, None]
        return np.asarray(rules.exceeds(seen[place][what], mean, level[place]))

    h = over("h", "token_max")
    entering = np.zeros_like(h) if before is None else before
    keys = rules.attention_outliers(seen["sums"], level["attention"])
    wide = rules.code_outliers(seen["sums"])
    return [
        (np.broadcast_to(columns_F, (N, *columns_F.shape)), over("x_down", "channel_max")[:, None]),
        (np.broadcast_to(rows_D, (N, *rows_D.shape)), over("h", "channel_max")[:, None]),
        (over("x_down", "token_max"), h[:, None]),
        (h, keys),
        (h, wide),
        (entering, keys),
        (entering, wide),
    ]


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
