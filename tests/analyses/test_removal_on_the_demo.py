"""The tables of docs/removal.md, from a real model: SmolLM2-135M, the first 2 windows of 512 tokens of WikiText-2 as it is."""

from __future__ import annotations

import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analyses.absorb.measure import QUANTISED
from sysout_jax.analyses.absorb.search import chosen, search
from sysout_jax.compress.absorption import absorbed, prefix_keys
from sysout_jax.compress.inputs import calibrate
from sysout_jax.compress.methods import Compressor
from sysout_jax.data.text import read_text, text_windows
from sysout_jax.interventions.weights import edited

pytestmark = [pytest.mark.endurance, pytest.mark.optimised]

LINE = "\n"


@pytest.fixture(scope="module")
def lm(smollm2) -> so.LanguageModel:
    return so.load(smollm2).reading_once()


@pytest.fixture(scope="module")
def windows(lm, shared_data):
    """Those that are analysed, and others."""
    texts = (
        read_text(shared_data / "text" / f"wikitext2-{split}.txt") for split in ("test", "valid")
    )
    return [text_windows(lm.tokenizer, text, 2, 512, bos=False) for text in texts]


def with_prefix(lm: so.LanguageModel, text: str) -> so.LanguageModel:
    return absorbed(lm, prefix_keys(lm, lm.tokenizer.encode(text))) if text else lm


@pytest.mark.parametrize(
    ("prefix", "perplexity", "ratio"),
    [("", 20.47, 8350), (LINE, 19.64, 422), ("<|endoftext|>", 20.08, 482), ("<|im_start|>", 19.86, 3332)],
)  # fmt: skip
def test_perplexity_and_largest_ratio(lm, windows, prefix, perplexity, ratio):
    one = with_prefix(lm, prefix)
    assert so.perplexity(one, windows[0]).value == pytest.approx(perplexity, rel=0.01)
    assert so.collect(one, windows[0]).h.ratio.max() == pytest.approx(ratio, rel=0.01)


def test_static_scales_gain(lm, windows):
    """36.59 → 22.22 and 40.18 → 24.56 are known. They are not sharp: weights changed by a millionth move each by up to 4 %, the text of
    the calibration by as much (docs/removal.md)."""
    models = [lm, with_prefix(lm, LINE)]
    made = [Compressor(one, calibration=calibrate(one, windows[1])) for one in models]
    for method, low, high in zip(QUANTISED, (22.22, 24.56), (36.59, 40.18), strict=True):
        before, after = (so.perplexity(one.model(method), windows[0]).value for one in made)
        assert before == pytest.approx(high, rel=0.1) and after == pytest.approx(low, rel=0.1)


def test_the_search_finds_a_prefix_as_good_as_a_line_end(lm, windows):
    tried = search(lm, windows[1])
    (line,) = (one for one in tried if one.prefix == tuple(lm.tokenizer.encode(LINE)))
    assert chosen(tried).ratio <= line.ratio < tried[0].ratio / 10


def test_row_507_of_layer_12_carries_the_loss(lm, windows):
    """A census of another checkpoint, SmolLM2-135M in full precision, puts +313 % on it, on a text that is not told."""
    without = edited(lm, {11: (np.array([0]), np.array([507]))}, "row")
    before, after = (np.log(so.perplexity(one, windows[0]).value) for one in (lm, without))
    assert 3 < after / before - 1 < 4.5
