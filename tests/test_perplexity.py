"""Perplexity against float64 logits, and the protocol that goes with it."""

from __future__ import annotations

import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.data.text import Windows
from sysout_jax.perplexity import joined_rows, of_mean_nll
from tests.random_models import random_model


def direct(lm, tokens) -> np.ndarray:
    """(N,) mean nll of each window from captured logits, in float64."""
    logits = np.asarray(so.capture(lm, tokens, names=("h",))[0], np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return np.array([
        [-log_p[n, t, tokens[n, t + 1]] for t in range(tokens.shape[1] - 1)] for n in range(len(tokens))
    ]).mean(1)  # fmt: skip


@pytest.mark.parametrize("name", ["llama-gqa", "gpt2"])
def test_against_logits(name):
    seed = int(np.random.default_rng().integers(2**31))
    print("seed", seed)
    lm = random_model(name, seed)
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, lm.config.vocab_size, (4, int(rng.integers(2, 30))))
    found = so.perplexity(lm, Windows(tokens, bos=True, joined_by="\n\n"))
    expected = direct(lm, tokens)
    np.testing.assert_allclose(found.window_nll, expected, rtol=1e-5)
    assert found.nll == pytest.approx(expected.mean(), rel=1e-6)
    assert found.value == pytest.approx(np.exp(expected.mean()), rel=1e-5)
    protocol = found.protocol
    assert (protocol.windows, protocol.length) == tokens.shape
    assert protocol.counted == 4 * (tokens.shape[1] - 1)
    assert protocol.bos and protocol.joined_by == "\n\n" and protocol.overlap == 0
    assert protocol.last_partial_window == "dropped"
    for text in ("4 windows", "with BOS", f"({protocol.counted:,})", r"joined by '\n\n'"):
        assert text in protocol.sentence()


def test_batches_change_nothing():
    lm = random_model("llama-mqa", 3)
    tokens = np.random.default_rng().integers(0, lm.config.vocab_size, (6, 11))
    values = [
        so.perplexity(lm.with_passes(batch_size=size), tokens).window_nll for size in (1, 2, 4, 6)
    ]
    for other in values[1:]:
        np.testing.assert_array_equal(other, values[0])


def test_bad_tokens_and_overflow():
    lm = random_model("gpt2", 0)
    with pytest.raises(so.InputError, match="at least 2 tokens"):
        so.perplexity(lm, np.zeros((3, 1), int))
    with pytest.raises(so.InputError, match="vocabulary"):
        so.perplexity(lm, np.full((1, 4), lm.config.vocab_size))
    assert of_mean_nll(1e4) == np.inf


def test_rows_are_joined_as_wikitext_is_read():
    text = " \n = Title = \n \n First line . \n"
    rows = ["", " = Title = \n", "", " First line . \n"]
    assert joined_rows(text) == "\n\n".join(rows)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0c", "\x0b", "\x1c", "\x1e", "\r"])
def test_only_line_feeds_end_a_row(mark):
    """A separator that Python's `splitlines` also cuts at stands within a row."""
    text = f" one{mark}two \n\nthree"
    assert joined_rows(text) == f" one{mark}two \n\n\n\n\nthree"
