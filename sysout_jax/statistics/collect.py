"""`so.collect`: one streaming pass that gathers weight, activation and attention statistics of every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sysout_jax.calls import check_arguments, check_kind, check_same, check_words
from sysout_jax.engine import Observe, Stream
from sysout_jax.language_model import LanguageModel
from sysout_jax.models.spec import LayerSpec
from sysout_jax.nonfinite import Nonfinite
from sysout_jax.outliers.definitions import TAU
from sysout_jax.printable import html_table
from sysout_jax.statistics import activations, attention, sink_mass, values, weights
from sysout_jax.statistics.activations import ActivationStats
from sysout_jax.statistics.attention import AttentionStats
from sysout_jax.statistics.sink_mass import SinkMassStats
from sysout_jax.statistics.statistic import Layer, Statistic
from sysout_jax.statistics.values import ValueStats
from sysout_jax.statistics.weights import WeightStats
from sysout_jax.storage.serialise import plain

#: Everything that a pass gathers.
STATISTICS: dict[str, Statistic] = {
    "h": activations.H,
    "x_down": activations.X_DOWN,
    "attention": attention.STATISTIC,
    "sink_mass": sink_mass.STATISTIC,
    "values": values.STATISTIC,
    "weights": weights.STATISTIC,
}


@dataclass(frozen=True)
class Stats:
    """Everything one pass over `tokens` (N, T) tells about a model."""

    tokens: np.ndarray  # (N, T)
    tau: float
    gathered: Mapping[str, Any]
    """What `STATISTICS` found, by their names; without those of which the model has no taps."""
    nonfinite: Nonfinite

    @property
    def h(self) -> ActivationStats:
        return self.gathered["h"]

    @property
    def x_down(self) -> ActivationStats:
        return self.gathered["x_down"]

    @property
    def attention(self) -> AttentionStats:
        return self.gathered["attention"]

    @property
    def sink_mass(self) -> SinkMassStats | None:
        """None for a model without extra keys and sink logits."""
        return self.gathered.get("sink_mass")

    @property
    def values(self) -> ValueStats:
        return self.gathered["values"]

    @property
    def weights(self) -> WeightStats:
        return self.gathered["weights"]

    def _repr_html_(self) -> str:
        """A row for each layer, for notebooks."""
        h, x_down, attention = self.h, self.x_down, self.attention
        header = (
            "layer",
            "largest |h| / mean",
            "largest |x_down| / mean",
            "mean |h|",
            "γ of h",
            "sink rate",
        )
        rows = [
            (l + 1, *(f"{values[l]:,.4g}" for values in (h.ratio, x_down.ratio, h.mean, h.severity, attention.sink_rate)))
            for l in range(len(h.ratio))
        ]  # fmt: skip
        N, T = self.tokens.shape
        return html_table(header, rows, f"Statistics of {N} × {T} tokens, τ = {self.tau:g}")

    def to_dict(self) -> dict:
        """JSON-ready numbers of every layer, without what has one value per token or sequence."""
        return plain(
            {name: STATISTICS[name].columns(value) for name, value in self.gathered.items()}
        )


def at_hand(
    stats: Stats | None, lm: LanguageModel, tokens, tau: float, *, same_tau: bool = False
) -> Stats:
    """`stats` where they are given, else those of `collect`. InputError when they are none, of other tokens, or, with `same_tau`, of another τ."""
    if stats is None:
        return collect(lm, tokens, tau)
    check_kind("stats", stats, Stats)
    check_same(
        "stats", stats.tokens, stats.tau, lm.check_tokens(tokens), tau if same_tau else stats.tau
    )
    return stats


def collect(
    lm: LanguageModel, tokens, tau: float = TAU, *, names: Sequence[str] | None = None
) -> Stats:
    """Statistics of all layers over sequences `tokens` (N, T), one layer at a time; see `Stats` for what they are.

    `tau` is the threshold at which attention outliers and overlaps are evaluated; activations can be asked at any threshold
    afterwards. `names` are those of `STATISTICS` that are wanted (default: all); attention needs h. Raises InputError for bad tokens, bad τ and unknown
    names.
    """
    check_arguments(lm, tau=tau)
    names = tuple(STATISTICS) if names is None else check_words("names", names, STATISTICS)
    collecting = Collecting(Stream(lm, tokens), tau, names)
    collecting.stream.run([collecting])
    return collecting.stats()


class Collecting:
    """The `Observer` of `collect`, for a pass of `stream` that others share."""

    def __init__(self, stream: Stream, tau: float, names: Sequence[str] = tuple(STATISTICS)):
        self.stream, self._tau, self._names = stream, tau, tuple(names)
        lm = stream.lm
        self._specs = [lm.config.layer(l) for l in range(lm.num_layers)]
        self._rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}

    def observe(self, layer: int) -> Observe:
        return ObserveStatistics(self._specs[layer], self._names)

    def extra(self, layer: int) -> None:
        return None

    def take(self, layer: int, params: dict, seen: dict[str, Any]) -> None:
        finished = Layer(self._specs[layer], params, self._tau, seen)
        with self.stream.lm.computing():
            for name in seen:
                self._rows[name].append(STATISTICS[name].row(finished))

    def stats(self) -> Stats:
        """After the pass."""
        lm = self.stream.lm
        gathered = {
            name: STATISTICS[name].join(rows, lm.config)
            for name, rows in self._rows.items()
            if len(rows) == lm.num_layers
        }
        return Stats(self.stream.tokens, self._tau, gathered, self.stream.nonfinite())


@dataclass(frozen=True)
class ObserveStatistics:
    """The `Observe` of `collect`: what the named statistics keep of one layer and sequence."""

    spec: LayerSpec
    names: tuple[str, ...] | None = None

    def __call__(self, x_in, taps, extra) -> dict:
        return {
            name: STATISTICS[name].reduce(self.spec, taps)
            for name in self.names or STATISTICS
            if taps.keys() >= set(STATISTICS[name].taps)
        }
