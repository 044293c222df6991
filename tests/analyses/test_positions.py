"""Positions against their definitions on raw captured tensors, and against planted truth."""

import json

import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.data.demo import byte_tokenizer
from sysout_jax.outliers.definitions import TAUS
from sysout_jax.outliers.tokens import TokenClasses
from sysout_jax.testing import random_plant
from tests.outliers import rules
from tests.parameters import mostly_endurance
from tests.random_models import RANDOM, random_model


def with_tokenizer(lm: so.LanguageModel) -> so.LanguageModel:
    """Token ids are bytes; the class of a byte is what its character says."""
    lm.tokenizer = byte_tokenizer()
    return lm


def slow_classes(tokens: np.ndarray) -> np.ndarray:
    """Ids below 61 are control characters, signs and digits: no words, so the rules reduce to these."""
    names = TokenClasses().names
    found = np.empty(tokens.shape, int)
    for n, row in enumerate(tokens):
        for t, token in enumerate(row):
            character = chr(token)
            if t == 0:
                kind = "initial"
            elif character in ".\n!?;:":
                kind = "strong delimiter"
            elif (character.isspace() and ord(character) < 128) or character in " ,-'\"()":
                kind = "weak semantic"
            else:
                kind = "other"
            found[n, t] = names.index(kind)
    return found


@pytest.fixture(
    scope="module",
    params=mostly_endurance(sorted(RANDOM), usual=["gpt2", "llama-gqa", "llama-mqa"]),
)
def case(request):
    rng = np.random.default_rng()
    window = int(rng.integers(3, 12)) if request.param == "llama-mqa" else None
    changes = {} if window is None else {"sliding_window": window}
    lm = with_tokenizer(random_model(request.param, seed=int(rng.integers(2**31)), **changes))
    tokens = rng.integers(0, lm.config.vocab_size, (4, int(rng.integers(12, 60))))
    tau = float(rng.uniform(2.0, 4.0))
    _, taps = so.capture(lm, tokens, names=("h", "x_down", "attn_map"))
    size = int(rng.integers(1, 5))
    passes = lm.with_passes(batch_size=size if 4 % size == 0 else None)
    report = so.positions(passes, tokens, tau)
    return window, tokens, tau, taps, report


@pytest.mark.parametrize("name", ["h", "x_down"])
def test_places(case, name):
    _, tokens, tau, taps, report = case
    x = np.abs(np.asarray(taps[name], np.float64))
    place = getattr(report, name)
    flagged = np.stack(
        [np.stack([rules.activation_outliers(s, tau) for s in layer]) for layer in x]
    )
    assert place.found == bool(flagged.any())
    if not place.found:
        ratio = (x.max((2, 3)) / x.mean((2, 3))).max()
        assert place.level == pytest.approx(0.75 * ratio, rel=1e-5)
        flagged = x > place.level * x.mean((2, 3), keepdims=True)
    marked = flagged.any(3)  # (L, N, T)
    kinds = slow_classes(tokens)
    assert place.layers == tuple(l for l in range(len(x)) if marked[l].any())
    assert place.close_ups == tuple(sorted({place.layers[0], place.layers[-1]}))
    np.testing.assert_array_equal(place.channels, flagged.any((1, 2)))
    for layer in range(len(x)):
        counts = [int((kinds[marked[layer]] == c).sum()) for c in range(len(report.classes))]
        assert place.tokens.per_layer[layer].tolist() == counts
        first = marked[layer] & ~marked[:layer].any(0)
        assert place.tokens.born[layer] == first.sum()
    ever = marked.any(0)
    assert place.tokens.once.sum() == ever.sum() == place.tokens.born.sum()
    assert place.tokens.positions.tolist() == sorted(np.argwhere(ever)[:, 1].tolist())
    texts = {}
    for token, kind in zip(tokens[ever], kinds[ever], strict=True):
        key = (byte_tokenizer().token(token), report.classes[kind])
        texts[key] = texts.get(key, 0) + 1
    for text, kind, count in place.tokens.texts:
        assert texts[text, kind] == count
    assert [c for *_, c in place.tokens.texts] == sorted(texts.values(), reverse=True)[:12]


