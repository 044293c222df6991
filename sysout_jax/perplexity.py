"""Perplexity: one function for all analyses, and the protocol that its numbers hold under.

    perplexity = exp(mean over counted tokens of −ln p(token | the tokens before it in its window))

Windows do not overlap, every next token inside a window counts, the first one of each window has nothing before it and does not.
What a text leaves after its last whole window is dropped, so all windows weigh the same. Sums are float64.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from sysout_jax.data.text import Windows
from sysout_jax.engine import Stream, observe_nothing
from sysout_jax.errors import InputError
from sysout_jax.language_model import LanguageModel
from sysout_jax.words import plural

ROWS_JOINED_BY = "\n\n"


@dataclass(frozen=True)
class Protocol:
    """What a perplexity depends on besides the model."""

    windows: int
    length: int  # tokens per window, BOS included
    bos: bool  # every window starts with BOS; the token after it then counts
    counted: int  # predicted tokens: all of a window but its first
    joined_by: str | None  # what stands between the rows of the text; None: the text as it is
    overlap: int = 0  # tokens that neighbouring windows share
    last_partial_window: str = "dropped"

    def sentence(self) -> str:
        """In words."""
        text = "text as it is" if self.joined_by is None else f"rows joined by {self.joined_by!r}"
        return (
            f"{plural(self.windows, 'window')} of {plural(self.length, 'token')}, not overlapping, {'with' if self.bos else 'without'} BOS, {text}; "
            f"all but the first token of each count ({self.counted:,}); a last partial window is dropped"
        )


@dataclass(frozen=True)
class Perplexity:
    """Of a model under a protocol. `window_nll` are means over the counted tokens of each window, for intervals."""

    value: float
    nll: float  # nats per counted token
    window_nll: np.ndarray  # (N,) float64
    protocol: Protocol


def perplexity(lm: LanguageModel, tokens) -> Perplexity:
    """Of `tokens` (N, T) int, a window per row; of `Windows` the protocol says how they were made.

    Raises InputError for bad tokens and for windows of one token.
    """
    stream = Stream(lm, tokens)
    check_predicting(stream)
    for _ in stream.layers(observe_nothing):
        pass
    return perplexity_of(stream)


def check_predicting(stream: Stream) -> None:
    """InputError for windows of one token, before anything is computed."""
    if stream.tokens.shape[1] < 2:
        raise InputError("windows of one token predict nothing; expected at least 2 tokens each")


def perplexity_of(stream: Stream) -> Perplexity:
    """The same of a stream that has gone through all layers; NaN for windows of one token."""
    nll_NxT = stream.nll().astype(np.float64)
    window_nll = nll_NxT.mean(axis=1) if nll_NxT.shape[1] else np.full(len(nll_NxT), np.nan)
    mean = float(window_nll.mean())
    return Perplexity(of_mean_nll(mean), mean, window_nll, protocol_of(stream.windows))


def protocol_of(windows: Windows) -> Protocol:
    """How the perplexity of these windows is measured; one sequence alone is one window."""
    count, length = np.shape(np.atleast_2d(windows.tokens))
    return Protocol(count, length, windows.bos, count * (length - 1), windows.joined_by)


def of_mean_nll(nll: float) -> float:
    """Perplexity of a mean negative log-likelihood; inf where it overflows."""
    with np.errstate(over="ignore"):
        return float(np.exp(np.float64(nll)))


def joined_rows(text: str) -> str:
    """The lines of a text as rows joined by a blank line, blank ones empty: how the WikiText-2 test set is usually read.

    A line feed alone ends a row; `str.splitlines` would also cut at form feeds and at Unicode's separators.
    """
    rows = io.StringIO(text, newline="\n")
    return ROWS_JOINED_BY.join(row if row.strip() else "" for row in rows)
