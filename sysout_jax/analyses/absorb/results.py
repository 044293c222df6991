"""What `so.absorb` returns. Layers, heads, sequences and tokens are 0-based."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sysout_jax.analyses.absorb.search import Tried
from sysout_jax.analyses.lifecycle.waves import Wave
from sysout_jax.compress.absorption import PrefixKeys
from sysout_jax.language_model import LanguageModel
from sysout_jax.nonfinite import Nonfinite
from sysout_jax.perplexity import Perplexity, Protocol
from sysout_jax.storage.serialise import plain


@dataclass(frozen=True)
class Proof:
    """The absorbed model on the text alone against the original on [prefix, text]."""

    dtype: str
    logits: float  # largest difference, over the first window
    logits_of: float  # largest logit there
    tokens: int  # of that window
    nll: float  # largest difference of the likelihood of a next token, nats, over all windows; NaN for windows of one token


@dataclass(frozen=True)
class Staying:
    """A token of the text that still holds elements of h over the lowest threshold."""

    token: int
    count: int  # (sequence, position) pairs
    ratio: float  # its largest |h| over the mean
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Reading:
    """One model on the text."""

    perplexity: Perplexity
    h_ratio: np.ndarray  # (L,) largest |h| over its sequence's mean
    x_down_ratio: np.ndarray  # (L,)
    h_counts: np.ndarray  # (L, len(TAUS)) elements over each threshold
    x_down_counts: np.ndarray  # (L, len(TAUS))
    first: np.ndarray  # (L, H) attention on the text's first token, mean over queries and sequences
    extra: np.ndarray  # (L, H) attention on the extra keys
    stays: tuple[Staying, ...]  # strongest first
    waves: tuple[Wave, ...]  # over the lowest threshold
    nonfinite: Nonfinite


@dataclass(frozen=True)
class Quantised:
    """Perplexity under one method, with scales calibrated on the model itself."""

    label: str
    before: float
    after: float


@dataclass(frozen=True)
class Absorption:
    """A model with a prefix absorbed, and what that changes."""

    model: LanguageModel
    name: str  # of the original
    family: str
    prefix: tuple[int, ...]
    prefix_text: tuple[str, ...]  # as a reader should see the tokens
    given: bool  # the prefix was, nothing was searched
    keys: PrefixKeys
    proof: Proof
    tau: float
    protocol: Protocol
    even_share: np.ndarray  # (L,) what attention spread evenly over all that a query sees gives the first token, mean over queries
    before: Reading
    after: Reading
    search: tuple[Tried, ...]
    quantised: tuple[Quantised, ...]
    calibration: str  # what the search and the scales were made on

    @property
    def num_layers(self) -> int:
        return len(self.before.h_ratio)

    def to_dict(self) -> dict:
        """JSON-ready; without the model and the arrays of its keys."""
        left_out = ("model", "keys")
        return plain({k: v for k, v in self.__dict__.items() if k not in left_out})
