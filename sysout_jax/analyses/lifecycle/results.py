"""What the lifecycle analysis returns. Layers, tokens, channels and dims are 0-based everywhere."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

import numpy as np

from sysout_jax.analyses.lifecycle.sinks import SinkHead
from sysout_jax.analyses.lifecycle.trace import Trace
from sysout_jax.analyses.lifecycle.waves import Waves
from sysout_jax.nonfinite import Nonfinite
from sysout_jax.perplexity import Protocol
from sysout_jax.printable import html_table
from sysout_jax.statistics.collect import Stats
from sysout_jax.storage.serialise import plain


@dataclass(frozen=True)
class Channel:
    """A channel of an MLP, its share in what the MLP does to the outlier dims, and the weights around it."""

    index: int
    label: str  # how it is called: the index, with experts `expert:unit`
    share: float  # of h[d*], along its sign, both summed over outlier elements
    x_down: float  # its activation, mean over outlier tokens
    gate: float | None  # gate before the activation function, None without a gate
    up: float
    column_ratio: float  # extremal ratio of its column of the down projection
    column_rank: int  # 0: the largest extremal ratio of that matrix


@dataclass(frozen=True)
class BirthEvent:
    """One layer in which new outliers appear."""

    layer: int
    dims: tuple[int, ...]  # feature dims d*
    values: tuple[float, ...]  # h[d*], mean over outlier tokens
    tokens: tuple[tuple[int, int], ...]  # (sequence, position) of new outlier tokens
    channels: tuple[Channel, ...]  # c*, strongest first
    explained: float  # share of h[d*] explained by W_down[d*, c*] · x_down[c*]
    from_mlp: float  # share of h[d*] added by this layer's MLP
    from_attention: float
    from_before: float


@dataclass(frozen=True)
class Birth:
    """`layer` is the first layer with activation outliers in h (None without), `events` all layers that add new ones."""

    layer: int | None
    events: tuple[BirthEvent, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(event.layer for event in self.events)

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(sorted({dim for event in self.events for dim in event.dims}))

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels c* of the first birth layer."""
        return tuple(channel.index for channel in self.events[0].channels) if self.events else ()

    @property
    def tokens(self) -> tuple[tuple[int, int], ...]:
        return tuple(sorted({token for event in self.events for token in event.tokens}))


@dataclass(frozen=True)
class Spread:
    """Attention after the birth. `mass` covers all layers and heads, also those before it."""

    heads: tuple[SinkHead, ...]
    mass: np.ndarray  # (L, H)
    even: np.ndarray  # (L,)
    drain: np.ndarray  # (L, K)
    output_drain: np.ndarray  # (L, H)
    update: np.ndarray  # (L, H)
    loudness: np.ndarray  # (L, H)
    overlap: np.ndarray  # (L,) paper's rule
    overlap_code: np.ndarray  # (L,)
    iou: np.ndarray  # (L,)
    iou_code: np.ndarray  # (L,)


@dataclass(frozen=True)
class Opposition:
    """A layer part that pushes against the outliers that enter it."""

    layer: int
    part: str  # mlp or attention
    removed: float  # share of the entering outliers' value; 1 cancels them
    dims: tuple[int, ...]
    channels: tuple[Channel, ...]  # empty for attention


@dataclass(frozen=True)
class Death:
    """`layer` is the first layer after which no outlier is left; None when they survive the last layer (or never lived)."""

    layer: int | None
    last_alive: int | None  # last layer with outliers in h
    oppositions: tuple[Opposition, ...]


@dataclass(frozen=True)
class Effect:
    """The model under one edit, on all sequences. Counts and `ratio` are those of the layers from `Cause.first` on: an edit changes none before."""

    outliers: int  # (layer, sequence, token) triples that hold an activation outlier at τ
    flags: dict[str, int]  # the same at every τ: what is gone at one may be there at another
    ratio: float  # largest |h| over the mean of its sequence: what is left, also under τ
    mass: float  # attention on the original outlier tokens, mean over the heads that were sinks
    perplexity: float  # of every next token
    ratio_per_layer: np.ndarray  # (L,)
    mass_per_layer: np.ndarray  # (L,) mean over all heads of the layer
    nonfinite: int  # elements of h that are NaN or inf, all layers


