"""`so.positions`: in which layers, tokens, channels, matrices, keys and heads outliers are (paper Figures 3–6)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sysout_jax.calls import check_arguments, check_kind
from sysout_jax.errors import InputError
from sysout_jax.language_model import LanguageModel
from sysout_jax.outliers.definitions import (
    TAU,
    TAUS,
    asking,
    attention_on,
    candidate_level,
    entering,
    even_share_of,
    level_of,
)
from sysout_jax.outliers.tokens import TokenClasses
from sysout_jax.printable import Told
from sysout_jax.statistics.activations import ActivationStats
from sysout_jax.statistics.collect import Stats, at_hand
from sysout_jax.storage.serialise import plain

MAX_TEXTS = 12  # most frequent token texts that are named
MAX_CHANNELS = 64  # channels named per layer
CLOSE_UPS = 3  # matrices


@dataclass(frozen=True)
class TokenCounts:
    """Classes and texts of the tokens that a mask (L, N, T) marks."""

    per_layer: np.ndarray  # (L, C) marked (sequence, token) pairs by class
    once: np.ndarray  # (C,) those marked in any layer, each counted once
    born: np.ndarray  # (L,) those marked here and in no earlier layer
    texts: tuple[tuple[str, str, int], ...]  # text, class, count of `once`; most frequent first
    positions: np.ndarray  # (n,) position in the sequence of each of `once`, ascending


@dataclass(frozen=True)
class Place:
    """Outliers in `h` or `x_down` at `level`, which is τ where there are any and a share of the largest ratio else."""

    found: bool  # at τ
    level: float
    layers: tuple[int, ...]
    tokens: TokenCounts
    channels: np.ndarray  # (L, C) bool
    close_ups: tuple[int, ...]  # the shallowest and the deepest of `layers`


@dataclass(frozen=True)
class Matrix:
    """A matrix of a layer and the column of largest extremal ratio in it."""

    layer: int
    module: str
    column: int
    label: (
        str  # how the column is called: its number, with experts `expert:unit` of a down projection
    )
    ratio: float


@dataclass(frozen=True)
class Keys:
    """Attention outliers. `rule`: paper (some head's column sum > τ · mean), code (head mean ≥ T / 10), or candidate (head mean
    over a share of the largest) where neither rule flags a key."""

    rule: str
    layers: tuple[int, ...]
    tokens: TokenCounts
    top: (
        np.ndarray
    )  # (L, 2) largest head-mean column sums of a sequence, mean over sequences; 0 at T = 1
    median: np.ndarray  # (L,) median of them, mean over sequences
    share: np.ndarray  # (L, H) attention on the outlier tokens of h that enter the layer, mean over the queries of all sequences that can see one; NaN without
    share_low: np.ndarray  # (L, H) smallest mean of a sequence
    share_high: np.ndarray  # (L, H) largest mean of a sequence
    even: np.ndarray  # (L,) what even attention would give them


@dataclass(frozen=True)
class Positions(Told):
    """The report. Layers, tokens, channels and heads are 0-based."""

    model: str
    tau: float
    num_layers: int
    num_sequences: int
    length: int
    classes: tuple[str, ...]  # the C token classes
    all_tokens: np.ndarray  # (C,) of all analysed tokens, to compare with
    h: Place
    x_down: Place
    matrices: tuple[Matrix, ...]  # of largest extremal ratio, strongest first
    keys: Keys
    stats: Stats

    @property
    def found(self) -> bool:
        """Is there an activation outlier at τ, in h or x_down?"""
        return self.h.found or self.x_down.found

    def to_dict(self) -> dict:
        """JSON-ready numbers; `statistics` are those of every layer."""
        names = "model tau num_layers num_sequences length found all_tokens matrices classes"
        result = {name: getattr(self, name) for name in names.split()}
        for name in ("h", "x_down"):
            place, ratio = getattr(self, name), getattr(self.stats, name).channel_ratio
            result[name] = {
                "found": place.found,
                "level": place.level,
                "layers": place.layers,
                "close_ups": place.close_ups,
                "tokens": place.tokens,
                "channels": [
                    {int(c): row[c] for c in strongest(row, mask, MAX_CHANNELS)}
                    for row, mask in zip(ratio, place.channels, strict=True)
                ],
                "counts": dict(zip(TAUS, getattr(self.stats, name).counts.T, strict=True)),
                "sequence_top": getattr(self.stats, name).sequence_top.mean(axis=1),
            }
        flagged = dict(zip(TAUS, self.stats.attention.counts.T, strict=True))
        result["keys"] = plain(self.keys) | {"counts": flagged}
        result["nonfinite"] = self.stats.nonfinite
        return plain(result | {"statistics": self.stats.to_dict()})


def positions(
    lm: LanguageModel,
    tokens,
    tau: float = TAU,
    *,
    classes: TokenClasses | None = None,
    stats: Stats | None = None,
) -> Positions:
    """Where the outliers of a model are on `tokens` (N, T), at threshold τ; one pass.

    `classes` replaces the lists of token classes, `stats` are those of `collect` on the same tokens. Raises
    InputError for bad tokens and for a model without a tokenizer.
    """
    check_arguments(lm, tau=tau)
    check_kind("classes", classes, TokenClasses)
    if lm.tokenizer is None:
        raise InputError(f"{lm.name}: token classes need the model's tokenizer; load it with one")
    classes = classes or TokenClasses()
    stats = at_hand(stats, lm, tokens, tau, same_tau=True)
    count = _Counter(stats.tokens, classes, lm)
    h, x_down = (_place(place, tau, count) for place in (stats.h, stats.x_down))
    windows = lm.attention_windows(stats.tokens.shape[1])
    return Positions(
        model=lm.name,
        tau=float(tau),
        num_layers=lm.num_layers,
        num_sequences=stats.tokens.shape[0],
        length=stats.tokens.shape[1],
        classes=classes.names,
        all_tokens=np.bincount(count.classes.ravel(), minlength=len(classes.names)),
        h=h,
        x_down=x_down,
        matrices=_matrices(stats),
        keys=_keys(stats, count, entering(stats.h.outlier_tokens(h.level)), windows),
        stats=stats,
    )


class _Counter:
    """Counts what masks mark, by class and text."""

    def __init__(self, tokens_NxT: np.ndarray, classes: TokenClasses, lm: LanguageModel):
        assert lm.tokenizer is not None
        self.tokens, self.tokenizer, self.names = tokens_NxT, lm.tokenizer, classes.names
        self.classes = classes.classify(tokens_NxT, lm.tokenizer)  # (N, T)

    def __call__(self, mask_LxNxT: np.ndarray) -> TokenCounts:
        ever = np.asarray(mask_LxNxT.any(axis=0))
        first = np.where(ever, mask_LxNxT.argmax(axis=0), -1)
        kinds = Counter(zip(self.tokens[ever].tolist(), self.classes[ever].tolist(), strict=True))
        return TokenCounts(
            per_layer=np.stack([self._by_class(mask) for mask in mask_LxNxT]),
            once=self._by_class(ever),
            born=np.bincount(first[ever], minlength=len(mask_LxNxT)),
            texts=tuple(
                (self.tokenizer.token(token), self.names[kind], count)
                for (token, kind), count in kinds.most_common(MAX_TEXTS)
            ),
            positions=np.sort(np.nonzero(ever)[1]),
        )

    def _by_class(self, mask_NxT: np.ndarray) -> np.ndarray:
        return np.bincount(self.classes[mask_NxT], minlength=len(self.names))


def _place(stats: ActivationStats, tau: float, count: _Counter) -> Place:
    has_outliers = bool((stats.ratio > tau).any())
    level = level_of(float(stats.ratio.max()), tau)
    tokens = stats.outlier_tokens(level)
    layers = tuple(int(l) for l in np.flatnonzero(tokens.any(axis=(1, 2))))
    return Place(
        found=has_outliers,
        level=level,
        layers=layers,
        tokens=count(tokens),
        channels=stats.outlier_channels(level),
        close_ups=tuple(sorted({layers[0], layers[-1]})) if layers else (),
    )


def _matrices(stats: Stats) -> tuple[Matrix, ...]:
    ratio_LxM = stats.weights.column_ratio
    order = np.argsort(-ratio_LxM.ravel(), kind="stable")[:CLOSE_UPS]
    places = [np.unravel_index(i, ratio_LxM.shape) for i in order]
    return tuple(
        Matrix(
            layer=int(layer),
            module=stats.weights.modules[m],
            column=int(stats.weights.column[layer, m]),
            label=(stats.x_down.label if stats.weights.modules[m] == "down" else str)(
                int(stats.weights.column[layer, m])
            ),
            ratio=float(ratio_LxM[layer, m]),
        )
        for layer, m in places
    )


def _keys(
    stats: Stats, count: _Counter, marked_LxNxT: np.ndarray, windows: Sequence[int | None]
) -> Keys:
    attention, T = stats.attention, stats.tokens.shape[1]
    asked = list(zip(marked_LxNxT, windows, strict=True))
    queries_LxNx1 = np.stack([asking(*layer) for layer in asked])[..., None]
    mass_LxNxH = np.stack(list(map(attention_on, attention.sums, marked_LxNxT)))
    seen_LxNx1 = queries_LxNx1 > 0
    share_LxNxH = mass_LxNxH / np.where(seen_LxNx1, queries_LxNx1, 1)
    some_Lx1 = seen_LxNx1.any(axis=1)
    mean_LxNxT = attention.head_mean
    rule, mask = "paper", attention.key_heads > 0
    if not mask.any():
        rule, mask = "code", attention.code_outlier_tokens
    if not mask.any():
        # all zero or not finite: nothing is a candidate
        most = mean_LxNxT.max()
        rule, mask = "candidate", (mean_LxNxT > candidate_level(most)) & (most > 0)
    largest = -np.sort(-mean_LxNxT, axis=2)[..., :2].mean(axis=1)
    return Keys(
        rule=rule,
        layers=tuple(int(l) for l in np.flatnonzero(mask.any(axis=(1, 2)))),
        tokens=count(mask),
        top=np.pad(largest, ((0, 0), (0, 2 - min(T, 2)))),
        median=np.median(mean_LxNxT, axis=2).mean(axis=1),
        share=np.where(some_Lx1, mass_LxNxH.sum(1) / np.maximum(queries_LxNx1.sum(1), 1), np.nan),
        share_low=np.where(some_Lx1, share_LxNxH.min(1, where=seen_LxNx1, initial=np.inf), np.nan),
        share_high=np.where(
            some_Lx1, share_LxNxH.max(1, where=seen_LxNx1, initial=-np.inf), np.nan
        ),
        even=np.array([even_share_of(*layer) for layer in asked]),
    )


def strongest(ratio_C: np.ndarray, mask_C: np.ndarray, most: int) -> np.ndarray:
    """Marked channels, largest ratio first, at most `most`."""
    marked = np.flatnonzero(mask_C)
    return marked[np.argsort(-ratio_C[marked], kind="stable")[:most]]
