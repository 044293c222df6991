"""Waves: the lives of large elements of h, found from what layers write into the residual stream, whatever τ is.

A real model may write a dim, take it back and write it again, each time at other tokens. One threshold hides that: what stays
under τ is not seen, and tokens pooled over all layers belong to no life. A wave is such a life; all are told in order.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sysout_jax.analyses.lifecycle.wave_spread import Entering, Place, Spreading, WaveSpread
from sysout_jax.analyses.lifecycle.writes import Followed, Writes
from sysout_jax.config import ModelConfig
from sysout_jax.engine import Stream
from sysout_jax.language_model import LanguageModel
from sysout_jax.outliers import definitions as rules
from sysout_jax.statistics.activations import ActivationStats

MINOR = 0.5  # a layer that writes to less than this share of the busiest one's elements, and of their strength, is not named
SPREADS = 12  # strongest waves whose spread is told
SWEEP = (*rules.TAUS, 10_000.0)  # thresholds at which waves are counted


@dataclass(frozen=True)
class Write:
    """What one layer writes to the elements of a wave."""

    layer: int
    share: float  # of the wave's peak (births) or of what enters the layer (deaths, positive); mean over the elements written to
    from_mlp: float  # part of it that the MLP writes; the rest is attention's
    elements: int  # elements of the wave written to
    #: of the MLP: index, share of what the MLP writes; empty with experts
    channels: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Wave:
    """One life. Layers, sequences, tokens and dims are 0-based."""

    dims: tuple[int, ...]  # strongest first
    tokens: tuple[tuple[int, int], ...]  # (sequence, token), strongest first
    births: tuple[Write, ...]
    embedded: bool  # the embedding writes it, at least in part
    #: empty where it survives the last layer, or fades without a write against it
    deaths: tuple[Write, ...]
    first: int  # first layer whose output holds it
    last: int  # last layer whose output holds it, somewhere
    alive: np.ndarray  # (L,) int: tokens of it that the output of each layer holds
    course: np.ndarray  # (L,) largest |h| of its elements over the mean of their sequence, also where they are not alive
    living: np.ndarray  # (L,) the same of those that are alive; NaN where none is
    spread: WaveSpread | None  # None where not asked for, and of all but the strongest `SPREADS`
    ratio: float  # largest |h| over the mean of its sequence
    value: float  # h there
    peak: int  # layer of it
    above: bool  # an outlier at τ

    @property
    def born(self) -> tuple[int, ...]:
        """Layers that write it."""
        return tuple(write.layer for write in self.births)

    @property
    def ended(self) -> tuple[int, ...]:
        """Layers that take it back."""
        return tuple(write.layer for write in self.deaths)

    @property
    def first_tokens(self) -> int:
        """How many of its tokens are the first of their sequence."""
        return sum(token == 0 for _, token in self.tokens)

    @property
    def survives(self) -> bool:
        """Whether the last layer's output holds it."""
        return bool(self.alive[-1])


@dataclass(frozen=True)
class Waves:
    """All waves whose peak exceeds `level` times the mean, by the layer they are born in."""

    level: float
    waves: tuple[Wave, ...]
    dims_left_out: int  # weaker dims over the level that are not followed
    #: τ → waves over it, layers that give birth to one, layers that end one
    sweep: dict[float, tuple[int, int, int]]


class Life(NamedTuple):
    """One life of one element."""

    element: int
    births: tuple[int, ...]
    deaths: tuple[int, ...]
    first: int
    last: int
    peak: int
    embedded: bool = False


def find_waves(lm: LanguageModel, tokens: np.ndarray, stats: ActivationStats, tau: float) -> Waves:
    """One pass over all `tokens` (N, T), at every token that holds an element over the level in some layer; `stats` are those of h.

    Their spread is not told: that takes another pass.
    """
    writes = writes_to_follow(lm.config, stats, tau)
    if not writes.nothing:
        Stream(lm, tokens).run([writes])
    return waves_of(writes, tau)


