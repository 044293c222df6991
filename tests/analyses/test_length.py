"""Growing texts against a direct count on raw tensors, and against planted truth."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analyses.length.measure import SENTENCES, sweep_lengths
from sysout_jax.data.demo import byte_tokenizer
from sysout_jax.families.gpt2 import Gpt2Config
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.outliers.definitions import TAUS
from sysout_jax.outliers.tokens import TokenClasses
from sysout_jax.testing import Birth, planted_llama
from sysout_jax.weights import InMemory
from tests.parameters import mostly_endurance
from tests.random_models import random_model, random_params

pytestmark = pytest.mark.slow

SIZE = {
    "vocab_size": 257,
    "context_length": 80,
    "d_model": 16,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZE, num_kv_heads=1, head_dim=8),
    "llama-window": LlamaConfig(**SIZE, num_kv_heads=1, head_dim=8, sliding_window=5),
    "gpt2": Gpt2Config(**SIZE),
}


def byte_model(name: str, seed: int) -> so.LanguageModel:
    config = CONFIGS[name]
    return so.LanguageModel(
        config, InMemory(random_params(config, seed)), byte_tokenizer(), name=name
    )


def check(reading, lm, rows, level):
    """One reading, from the raw tensors of these rows."""
    np.testing.assert_array_equal(reading.tokens, rows)
    _, taps = so.capture(lm, rows, names=("h", "x_down", "attn_map"))
    N, T = rows.shape
    window = getattr(lm.config, "sliding_window", None)
    for place, found in (("h", reading.ratio), ("x_down", reading.ratio_x_down)):
        x = np.abs(np.asarray(taps[place], np.float64))
        np.testing.assert_allclose(found, x.max(3) / x.mean((2, 3))[:, :, None], rtol=1e-5)
    h = np.abs(np.asarray(taps["h"], np.float64))
    counts = [(h > tau * h.mean((2, 3), keepdims=True)).sum() for tau in TAUS]
    np.testing.assert_array_equal(reading.counts, counts)
    maps = np.asarray(taps["attn_map"], np.float64).mean(2)  # (L, N, T, S)
    np.testing.assert_allclose(reading.received, maps.sum(2) / T, rtol=1e-4, atol=1e-7)
    living = (h > level * h.mean((2, 3), keepdims=True)).any(3)
    marked = living.any(0)
    np.testing.assert_array_equal(reading.outliers(level), marked)
    names = TokenClasses().names
    per_class = reading.by_class(marked, len(names))
    assert per_class.sum() == pytest.approx(marked.sum() / N)
    for c in range(len(names)):
        count = sum(marked[n, t] and reading.classes[n, t] == c for n in range(N) for t in range(T))
        assert per_class[c] == pytest.approx(count / N)
    want = []
    for l in range(len(maps)):
        enters = living[l - 1] if l and living[l - 1].any() else marked
        given = [
            maps[l, n, t, enters[n]].sum()
            for n, t in np.ndindex(N, T)
            if enters[n, max(t - (window or T) + 1, 0) : t + 1].any()
        ]
        want.append(np.mean(given) if given else np.nan)
    np.testing.assert_allclose(reading.share(level), want, rtol=1e-4)
    np.testing.assert_array_equal(reading.keys_of_code(), (reading.received >= 0.1).any(0))


@pytest.mark.parametrize(
    ("name", "tau"),
    mostly_endurance(
        itertools.product(sorted(CONFIGS), (2.5, 1000.0)),
        usual=[("llama-window", 2.5), ("llama", 1000.0)],
    ),
)
def test_readings_of_random_models(name, tau):
    rng = np.random.default_rng()
    lm = byte_model(name, int(rng.integers(2**31)))
    tokens = rng.integers(0, 256, (3, 37))
    bos = bool(rng.integers(2))
    size = int(rng.choice([1, 3]))
    texts = tuple(rng.choice(SENTENCES, 2, replace=False))
    given = {"bos": bos, "sentences": texts, "lengths": (1, 37)}
    report = so.by_length(lm.with_passes(batch_size=size), tokens, tau, **given)
    ratio = max(float(r.ratio.max()) for r in report.readings)
    assert report.largest == ratio
    assert report.found == (ratio > tau)
    assert report.level == pytest.approx(tau if report.found else 0.75 * ratio)
    assert tuple(s.text for s in report.sentences) == texts
    tokenizer = byte_tokenizer()
    for s in report.sentences:
        row = np.array([[tokenizer.bos_id] * bos + tokenizer.encode(s.text)])
        assert s.pieces[-1] == s.text[-1] and len(s.pieces) == row.shape[1]
        check(s.reading, lm, row, report.level)
    assert [(p.bos, p.length) for p in report.sweep] == [
        (b, n) for b in (False, True) for n in (1, 37)
    ]
    for p in report.sweep:
        begin = np.full((3, 1), tokenizer.bos_id) if p.bos else tokens[:, :0]
        check(p.reading, lm, np.concatenate([begin, tokens], axis=1)[:, : p.length], report.level)
    json.dumps(report.to_dict(), allow_nan=False)


def test_without_bos_there_is_one_sweep():
    lm = byte_model("llama", 1)
    lm.tokenizer.bos_id = None
    report = so.by_length(lm, np.full((1, 9), 65), lengths=(4, 9))
    assert [p.bos for p in report.sweep] == [False, False]
    with pytest.raises(so.InputError, match="bos"):
        so.by_length(lm, np.full((1, 9), 65), bos=True)


@pytest.mark.parametrize(
    "longest, want",
    [(1, (1,)), (4, (4,)), (5, (4, 5)), (64, (4, 8, 16, 32, 64)), (70, (4, 8, 16, 32, 64, 70))],
)
def test_sweep_lengths(longest, want):
    assert sweep_lengths(longest) == want


@pytest.mark.parametrize("draw", range(2))
def test_planted_truth(draw):
    """Outliers at the full stop and at BOS: they appear with the first stop of the text, and at once with BOS."""
    seed = int(np.random.default_rng().integers(2**20))
    print("seed", seed)
    tokenizer = byte_tokenizer()
    stop, bos = ord("."), tokenizer.bos_id
    planted = planted_llama(
        seed, num_layers=5, d_model=256, vocab_size=257, births=(Birth(1, 1, 1),),
        outlier_tokens=(stop, bos), placement="both",
    )  # fmt: skip
    lm = planted.lm
    lm.tokenizer = tokenizer
    text = "the cat sat on the mat. the dog ran"
    tokens = np.array([tokenizer.encode(text)])
    report = so.by_length(lm, tokens, 300.0, lengths=(16, 35))
    at = text.index(".")
    for point in report.sweep:
        mask = point.reading.outliers(300.0)[0]
        want = [0] * point.bos + [at + point.bos] * (at + point.bos < point.length)
        assert np.flatnonzero(mask).tolist() == want
        counts = dict(zip(report.classes, point.reading.by_class(mask[None], 4), strict=True))
        assert counts["initial"] == point.bos and counts["other"] == counts["weak semantic"] == 0
    for sentence, stops in zip(report.sentences, ([], [30], [30, 46], [46]), strict=True):
        assert np.flatnonzero(sentence.reading.outliers(300.0)[0]).tolist() == stops


def test_sentences_longer_than_the_context_are_left_out():
    config = dataclasses.replace(CONFIGS["gpt2"], context_length=32)
    lm = so.LanguageModel(config, InMemory(random_params(config, 0)), byte_tokenizer())
    report = so.by_length(lm, np.full((1, 9), 65), lengths=(9,))
    assert [s.text for s in report.sentences] == list(SENTENCES[:2])


def test_needs_a_tokenizer():
    with pytest.raises(so.InputError, match="tokenizer"):
        so.by_length(random_model("gpt2", seed=0), np.zeros((1, 4), int))
