"""`so.by_length`: how outliers and their tokens depend on the length of the text and on BOS (paper D.3, and beyond)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sysout_jax.calls import check_arguments, check_kind, check_list, check_texts
from sysout_jax.checks import Whole
from sysout_jax.data.text import prompt_sequence
from sysout_jax.errors import InputError
from sysout_jax.language_model import LanguageModel
from sysout_jax.nonfinite import Nonfinite, pooled
from sysout_jax.outliers.definitions import (
    TAU,
    TAUS,
    asking,
    attention_on,
    entering,
    is_code_outlier,
    level_of,
    ratio,
)
from sysout_jax.outliers.tokens import TokenClasses
from sysout_jax.printable import Told
from sysout_jax.statistics.collect import collect
from sysout_jax.storage.serialise import plain

#: The paper's four, each a step from the one before.
SENTENCES = (
    "Summer is warm!",
    "Summer is warm! Winter is cold.",
    "Summer is warm! Winter is cold. Spring is good.",
    "Summer is warm! Winter is cold! Spring is good.",
)
SHORTEST = 4


@dataclass(frozen=True)
class Reading:
    """N sequences of T tokens, read by a model."""

    tokens: np.ndarray  # (N, T)
    classes: np.ndarray  # (N, T) int: index of the token class
    ratio: np.ndarray  # (L, N, T) largest |h| of each token over the mean |h| of its sequence
    ratio_x_down: np.ndarray  # (L, N, T) the same for x_down
    received: (
        np.ndarray
    )  # (L, N, T) head-mean column sum of attention over T: share of all attention
    windows: tuple[int | None, ...]  # of attention, one per layer; None without
    counts: np.ndarray  # (len(TAUS),) elements of h flagged at each threshold of TAUS, all layers
    nonfinite: Nonfinite

    def outliers(self, level: float) -> np.ndarray:
        """(N, T) bool: tokens with an element of h over `level` in any layer."""
        return np.asarray((self.ratio > level).any(axis=0))

    def by_class(self, mask_NxT: np.ndarray, num_classes: int) -> np.ndarray:
        """(C,) marked tokens per sequence."""
        return np.bincount(self.classes[mask_NxT], minlength=num_classes) / len(self.tokens)

    def keys_of_code(self) -> np.ndarray:
        """(N, T) bool: keys that the published code's rule flags in any layer."""
        return np.asarray(is_code_outlier(self.received).any(axis=0))

    def share(self, level: float) -> np.ndarray:
        """(L,) attention on the tokens with an element over `level` that enter the layer, mean over heads and over the queries that can see one;
        NaN without."""
        marked_LxNxT = entering(self.ratio > level)
        sums_LxNx1xT = self.received[:, :, None] * self.tokens.shape[1]
        mass_L = np.array(
            [attention_on(*x).sum() for x in zip(sums_LxNx1xT, marked_LxNxT, strict=True)]
        )
        queries_L = np.array(
            [asking(*x).sum() for x in zip(marked_LxNxT, self.windows, strict=True)]
        )
        return np.where(queries_L > 0, mass_L / np.maximum(queries_L, 1), np.nan)


@dataclass(frozen=True)
class Sentence:
    """One text, its tokens as a reader should see them, and the reading of it (N = 1)."""

    text: str
    pieces: tuple[str, ...]
    reading: Reading


@dataclass(frozen=True)
class Point:
    """The first `length` tokens of every sequence, BOS counted where there is one."""

    length: int
    bos: bool
    reading: Reading