def writes_to_follow(config: ModelConfig, stats: ActivationStats, tau: float) -> Writes:
    """What a pass has to look at so that `waves_of` finds the waves."""
    return Writes(
        config, stats, rules.level_of(float(stats.ratio.max()), min(tau, min(rules.TAUS)))
    )


def waves_of(writes: Writes, tau: float, spread: Spreading | None = None) -> Waves:
    """After the pass; `spread` tells what attention does with a wave's tokens."""
    if writes.nothing:
        return Waves(writes.level, (), 0, dict.fromkeys(SWEEP, (0, 0, 0)))
    followed, level = writes.followed, writes.level
    lives = [life for k in range(followed.h.shape[1]) for life in lives_of(k, followed, level)]
    told = [_wave(group, followed, tau) for group in grouped(lives, followed.places)]
    told.sort(key=lambda wave_entering: (wave_entering[0].first, -wave_entering[0].ratio))
    waves = [wave for wave, _ in told]
    if spread:
        strongest = sorted(range(len(told)), key=lambda i: -waves[i].ratio)[:SPREADS]
        for i, its in zip(strongest, spread([told[i][1] for i in strongest]), strict=True):
            waves[i] = dataclasses.replace(waves[i], spread=its)
    sweep = {at: _counted([wave for wave in waves if wave.ratio > at]) for at in SWEEP}
    return Waves(level, tuple(waves), writes.dims_left_out, sweep)


def lives_of(k: int, followed: Followed, level: float) -> list[Life]:
    """The lives of element k whose peak exceeds the level.

    It lives from a write, or an embedding, of at least `WRITE_SHARE` of its peak until |h| falls under `ALIVE_SHARE` of the peak, or h changes sign.
    """
    h_L, x_L = followed.h[:, k], followed.x_in[:, k]
    lives, start = [], 0
    while start < len(h_L):
        sign, largest, end = np.sign(h_L[start]), 0.0, start
        while end < len(h_L):
            value = abs(h_L[end]) if np.sign(h_L[end]) == sign else 0.0
            largest = max(largest, value)
            if end > start and (not largest or value < rules.ALIVE_SHARE * largest):
                break
            end += 1
        # h[start:end] is one rise and what is left of it; layer `end` ends it, and may begin the next one
        life = _life(k, sign * (h_L - x_L), sign * x_L, sign * h_L, start, end)
        if life and ratios_of(life, followed).max() > level:
            lives.append(life)
        start = max(end, start + 1)
    return lives


def ratios_of(life: Life, followed: Followed) -> np.ndarray:
    """|h| of its element over the mean |h| of the sequence, in each layer that it lives in. The largest need not be where |h| is: the mean grows too."""
    within = slice(life.first, life.last + 1)
    return rules.ratio(
        np.abs(followed.h[within, life.element]), followed.mean[within, life.element]
    )


def _life(k: int, write_L, before_L, after_L, start: int, end: int) -> Life | None:
    peak = start + int(np.argmax(after_L[start:end]))
    largest = after_L[peak]
    births = [l for l in range(start, peak + 1) if write_L[l] >= rules.WRITE_SHARE * largest]
    embedded = start == 0 and largest > 0 and before_L[0] >= rules.WRITE_SHARE * largest
    if not births and not embedded:
        risen = write_L[start : peak + 1]
        if after_L[peak] <= 0 or np.maximum(risen, 0).sum() < largest / 2:
            return None  # what another life left over
        births = [start + int(np.argmax(risen))]  # it grows slowly
    last = min(end, len(after_L)) - 1
    deaths = [
        l
        for l in range(peak + 1, min(end + 1, len(after_L)))
        if -write_L[l] >= rules.WRITE_SHARE * before_L[l]
    ]
    first = start if embedded else births[0]
    return Life(k, tuple(births), tuple(deaths), first, last, peak, embedded)


