"""What `so.compression` returns. Layers, dims, channels and tokens are 0-based."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sysout_jax.analyses.compression.errors import HiddenErrors
from sysout_jax.compress.methods import Settings
from sysout_jax.nonfinite import Nonfinite
from sysout_jax.numerics.intervals import Interval
from sysout_jax.perplexity import Protocol
from sysout_jax.printable import Told
from sysout_jax.storage.serialise import plain


@dataclass(frozen=True)
class Outcome:
    """The model under one method. Intervals are over windows, those of ratios with windows paired."""

    method: str  # a name of METHODS, or "full"
    label: str
    sparsity: float | None
    perplexity: Interval
    ratio: Interval  # over that of full precision
    error: float  # ‖h' − h‖ / ‖h‖ after the last layer, mean over tokens
    nonfinite: int  # elements of h that are NaN or inf, all layers


@dataclass(frozen=True)
class KeptOutcome:
    """The model under one method, but with some of its weights in full precision."""

    what: str  # a name of KEEPS
    weights: int  # kept in full precision
    perplexity: Interval
    error: float  # as in `Outcome`
    control: Interval  # as many random others kept: perplexity over seeds
    control_error: float


@dataclass(frozen=True)
class Attribution:
    """Where a method's error comes from. Everything per layer is (L,)."""

    method: str
    label: str
    perplexity: float  # all layers compressed, nothing kept
    error: float
    perplexity_alone: np.ndarray  # only this layer compressed
    own: HiddenErrors  # of h after this layer, from exact inputs
    accumulated: HiddenErrors  # all layers compressed
    kept: tuple[KeptOutcome, ...]


@dataclass(frozen=True)
class Outliers:
    """Whose share in the error is reported and what is kept. Layers, dims and channels are 0-based."""

    found: bool  # at τ; otherwise the strongest candidates
    tau: float
    level: float  # what counts: τ, or where nothing reaches it a lower one
    layers: tuple[int, ...]  # of birth
    dims: tuple[int, ...]
    channels: tuple[tuple[int, int], ...]  # (layer, channel of W_down)
    labels: tuple[
        str, ...
    ]  # how those channels are called: their numbers, with experts `expert:unit`
    tokens: int  # (sequence, position) pairs


@dataclass(frozen=True)
class Compression(Told):
    """One model under all methods."""

    model: str
    num_layers: int
    parameters: int  # without position embeddings, as nanoGPT counts
    compressed_parameters: int  # weights that quantising methods replace
    settings: Settings  # its sparsity is that of the attribution
    sparsities: tuple[float, ...]
    protocol: Protocol
    calibration: str
    outcomes: tuple[Outcome, ...]  # the first one is full precision
    outliers: Outliers | None
    attributions: tuple[Attribution, ...]
    notes: tuple[str, ...]
    nonfinite: Nonfinite  # in full precision

    def to_dict(self) -> dict:
        """JSON-ready."""
        return plain(self)
