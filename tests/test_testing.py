"""The planted truth holds by its definitions, computed here from raw taps with plain numpy and nothing of the analysis."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.data.demo import byte_tokenizer, demo_text
from sysout_jax.data.text import text_windows
from sysout_jax.testing import (
    Birth,
    Planted,
    demo_model,
    demo_plant,
    planted_llama,
    random_plant,
)

SEEDS = range(16)  # random_plant cycles through strengths, placements and head groups within 16
TAPS = ("h", "h_mid", "x_down", "down", "attn_map", "q", "k", "v")
TAU, MARGIN = 1000.0, 1.3


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    planted: Planted
    tokens: np.ndarray  # (N, T)
    mask: np.ndarray  # (N, T) outlier tokens
    taps: dict[str, np.ndarray]

    def ratios(self, name: str) -> np.ndarray:
        """|x| over the mean of its layer and sequence, (L, N, T, C)."""
        x = np.abs(self.taps[name])
        return x / x.mean(axis=(2, 3), keepdims=True)

    def planted_elements(self, layer: int) -> np.ndarray:
        """(N, T, D) bool: where h holds outliers after a layer, by the truth."""
        expected = np.zeros(self.taps["h"].shape[1:], bool)
        for dim in self.planted.truth.dims_after(layer):
            expected[..., dim] = self.mask
        return expected


@cache
def run(seed: int) -> Run:
    planted = random_plant(seed)
    tokens = planted.tokens(2, 256, seed)
    _, taps = so.capture(planted.lm, tokens, TAPS)
    return Run(planted, tokens, planted.mask(tokens), taps)


def attention_mass(mask: np.ndarray, attn_map: np.ndarray) -> np.ndarray:
    """(L, H) attention on outlier tokens, mean over the queries that can see one."""
    sees = np.maximum.accumulate(mask, axis=1)
    return np.einsum("lnhts,ns,nt->lh", attn_map, 1.0 * mask, 1.0 * sees) / sees.sum()


@pytest.mark.parametrize("seed", SEEDS)
def test_h_holds_the_planted_outliers_and_no_others(seed):
    r = run(seed)
    truth, ratios = r.planted.truth, r.ratios("h")
    assert (ratios > TAU).any() == truth.has_outlier
    for layer, ratio in enumerate(ratios):
        expected = r.planted_elements(layer)
        assert ratio[~expected].max() < 50
        if truth.has_outlier:
            np.testing.assert_array_equal(ratio > TAU, expected)
            assert not expected.any() or ratio[expected].min() > MARGIN * TAU
    if truth.births:
        first = min(truth.birth_layers)
        last = (truth.death_layer or len(ratios)) - 1
        assert [bool(truth.dims_after(layer)) for layer in range(len(ratios))] == [
            first <= layer <= last for layer in range(len(ratios))
        ]
    if truth.births and not truth.has_outlier:
        assert 300 < ratios.max() < 600
        for layer, ratio in enumerate(ratios):
            np.testing.assert_array_equal(ratio > 0.75 * ratios.max(), r.planted_elements(layer))


@pytest.mark.parametrize("seed", SEEDS)
def test_births_come_from_the_planted_channels(seed):
    r = run(seed)
    for birth in r.planted.truth.births:
        dims, channels = list(birth.dims), list(birth.channels)
        values = r.taps["h"][birth.layer][r.mask][:, dims]
        assert (np.sign(values) == birth.signs).all()

        ratio = r.ratios("x_down")[birth.layer]
        expected = np.zeros(ratio.shape, bool)
        expected[..., channels] = r.mask[..., None]
        assert ratio[~expected].max() < 50
        if r.planted.truth.has_outlier:
            assert ratio[expected].min() > MARGIN * TAU

        kernel = np.asarray(
            r.planted.lm.params[f"layer_{birth.layer}"]["mlp"]["down_proj"]["kernel"]
        )
        added = r.taps["x_down"][birth.layer][r.mask][:, channels, None] * kernel[channels][:, dims]
        shares = added / values[:, None, :]
        assert min(birth.shares) >= 0.2
        np.testing.assert_allclose(
            shares, np.broadcast_to(np.array(birth.shares)[:, None], shares.shape), atol=0.02
        )

        column_ratio = np.abs(kernel).max(1) / np.abs(kernel).mean(1)
        assert set(np.argsort(-column_ratio)[: len(channels)]) == set(channels)
        assert np.sort(column_ratio)[-len(channels) - 1] < 0.5 * column_ratio[channels].min()


@pytest.mark.parametrize("seed", SEEDS)
def test_sinks_are_the_planted_heads(seed):
    r = run(seed)
    mass = attention_mass(r.mask, r.taps["attn_map"])
    sinks = r.planted.truth.sink_heads
    assert set(map(tuple, np.argwhere(mass > 0.3).tolist())) == sinks
    assert all(mass[sink] > 0.9 for sink in sinks)
    assert all(mass[head] < 0.1 for head in np.ndindex(mass.shape) if head not in sinks)


@pytest.mark.parametrize("seed", SEEDS)
def test_sinks_work_through_the_planted_dims_and_drain_values(seed):
    r = run(seed)
    group = r.taps["q"].shape[3] // r.taps["k"].shape[3]
    ordinary = np.maximum.accumulate(r.mask, axis=1) & ~r.mask
    for sink in r.planted.truth.sinks:
        q = r.taps["q"][sink.layer, :, :, sink.head]
        k = r.taps["k"][sink.layer, :, :, sink.head // group]
        parts = q[ordinary].mean(0) * (k[r.mask].mean(0) - k[~r.mask].mean(0))
        planted = parts[list(sink.dims)] / np.maximum(parts, 0).sum()
        assert planted.sum() > 0.9
        np.testing.assert_allclose(planted, sink.shares, atol=0.05)
        v = np.linalg.norm(r.taps["v"][sink.layer, :, :, sink.head // group], axis=-1)
        assert v[r.mask].mean() < 0.3 * v[~r.mask].mean()


@pytest.mark.parametrize("seed", SEEDS)
def test_death_is_the_planted_channels_cancelling(seed):
    r = run(seed)
    truth = r.planted.truth
    if truth.death_layer is None:
        assert truth.death_channels == ()
        return
    layer, dims, channels = truth.death_layer, list(truth.dims), list(truth.death_channels)
    kernel = np.asarray(r.planted.lm.params[f"layer_{layer}"]["mlp"]["down_proj"]["kernel"])
    entering = r.taps["h_mid"][layer][r.mask][:, dims]
    np.testing.assert_allclose(r.taps["down"][layer][r.mask][:, dims], -entering, rtol=0.02)
    added = r.taps["x_down"][layer][r.mask][:, channels] @ kernel[channels][:, dims]
    np.testing.assert_allclose(added, -entering, rtol=0.02)
    assert r.ratios("h")[layer:].max() < 50


def test_random_plants_cover_all_cases():
    plants = [run(seed).planted for seed in SEEDS]
    living = [p.truth for p in plants if p.truth.has_outlier]
    assert {p.lm.config.num_kv_heads for p in plants} == {1, 2, 4}
    assert {p.placement for p in plants} == {"first", "middle", "both"}
    assert {len(t.births) for t in living} == {1, 2}
    assert {len(birth.channels) for t in living for birth in t.births} == {1, 2, 3}
    assert {len(birth.dims) for t in living for birth in t.births} == {1, 2}
    assert {len(sink.dims) for t in living for sink in t.sinks} == {1, 2}
    assert {t.death_layer is None for t in living} == {False, True}
    assert {len(p.truth.births) > 0 for p in plants if not p.truth.has_outlier} == {False, True}


def test_what_is_given_is_planted():
    planted = planted_llama(
        3,
        births=(Birth(0, (5,), (7, 9)), Birth(2, (90, 4), (0,))),
        sinks=((1, 2), (4, 0)),
        qk_dims=(7, 13),
        death_layer=4,
        death_channels=(11,),
        outlier_tokens=(3, 8),
        placement="middle",
    )
    truth = planted.truth
    assert [(b.layer, b.dims, b.channels) for b in truth.births] == [
        (0, (5,), (7, 9)),
        (2, (90, 4), (0,)),
    ]
    assert truth.sink_heads == {(1, 2), (4, 0)} and {s.dims for s in truth.sinks} == {(7, 13)}
    assert (truth.death_layer, truth.death_channels, truth.dims) == (4, (11,), (4, 5, 90))
    tokens = planted.tokens(4, 256)
    assert not planted.mask(tokens)[:, :32].any() and planted.mask(tokens).any(1).all()
    np.testing.assert_array_equal(tokens, planted.tokens(4, 256))
    _, taps = so.capture(planted.lm, tokens, ("h",))
    ratio = np.abs(taps["h"]) / np.abs(taps["h"]).mean((2, 3), keepdims=True)
    for layer in range(6):
        _, where, dims = np.nonzero(ratio[layer] > TAU)
        assert set(dims) == set(truth.dims_after(layer))
        assert len(where) == planted.mask(tokens).sum() * len(truth.dims_after(layer))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"strength": 1000.0}, "too near the threshold"),
        ({"births": (Birth(2), Birth(1))}, "must ascend"),
        ({"births": (Birth(4),)}, "below 4, the death layer"),
        ({"births": (Birth(0, (3,)), Birth(1, (3,)))}, "must not repeat"),
        ({"births": ()}, "needs a birth before it"),
        ({"sinks": ((1, 0),)}, "in layers 2 to 4"),
        ({"qk_dims": (0,)}, "turn too far"),
    ],
)
def test_impossible_plans_are_refused(plan, message):
    with pytest.raises(ValueError, match=message):
        planted_llama(**plan)


def test_short_sequences_are_refused():
    planted = planted_llama(births=(Birth(1, 2),))
    assert planted.tokens(1, 34).shape == (1, 34)
    with pytest.raises(ValueError, match="a length of 34"):
        planted.tokens(1, 33)


def test_demo_text_and_tokenizer():
    text, tokenizer = demo_text(), byte_tokenizer()
    assert text.startswith("Summer is warm. Winter is cold.\n")
    assert 12_000 < len(text) < 16_500 and text.isascii()
    assert tokenizer.vocab_size == 257 and tokenizer.bos_id == 256
    ids = tokenizer.encode(text)
    assert len(ids) == len(text) and tokenizer.decode(ids) == text
    assert tokenizer.decode(tokenizer.encode("naïve 河 \t")) == "naïve 河 \t"
    assert [tokenizer.token(i) for i in tokenizer.encode("a \n")] == ["a", "_", "\\n"]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("length", [256, 512])
def test_demo_model_lives_its_plan_on_the_demo_text(length, bos):
    planted = demo_plant()
    lm, truth = planted.lm, planted.truth
    assert lm.tokenizer is not None
    windows = text_windows(lm.tokenizer, demo_text(), 100, length, bos)
    assert windows.shape[0] >= 12_000 // length
    mask = planted.mask(windows)
    assert mask.any(1).mean() > 0.8 and mask.sum(1).max() <= 16
    # a few windows with the most, fewest and first outlier tokens
    order = np.argsort(mask.sum(1))
    some = windows[[0, order[0], order[-1]]]
    mask = planted.mask(some)
    _, taps = so.capture(lm, some, ("h", "attn_map"))
    ratio = np.abs(taps["h"]) / np.abs(taps["h"]).mean((2, 3), keepdims=True)
    for layer in range(lm.num_layers):
        expected = np.zeros(ratio.shape[1:], bool)
        expected[..., list(truth.dims_after(layer))] = mask[..., None]
        np.testing.assert_array_equal(ratio[layer] > TAU, expected)
        assert ratio[layer][~expected].max() < 50
        assert not expected.any() or ratio[layer][expected].min() > MARGIN * TAU
    mass = attention_mass(mask, taps["attn_map"])
    assert set(map(tuple, np.argwhere(mass > 0.3).tolist())) == truth.sink_heads
    assert (truth.birth_layers, truth.death_layer) == ((2,), lm.num_layers - 2)
    assert len({layer for layer, _ in truth.sink_heads}) >= 3


def test_demo_model_is_the_demo_plant():
    lm = demo_model()
    assert lm.tokenizer is not None and lm.name == "planted"
    for name, group in demo_plant().lm.params.items():
        for a, b in zip(group.values(), lm.params[name].values(), strict=True):
            if not isinstance(a, dict):
                np.testing.assert_array_equal(a, b)