@dataclass(frozen=True)
class BirthWriter:
    """A channel that carries a birth, and the dims that it is born in."""

    layer: int
    channel: int
    label: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Edit:
    """One of `EDITS`, of all writers of the births at once, beside its controls and the strongest writers alone."""

    weights: int  # that it changes
    effect: Effect
    controls: dict[str, Effect]  # by a name of `CONTROLS`; empty where none is made
    alone: tuple[Effect, ...]  # of each of `Cause.singles`; empty but for elements


@dataclass(frozen=True)
class Cause:
    """What edits of the birth writers W_down[d*, c*] do."""

    heads: int  # over which attention is averaged: those after the birth for which the outlier tokens are sinks, unedited
    writers: tuple[BirthWriter, ...]  # strongest first
    singles: tuple[BirthWriter, ...]  # that are also edited alone; empty where there is only one
    baseline: Effect
    edits: dict[str, Edit]  # by a name of `EDITS`
    first: int  # layer of the first birth that channels carry


@dataclass(frozen=True)
class Largest:
    """The largest activation over the mean of its sequence, whether or not it is an outlier."""

    ratio: float
    value: float
    layer: int
    sequence: int
    token: int
    channel: int
    label: str  # how the channel is called: its number, with experts `expert:unit`


@dataclass(frozen=True)
class Lifecycle:
    """The report. Without outliers at τ, `birth`, `spread`, `death` are empty and `candidate` follows the strongest elements."""

    model: str
    tau: float
    found: bool
    num_layers: int
    num_sequences: int
    length: int
    largest_h: Largest
    largest_x_down: Largest
    flags: dict[str, dict[str, list[int]]]  # place → τ → elements flagged per layer
    waves: Waves  # all lives of large elements, whether or not they cross τ
    birth: Birth
    spread: Spread
    death: Death
    cause: Cause | None
    candidate: Lifecycle | None
    protocol: Protocol  # of every perplexity
    stats: Stats
    trace: Trace | None

    @property
    def nonfinite(self) -> Nonfinite:
        """What is not finite in weights, activations and, where something was followed, likelihoods."""
        traced = self.trace or (self.candidate.trace if self.candidate else None)
        if traced is None:
            return self.stats.nonfinite
        known = traced.nonfinite
        return dataclasses.replace(
            self.stats.nonfinite, predicted=known.predicted, unpredicted=known.unpredicted
        )

    def to_dict(self) -> dict:
        """JSON-ready numbers: everything but the raw trace and the per-token statistics."""
        left_out = ("stats", "trace", "candidate")
        fields = dataclasses.fields(self)
        result = plain({f.name: getattr(self, f.name) for f in fields if f.name not in left_out})
        birth = {
            name: getattr(self.birth, name) for name in ("layers", "dims", "channels", "tokens")
        }
        result["birth"] |= plain(birth)
        result["nonfinite"] = plain(self.nonfinite)
        result["statistics"] = self.stats.to_dict()
        if self.candidate is not None:
            candidate = self.candidate.to_dict()
            result["candidate"] = {
                name: candidate[name] for name in ("tau", "birth", "spread", "death")
            }
        return result

    def _repr_html_(self) -> str:
        """What notebooks show: the waves, with layers counted from 0."""
        rows = [
            (
                ", ".join(map(str, wave.dims[:4])),
                f"{wave.ratio:,.0f}",
                ", ".join((*["embedding"] * wave.embedded, *map(str, wave.born))),
                ", ".join(map(str, wave.ended)),
                len(wave.tokens),
                "yes" if wave.above else "no",
            )
            for wave in self.waves.waves
        ]
        header = ("dims", "times the mean", "written in layer", "taken back in layer", "tokens", f"over τ = {self.tau:g}")  # fmt: skip
        return html_table(header, rows, f"Waves of {self.model}")

    def to_json(self) -> str:
        """`to_dict` as text; NaN and inf become null, so any JSON reader takes it."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)
