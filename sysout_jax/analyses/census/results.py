"""What `so.census` returns. Layers, rows (dims) and columns (channels) are 0-based; ranks begin at 1."""

from __future__ import annotations

from dataclasses import dataclass

from sysout_jax.analyses.census.writers import Writer
from sysout_jax.nonfinite import Nonfinite
from sysout_jax.numerics.intervals import Interval
from sysout_jax.perplexity import Protocol
from sysout_jax.printable import Told
from sysout_jax.storage.serialise import plain


@dataclass(frozen=True)
class Effect:
    """The model under one edit. Intervals are over sequences, those of changes with sequences paired."""

    edit: str  # a name of EDITS, or of a control's
    perplexity: Interval
    loss_change: Interval  # mean loss over that of the unedited model, less 1
    ratio: float  # largest |h| over the mean of its sequence that is left
    nonfinite: int  # elements of h that are NaN or inf, all layers


@dataclass(frozen=True)
class Control:
    """A random counterpart of an edit, over seeds."""

    kind: str  # a name of CONTROLS
    effect: Effect


@dataclass(frozen=True)
class Entry:
    """A writer with the effects of its edits and of their controls."""

    writer: Writer
    effects: tuple[Effect, ...]
    controls: tuple[Control, ...]

    def effect(self, edit: str) -> Effect:
        """KeyError without."""
        return {effect.edit: effect for effect in self.effects}[edit]


@dataclass(frozen=True)
class Pair:
    """Two writers edited at once, beside each of them alone."""

    first: int  # of the entries
    second: int
    together: Effect
    excess: Interval  # change of the loss together, less the sum of both alone

    @property
    def edit(self) -> str:
        return self.together.edit


@dataclass(frozen=True)
class Agreement:
    """How far a ranking orders the measured effects."""

    ranking: str  # a name of RANKINGS
    edit: str  # a name of EDITS
    writers: int
    correlation: float  # Spearman's ρ of the ranking's value and the change of the loss; NaN where they are too few


@dataclass(frozen=True)
class Census(Told):
    """The writers of one model, the largest write first."""

    model: str
    tau: float
    num_layers: int
    num_sequences: int
    length: int
    count: int  # strongest by each ranking
    num_seeds: int
    protocol: Protocol
    perplexity: Interval  # unedited
    loss: float  # unedited, nats
    largest: float  # largest |h| over its sequence's mean, unedited
    entries: tuple[Entry, ...]
    pairs: tuple[Pair, ...]
    agreements: tuple[Agreement, ...]
    nonfinite: Nonfinite  # of the unedited model

    def to_dict(self) -> dict:
        """JSON-ready."""
        return plain(self)