@dataclass(frozen=True)
class ByLength(Told):
    """The report. `level` is τ where any text holds an outlier of h at τ, else a share of the largest ratio."""

    model: str
    tau: float
    level: float
    found: bool
    num_layers: int
    bos: bool  # do the sentences start with BOS
    classes: tuple[str, ...]
    sentences: tuple[Sentence, ...]  # those that fit into the model's context
    sweep: tuple[Point, ...]  # by BOS, then by length

    @property
    def readings(self) -> list[Reading]:
        return [s.reading for s in self.sentences] + [point.reading for point in self.sweep]

    @property
    def largest(self) -> float:
        """Largest |h| over the mean of its sequence, in all texts."""
        return max(float(reading.ratio.max()) for reading in self.readings)

    @property
    def nonfinite(self) -> Nonfinite:
        """What is not finite in any of the texts."""
        return pooled([reading.nonfinite for reading in self.readings])

    def to_dict(self) -> dict:
        """JSON-ready numbers."""
        names = "model tau level found num_layers bos classes nonfinite".split()
        result = {name: getattr(self, name) for name in names}
        result["sentences"] = [
            {
                "text": sentence.text,
                "pieces": sentence.pieces,
                "ratio": sentence.reading.ratio[:, 0],
                "received": sentence.reading.received[:, 0],
                "outliers": np.flatnonzero(sentence.reading.outliers(self.level)[0]),
                "keys_of_code": np.flatnonzero(sentence.reading.keys_of_code()[0]),
            }
            for sentence in self.sentences
        ]
        result["sweep"] = [
            {
                "length": point.length,
                "bos": point.bos,
                "ratio": point.reading.ratio.max(axis=(1, 2)),
                "ratio_x_down": point.reading.ratio_x_down.max(axis=(1, 2)),
                "counts": dict(zip(TAUS, point.reading.counts, strict=True)),
                "outlier_tokens": point.reading.by_class(
                    point.reading.outliers(self.level), len(self.classes)
                ),
                "keys_of_code": point.reading.by_class(
                    point.reading.keys_of_code(), len(self.classes)
                ),
                "share_of_outliers": point.reading.share(self.level),
                "share_of_first": point.reading.received[:, :, 0].mean(axis=1),
                "share_of_largest_key": point.reading.received.max(axis=2).mean(axis=1),
            }
            for point in self.sweep
        ]
        return plain(result)


def by_length(
    lm: LanguageModel,
    tokens,
    tau: float = TAU,
    *,
    sentences: Sequence[str] = SENTENCES,
    lengths: Sequence[int] | None = None,
    bos: bool = False,
    classes: TokenClasses | None = None,
) -> ByLength:
    """Read `sentences`, and growing beginnings of `tokens` (N, T; without BOS) with and without BOS, at threshold τ.

    `lengths` are those of `sweep_lengths` unless given; `bos` starts the sentences with BOS; one longer than the model's context
    is left out. Raises InputError for bad tokens and for a model without a tokenizer (or without BOS where it is asked).
    """
    check_arguments(lm, tau=tau)
    check_kind("classes", classes, TokenClasses)
    sentences = check_texts("sentences", sentences)
    if lengths is not None:
        lengths = check_list("lengths", lengths, Whole(1, lm.config.context_length))
    if lm.tokenizer is None:
        raise InputError(f"{lm.name}: token classes need the model's tokenizer; load it with one")
    classes, tokens, tokenizer = classes or TokenClasses(), lm.check_tokens(tokens), lm.tokenizer

    def read(rows: np.ndarray) -> Reading:
        stats = collect(lm, rows, tau, names=("h", "x_down", "attention"))
        return Reading(
            tokens=stats.tokens,
            classes=classes.classify(stats.tokens, tokenizer),
            ratio=_ratio(stats.h),
            ratio_x_down=_ratio(stats.x_down),
            received=(stats.attention.head_mean / rows.shape[1]).astype(np.float32),
            windows=lm.attention_windows(rows.shape[1]),
            counts=stats.h.counts.sum(axis=0),
            nonfinite=stats.nonfinite,
        )

    texts = []
    for text in sentences:
        row = prompt_sequence(tokenizer, text, bos)
        if row.shape[1] > lm.config.context_length:
            continue
        pieces = tuple(tokenizer.token(token) for token in row[0])
        texts.append(Sentence(text, pieces, read(row)))
    points = []
    beginnings = {False: tokens}
    if tokenizer.bos_id is not None:
        beginnings[True] = np.insert(tokens, 0, tokenizer.bos_id, axis=1)
    for with_bos, whole in beginnings.items():
        for length in lengths or sweep_lengths(tokens.shape[1]):
            points.append(Point(length, with_bos, read(whole[:, :length])))
    readings = [s.reading for s in texts] + [point.reading for point in points]
    largest = max(float(reading.ratio.max()) for reading in readings)
    has_outliers = largest > tau
    return ByLength(
        model=lm.name,
        tau=float(tau),
        level=level_of(largest, tau),
        found=has_outliers,
        num_layers=lm.num_layers,
        bos=bos,
        classes=classes.names,
        sentences=tuple(texts),
        sweep=tuple(points),
    )


def sweep_lengths(longest: int) -> tuple[int, ...]:
    """Powers of two from `SHORTEST` on, and the longest."""
    powers = [2**i for i in range(longest.bit_length()) if SHORTEST <= 2**i < longest]
    return (*powers, longest)


def _ratio(place) -> np.ndarray:
    return ratio(place.token_max, place.sequence_mean[..., None]).astype(np.float32)
