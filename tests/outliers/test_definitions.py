"""The rules by hand on a few numbers, what they say where nothing is to be compared with, and that the library asks them."""

from __future__ import annotations

import inspect
import re
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.data.demo import byte_tokenizer
from sysout_jax.outliers import definitions
from tests.random_models import random_model

LIBRARY = Path(so.__file__).parent
RULES = [name for name, _ in inspect.getmembers(definitions, inspect.isfunction)]


@pytest.mark.parametrize("name", RULES)
def test_every_rule_has_a_caller(name):
    """In another file, or in another rule that has one."""
    for path in LIBRARY.rglob("*.py"):
        text = path.read_text()
        called = re.findall(rf"(?<!def )\b{name}\(", text)
        if called and path.name == "definitions.py":
            called = re.findall(rf"(?<!def )(?<!\.)\b{name}\(", text)
        if called:
            return
    pytest.fail(f"nobody calls {name}")


@pytest.mark.parametrize("xp", [np, jnp])
def test_ratio_and_kurtosis_of_nothing_are_0(xp):
    zero = xp.zeros(2)
    np.testing.assert_array_equal(definitions.ratio(xp.ones(2), zero), 0)
    np.testing.assert_array_equal(definitions.ratio(xp.ones(2), xp.full(2, 0.25)), 4)
    np.testing.assert_array_equal(definitions.excess_kurtosis(zero, zero), 0)
    np.testing.assert_array_equal(definitions.excess_kurtosis(xp.full(2, 8.0), xp.full(2, 2.0)), -1)


def test_levels():
    assert definitions.level_of(2000.0, 1000.0) == 1000.0
    assert definitions.level_of(400.0, 1000.0) == definitions.candidate_level(400.0) == 300.0
    assert definitions.reachable(7.0, 8) and not definitions.reachable(8.0, 8)


@pytest.mark.parametrize("xp", [np, jnp])
def test_sinks(xp):
    """α of the first token is its column sum over T, and that of a later one over the queries that see it."""
    cumulative_NxHxT = xp.asarray([[[1.3, 0.9, 0.9, 0.9], [1.1, 2.0, 0.6, 0.3]]])
    alpha = definitions.sink_scores(cumulative_NxHxT)
    np.testing.assert_allclose(alpha[0, 1], [0.275, 2 / 3, 0.3, 0.3], rtol=1e-6)
    assert float(definitions.sink_rate(cumulative_NxHxT)) == 0.5
    # of four tokens even attention gives the first one more than half
    assert definitions.even_share(4) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert not definitions.is_sink(alpha[0, 0, 0], definitions.even_share(4))


@pytest.mark.parametrize("window", [None, 1, 3, 7, 50])
def test_shares_where_a_window_ends_the_sight(window):
    """Against whole maps: even attention of 7 tokens, and one in which every query gives its whole attention to the oldest key it sees."""
    T = 7
    i, j = np.mgrid[:T, :T]
    sees = (j <= i) & (i - j < (window or T))
    even = sees / sees.sum(1, keepdims=True)
    oldest = np.eye(T)[sees.argmax(1)]
    assert definitions.even_share(T, window) == pytest.approx(even[:, 0].mean())
    found = definitions.sink_scores(np.stack([even, oldest]).sum(1), window)
    expected = [[row[sees[:, k], k].mean() for k in range(T)] for row in (even, oldest)]
    np.testing.assert_allclose(found, expected)
    assert definitions.sink_rate(oldest.sum(0)[None, None], window) == 1.0


@pytest.mark.parametrize("xp", [np, jnp])
def test_the_rule_of_the_published_code(xp):
    """A tenth of all attention counts."""
    cumulative_T = xp.asarray([0.5, 0.39, 0.4, 2.71])
    np.testing.assert_array_equal(
        definitions.code_outliers(cumulative_T), [True, False, True, True]
    )
    np.testing.assert_array_equal(definitions.is_code_outlier(xp.asarray([0.09, 0.5])), [0, 1])