def grouped(lives: Iterable[Life], places: np.ndarray) -> list[list[Life]]:
    """Lives of elements at `places` (K, 3) that share a layer of birth, or the embedding, and a token or a dim, directly or through others, are one wave."""
    groups: list[tuple[set[tuple], list[Life]]] = []
    for life in lives:
        sequence, token, dim = places[life.element].tolist()
        writers = (*life.births, *(["embedding"] if life.embedded else []))
        shared = {(writer, *at) for writer in writers for at in ((sequence, token), (dim,))}
        members, apart = [life], []
        for other in groups:
            if other[0] & shared:
                shared |= other[0]
                members = other[1] + members
            else:
                apart.append(other)
        groups = [*apart, (shared, members)]
    return [members for _, members in groups]


def _wave(lives: Sequence[Life], followed: Followed, tau: float) -> tuple[Wave, Entering]:
    """Without its spread, but with the tokens of it that enter each layer alive."""
    elements = np.array([life.element for life in lives])
    courses = [ratios_of(life, followed) for life in lives]
    ratios = np.array([course.max() for course in courses])
    alive: list[set[Place]] = [set() for _ in followed.h]
    living = np.full(len(followed.h), np.nan)
    embedded: set[Place] = set()
    for life, course in zip(lives, courses, strict=True):
        sequence, token, _ = followed.places[life.element].tolist()
        within = slice(life.first, life.last + 1)
        living[within] = np.fmax(living[within], course)
        for tokens in alive[within]:
            tokens.add((sequence, token))
        if life.embedded:
            embedded.add((sequence, token))
    held = np.flatnonzero(np.isfinite(living))
    best = int(np.argmax(ratios))
    peak = lives[best].first + int(np.argmax(courses[best]))
    order = np.argsort(-ratios, kind="stable")
    places = followed.places[elements[order]].tolist()
    distinct = np.unique(elements)
    ratio_LxK = rules.ratio(np.abs(followed.h[:, distinct]), followed.mean[:, distinct])
    wave = Wave(
        dims=tuple(dict.fromkeys(d for _, _, d in places)),
        tokens=tuple(dict.fromkeys((n, t) for n, t, _ in places)),
        births=_writes(lives, ratios, followed, "births"),
        embedded=bool(embedded),
        deaths=_writes(lives, ratios, followed, "deaths"),
        first=int(held[0]),
        last=int(held[-1]),
        alive=np.array([len(tokens) for tokens in alive]),
        course=ratio_LxK.max(axis=1),
        living=living,
        spread=None,
        ratio=float(ratios[best]),
        value=float(followed.h[peak, elements[best]]),
        peak=peak,
        above=bool(ratios[best] > tau),
    )
    return wave, [embedded, *alive[:-1]]


def _writes(
    lives: Sequence[Life], ratios: np.ndarray, followed: Followed, kind: str
) -> tuple[Write, ...]:
    """Per layer, but for those that write to few of the elements and to weak ones: many weak elements do not hide a strong one."""
    written_2xL = np.zeros((2, len(followed.h)))  # elements, and their strength
    for life, ratio in zip(lives, ratios, strict=True):
        written_2xL[:, list(getattr(life, kind))] += [[1.0], [ratio]]
    much = (written_2xL >= MINOR * written_2xL.max(axis=1, keepdims=True)).any(axis=0)
    writes = []
    for layer in np.flatnonzero(much & (written_2xL[0] > 0)).tolist():
        here = [life for life in lives if layer in getattr(life, kind)]
        k = np.array([life.element for life in here])
        write = followed.h[layer, k] - followed.x_in[layer, k]
        peaks = np.array([life.peak for life in here])
        whole = followed.h[peaks, k] if kind == "births" else -followed.x_in[layer, k]
        total = np.abs(write).sum()
        parts = (followed.down[layer, k] * np.sign(write)).sum() / total if total > 0 else 0.0
        dims = Counter(int(followed.places[i, 2]) for i in k)
        channels = followed.channels[layer].get((kind, dims.most_common(1)[0][0]), ())
        share = float(np.mean(write / whole))
        writes.append(Write(layer, share, float(parts), len(k), channels))
    return tuple(writes)


def _counted(waves: Sequence[Wave]) -> tuple[int, int, int]:
    births = {write.layer for wave in waves for write in wave.births}
    deaths = {write.layer for wave in waves for write in wave.deaths}
    return len(waves), len(births), len(deaths)
