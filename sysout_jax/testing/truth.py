"""What is planted, and the tokens that show it.

The mean of the definition |h| > τ·mean|h| contains the outliers, so a sequence must be long enough to hold them: with n outlier
elements (tokens times dims) of strength s, the ratio is s / (1 + n·s/(T·D)). `Planted.tokens` asks for a ratio of at least 1500,
that is T·D ≥ 2143·n at the default strength of 5000.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sysout_jax.language_model import LanguageModel

Placement = Literal["first", "middle", "both"]
Wanted = int | tuple[int, ...]  # how many to draw, or which
MIN_RATIO = 1500.0


@dataclass(frozen=True)
class Birth:
    """Where to plant a birth; `dims` and `channels` are how many to draw, or which."""

    layer: int = 1
    dims: Wanted = 1
    channels: Wanted = 1


@dataclass(frozen=True)
class BirthTruth:
    """A planted birth: channels c* write `sign · value` into dims d* at outlier tokens, each its share of it."""

    layer: int
    dims: tuple[int, ...]
    signs: tuple[int, ...]  # of h[d*]
    channels: tuple[int, ...]
    shares: tuple[float, ...]  # of h[d*], one per channel


@dataclass(frozen=True)
class SinkTruth:
    """A planted sink head and the dims of q and k that carry the logit towards outlier tokens, with their shares of it."""

    layer: int
    head: int
    dims: tuple[int, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class PlantedTruth:
    """Everything planted; layers are 0-based. Where `has_outlier` is False it holds at a threshold below `strength` only."""

    has_outlier: bool  # in h at τ = 1000
    strength: float  # h[d*] over the calm mean|h|
    outlier_tokens: tuple[int, ...]  # token ids
    births: tuple[BirthTruth, ...]  # by layer; none at strength 0
    sinks: tuple[SinkTruth, ...]  # by layer and head
    death_layer: int | None  # first layer after which no outlier is left; None when they survive
    death_channels: tuple[int, ...]

    @property
    def birth_layers(self) -> tuple[int, ...]:
        return tuple(birth.layer for birth in self.births)

    @property
    def dims(self) -> tuple[int, ...]:
        """d* of all births, ascending."""
        return tuple(sorted(dim for birth in self.births for dim in birth.dims))

    @property
    def sink_heads(self) -> frozenset[tuple[int, int]]:
        """(layer, head) of all sinks."""
        return frozenset((sink.layer, sink.head) for sink in self.sinks)

    def dims_after(self, layer: int) -> tuple[int, ...]:
        """Outlier dims of h after `layer`, ascending."""
        if self.death_layer is not None and layer >= self.death_layer:
            return ()
        return tuple(sorted(d for birth in self.births if birth.layer <= layer for d in birth.dims))


@dataclass(frozen=True, eq=False)
class Planted:
    """A planted model, the truth about it, and where its outlier tokens go in the sequences that `tokens` draws."""

    lm: LanguageModel
    truth: PlantedTruth
    placement: Placement = "first"

    def tokens(self, num_sequences: int, length: int, seed: int = 0) -> np.ndarray:
        """(N, T) int32: ordinary tokens with one to three outlier tokens in each sequence.

        Placement first: one at position 0; middle: between T/8 and 3T/4; both: position 0 and one or two in the middle.
        Raises ValueError when T·D is too small for outliers to exceed the threshold (see the module's docstring).
        """
        tokens = draw_tokens(
            np.random.default_rng(seed),
            self.lm.config.vocab_size,
            self.truth.outlier_tokens,
            self.placement,
            (num_sequences, length),
        )
        elements = int(self.mask(tokens).sum(1).max()) * len(self.truth.dims)
        size, strength = length * self.lm.config.d_model, self.truth.strength
        if self.truth.has_outlier and strength / (1 + elements * strength / size) < MIN_RATIO:
            least = elements / (1 / MIN_RATIO - 1 / strength)
            raise ValueError(
                f"T·D = {size} is too small for {elements} outlier elements of strength {strength:g}; it must be "
                f"at least {least:.0f}, here a length of {int(np.ceil(least / self.lm.config.d_model))}"
            )
        return tokens

    def mask(self, tokens) -> np.ndarray:
        """Bool, True at the outlier tokens."""
        return np.isin(tokens, self.truth.outlier_tokens)


def draw_tokens(
    rng: np.random.Generator,
    vocab_size: int,
    special: tuple[int, ...],
    placement: Placement,
    shape: tuple[int, int],
) -> np.ndarray:
    T = shape[1]
    tokens = rng.choice(np.setdiff1d(np.arange(vocab_size), special), shape)
    for row in tokens:
        if placement != "first":
            middle = np.arange(max(T // 8, 1), 3 * T // 4)
            count = int(rng.integers(1, 4 if placement == "middle" else 3))
            row[rng.choice(middle, count, replace=False)] = rng.choice(special, count)
        if placement != "middle":
            row[0] = rng.choice(special)
    return tokens.astype(np.int32)