def test_keys_and_heads(case):
    window, tokens, tau, taps, report = case
    maps = np.asarray(taps["attn_map"], np.float64)  # (L, N, H, T, S)
    L, N, _, T, _ = maps.shape
    sums = maps.sum(3)
    mean = sums.mean(2)
    top = -np.sort(-mean, axis=2)[..., :2].mean(1)
    np.testing.assert_allclose(report.keys.top, top, rtol=1e-5)
    np.testing.assert_allclose(report.keys.median, np.median(mean, 2).mean(1), rtol=1e-5)
    flagged = sums > tau * sums.mean(3, keepdims=True)
    code = mean >= 0.1 * T
    np.testing.assert_array_equal(report.stats.attention.key_heads, flagged.sum(2))
    assert report.keys.rule == ("paper" if flagged.any() else "code" if code.any() else "candidate")
    mask = flagged.any(2) if flagged.any() else code if code.any() else mean > 0.75 * mean.max()
    kinds = slow_classes(tokens)
    want = [[int((kinds[m] == c).sum()) for c in range(len(report.classes))] for m in mask]
    np.testing.assert_array_equal(report.keys.tokens.per_layer, want)
    for i, each in enumerate(TAUS):
        wide = (sums > each * sums.mean(3, keepdims=True)).sum((1, 2, 3))
        np.testing.assert_array_equal(report.stats.attention.counts[:, i], wide)
    ratio = (sums / sums.mean(3, keepdims=True)).max((1, 2, 3))
    np.testing.assert_allclose(report.stats.attention.ratio, ratio, rtol=1e-5)
    # shares, query by query
    h = np.abs(np.asarray(taps["h"], np.float64))
    living = (h > report.h.level * h.mean((2, 3), keepdims=True)).any(3)  # (L, N, T)
    for layer in range(L):
        enters = layer and living[layer - 1].any()
        outliers = living[layer - 1] if enters else living.any(0)
        rows, even = [[] for _ in range(N)], []
        for n, t in np.ndindex(N, T):
            first = 0 if window is None else max(t - window + 1, 0)
            looked = outliers[n, first : t + 1]
            if looked.any():
                even.append(looked.mean())
                rows[n].append(maps[layer, n, :, t, outliers[n]].sum(0))
        share = np.concatenate([row for row in rows if row]).mean(0)
        each = np.stack([np.mean(row, 0) for row in rows if row])
        np.testing.assert_allclose(report.keys.share[layer], share, rtol=1e-4)
        np.testing.assert_allclose(report.keys.share_low[layer], each.min(0), rtol=1e-4)
        np.testing.assert_allclose(report.keys.share_high[layer], each.max(0), rtol=1e-4)
        np.testing.assert_allclose(report.keys.even[layer], np.mean(even), rtol=1e-5)


def test_matrices(case):
    *_, report = case
    ratios = report.stats.weights.column_ratio
    assert [m.ratio for m in report.matrices] == sorted(ratios.ravel().tolist())[-3:][::-1]
    for m in report.matrices:
        columns = report.stats.weights.column_ratios[m.module][m.layer]
        assert columns[m.column] == columns.max() == np.float32(m.ratio)


FIRST = 8 * int(np.random.default_rng().integers(20_000))


@pytest.mark.parametrize("case", range(8))
def test_planted_truth(case):
    seed = FIRST + case
    print("seed", seed)
    planted = random_plant(seed)
    tokens = planted.tokens(2, 256, seed)
    report = so.positions(with_tokenizer(planted.lm), tokens)
    json.dumps(report.to_dict(), allow_nan=False)
    truth = planted.truth
    assert report.h.found == truth.has_outlier
    if not truth.births:
        return
    # the strongest candidates of a plant below τ are the planted elements
    alive = range(truth.birth_layers[0], truth.death_layer or 6)
    assert report.h.layers == tuple(alive)
    for layer in range(6):
        assert tuple(np.flatnonzero(report.h.channels[layer])) == truth.dims_after(layer)
    mask = planted.mask(tokens)
    assert report.h.tokens.once.sum() == mask.sum()
    assert report.h.tokens.born[truth.birth_layers[0]] == mask.sum()
    assert report.h.tokens.positions.tolist() == sorted(np.argwhere(mask)[:, 1].tolist())
    assert report.h.tokens.once[0] == mask[:, 0].sum()
    if truth.has_outlier:
        for birth in truth.births:
            assert tuple(np.flatnonzero(report.x_down.channels[birth.layer])) == birth.channels
        # sink heads stand out, all others do not
        heads = {(int(l), int(h)) for l, h in np.argwhere(report.keys.share > 0.5)}
        assert heads == truth.sink_heads


def test_needs_a_tokenizer():
    with pytest.raises(so.InputError, match="tokenizer"):
        so.positions(random_model("gpt2", seed=0), np.zeros((1, 4), int))


@pytest.mark.parametrize("shape", [(1, 1), (1, 2)])
def test_tiny_inputs(shape):
    lm = with_tokenizer(random_model("llama-gqa", seed=3))
    report = so.positions(lm, np.random.default_rng(0).integers(0, 61, shape))
    assert report.keys.top.shape == (3, 2)
    json.dumps(report.to_dict(), allow_nan=False)