def test_who_asks_and_what_is_given():
    """Of three tokens the second is marked: the last two queries see it, with a window of 1 itself alone."""
    marked = np.array([[False, True, False], [False, False, False]])
    assert definitions.asking(marked).tolist() == [2, 0]
    assert definitions.asking(marked, 1).tolist() == [1, 0]
    sums = np.array([[[1.5, 1.0, 0.5]], [[1.5, 1.0, 0.5]]])
    assert definitions.attention_on(sums, marked).tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize("window", [None, 7])
def test_attention_on_outlier_tokens_is_one_number_in_every_report(window):
    """Its tokens come and go from layer to layer, and are in some sequences only."""
    lm = random_model("llama-gqa", 1, sliding_window=window)
    lm.tokenizer = byte_tokenizer()
    lm.tokenizer.bos_id = None
    tokens, tau = np.random.default_rng(1).integers(0, 61, (4, 30)), 4.3
    report = so.lifecycle(lm, tokens, tau)
    living = report.stats.h.outlier_tokens(tau)
    assert (living[0] != living[1]).any() and not living.any(2).all()
    mass = report.spread.mass
    keys = so.positions(lm, tokens, tau).keys
    np.testing.assert_allclose(keys.share, mass, rtol=1e-4)
    np.testing.assert_allclose(keys.even, report.spread.even, rtol=1e-5)
    (_, point) = so.by_length(lm, tokens, tau, sentences=("1 2",), lengths=(9, 30)).sweep
    np.testing.assert_allclose(point.reading.share(tau), mass.mean(1), rtol=1e-4)
    assert report.cause is not None
    np.testing.assert_allclose(report.cause.baseline.mass_per_layer, mass.mean(1), rtol=1e-4)


def test_drain():
    found = definitions.value_drain(np.array([1.0, 0.0, 3.0]), np.array([4.0, 2.0, 0.0]))
    np.testing.assert_array_equal(found, [0.25, 0.0, np.nan])


def test_overlap_and_union():
    activation_NxT = np.array([[True, True, False], [False, False, False]])
    attention_NxHxT = np.array(
        [[[True, False, True], [True, True, False]], [[True, False, False]] * 2]
    )
    overlap = definitions.overlap(activation_NxT, attention_NxHxT)
    union = definitions.intersection_over_union(activation_NxT, attention_NxHxT)
    np.testing.assert_allclose(overlap, [[1 / 2, 1], [np.nan, np.nan]])
    np.testing.assert_allclose(union, [[1 / 3, 1], [0, 0]])


def test_massive_activations():
    """Over 100 and over 1000 times the median, both."""
    np.testing.assert_array_equal(
        definitions.massive_bound(np.array([0.01, 0.2])), np.array([100.0, 200.0])
    )
    assert definitions.exceeds(10.0, 0.009, 1000.0) and not definitions.exceeds(10.0, 0.01, 1000.0)
    huge = np.float32([3e38, 1e36])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not definitions.exceeds(huge, huge, 1000.0).any()


def test_even_attention_passes_the_codes_rule_in_short_texts():
    for length in (1, 8, 43, 44, 512):
        first = sum(1 / (query + 1) for query in range(length))  # its column sum
        assert definitions.even_attention_passes(length) == (first >= length / 10)
    assert definitions.even_attention_passes(43) and not definitions.even_attention_passes(44)


@pytest.mark.parametrize("seed", [2313, 5770])
def test_neuron_kurtosis_is_the_same_in_any_unit(seed):
    """Of these powers the C library's square of the mean was rounded otherwise than that of the same powers in a smaller unit."""
    power = np.random.default_rng(seed).standard_normal(31) ** 2
    here, there = (definitions.neuron_rms_kurtosis(p) for p in (power, np.ldexp(power, -200)))
    assert here == there
