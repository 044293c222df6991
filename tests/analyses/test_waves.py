"""Waves: lives of elements whose course is written down by hand, and those of planted models."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analyses.lifecycle.figures import FIGURES
from sysout_jax.analyses.lifecycle.page import lifecycle_sections
from sysout_jax.analyses.lifecycle.sinks import sink_heads
from sysout_jax.analyses.lifecycle.summary import lifecycle_summary
from sysout_jax.analyses.lifecycle.wave_spread import WaveSpread, spreading
from sysout_jax.analyses.lifecycle.waves import Life, find_waves, grouped, lives_of, ratios_of
from sysout_jax.analyses.lifecycle.writes import Followed
from sysout_jax.reports.page import Table
from sysout_jax.testing import Birth, planted_llama, random_plant
from sysout_jax.weights import InMemory, groups
from sysout_jax.words import listed, number, percent
from tests.random_models import random_model

MEAN = 1.0


def followed(*courses: list[float]) -> Followed:
    """Elements whose value after each layer is given, in sequences of mean 1; 0 before the first layer."""
    h = np.array(courses, float).T
    x_in = np.concatenate([np.zeros_like(h[:1]), h[:-1]])
    places = np.array([(0, k, k) for k in range(h.shape[1])])
    return Followed(places, x_in, h - x_in, h, np.full_like(h, MEAN), [{}] * len(h))


def lives(course: list[float], level: float = 100.0) -> list[Life]:
    return lives_of(0, followed(course), level)


def test_one_life():
    (life,) = lives([1, 2, 5000, 5010, 4990, 3, 2])
    assert life == Life(0, births=(2,), deaths=(5,), first=2, last=4, peak=3)


def test_a_weak_life_is_seen_and_a_weaker_one_is_not():
    (life,) = lives([1, 500, 480, 1])
    assert (life.births, life.deaths) == ((1,), (3,))
    assert lives([1, 90, 80, 1]) == []


def test_a_life_is_as_strong_as_where_it_stands_out_most():
    """|h| grows on and its mean grows faster: 4,000 times the mean in layer 2, 500 times where |h| is largest."""
    elements = followed([0, 4000, 5000, 1])
    elements.mean[2] = 10.0
    (life,) = lives_of(0, elements, 1000.0)
    assert life.peak == 2 and ratios_of(life, elements).tolist() == [4000, 500]
    assert lives_of(0, elements, 4001.0) == []


def test_two_lives_of_the_same_dim():
    """The demo's dim 507, with the numbers of the published table."""
    course = [5, 273, 938, 935, 900, 880, 850, 800, 765, 395, 112, 25686, 25677, 25299, 10943, 5063]
    one, two = lives(course)
    assert (one.births, one.deaths, one.first, one.last) == ((1, 2), (9, 10), 1, 9)
    assert (two.births, two.deaths, two.first, two.last) == ((11,), (14, 15), 11, 14)


def test_what_is_written_again_at_once_and_with_the_other_sign():
    one, two = lives([0, 4000, 4000, -3000, -3000, 0])
    assert (one.births, one.deaths, one.last) == ((1,), (3,), 2)
    assert (two.births, two.deaths, two.first, two.last) == ((3,), (5,), 3, 4)


def test_what_the_embedding_writes():
    """Wholly, or with a layer; or so little of it that the layer alone is named."""
    for embedding, births, embedded in ((4000, (), True), (2000, (0,), True), (400, (0,), False)):
        elements = followed([4000, 4000, 4000, 1])
        elements.x_in[0] = embedding
        (life,) = lives_of(0, elements, 100.0)
        assert (life.births, life.embedded, life.deaths) == (births, embedded, (3,))
        assert (life.first, life.last) == (0, 2)
        assert len(grouped([life, life._replace(element=1)], np.array([(0, 1, 2), (1, 1, 2)]))) == 1


def test_a_dip_that_does_not_end_a_life():
    (life,) = lives([0, 4000, 1500, 4000, 4100, 0])
    assert life.births == (1, 3) and life.deaths == (5,)


def test_a_life_that_survives_and_one_that_grows_slowly():
    (life,) = lives([0, 0, 3000, 3000])
    assert (life.deaths, life.last) == ((), 3)
    (slow,) = lives([100.0 * k for k in range(1, 41)])
    assert len(slow.births) == 1 and slow.last == 39


def test_an_old_life_does_not_hide_a_new_one():
    """Eleven old elements at 1,050 and a new one at 5,000: the new one is less than a share of the layer's sum."""
    old = [[0, 1050, 1050, 1050, 1050, 1050]] * 11
    new = [0, 0, 0, 5000, 5000, 5000]
    elements = followed(*old, new)
    places = np.array([(0, k, 3) for k in range(11)] + [(0, 11, 9)])
    found = [life for k in range(12) for life in lives_of(k, elements, 100.0)]
    assert sorted((group[0].births, len(group)) for group in grouped(found, places)) == [((1,), 11), ((3,), 1)]  # fmt: skip


def test_lives_that_share_a_birth_and_a_place_are_one_wave():
    """Sequence, token, dim: a and b share a token, a and d a dim; c is born elsewhere, e with b but of nothing that it has."""
    places = np.array([(0, 3, 7), (0, 3, 8), (0, 3, 7), (1, 0, 7), (1, 5, 9)])
    births = [(1, 2), (2,), (5,), (2, 3), (2,)]
    lives = [Life(k, layers, (), layers[0], 9, layers[-1]) for k, layers in enumerate(births)]
    found = grouped([lives[k] for k in (0, 2, 1, 4, 3)], places)
    assert sorted(sorted(life.element for life in group) for group in found) == [[0, 1, 3], [2], [4]]  # fmt: skip


@pytest.mark.parametrize("offset", [0, 1, 4])
def test_planted_lives(offset):
    """Whatever τ, also where none of it is an outlier at τ = 1000."""
    seed = int(np.random.default_rng().integers(10_000)) * 16 + offset
    print("seed", seed)
    planted = random_plant(seed)
    truth, tokens = planted.truth, planted.tokens(2, 256, seed)
    stats = so.collect(planted.lm, tokens)
    found = find_waves(planted.lm, stats.tokens, stats.h, 1000.0)
    again = find_waves(planted.lm, stats.tokens, stats.h, 300.0)
    assert [w.births for w in found.waves] == [w.births for w in again.waves]
    assert found.dims_left_out == 0
    births = {birth.layer: birth for birth in truth.births}
    assert {w.births[0].layer for w in found.waves} == set(births)
    marked = {tuple(place) for place in np.argwhere(planted.mask(tokens)).tolist()}
    for wave in found.waves:
        (born,) = wave.births
        want = births[born.layer]
        assert set(wave.dims) == set(want.dims) and set(wave.tokens) == marked
        assert born.share == pytest.approx(1.0, abs=0.02) and born.from_mlp > 0.98
        channels = dict(born.channels)
        assert set(channels) == set(want.channels)
        for channel, share in zip(want.channels, want.shares, strict=True):
            assert channels[channel] == pytest.approx(share, abs=0.03)
        ratio = np.abs(wave.value) / stats.h.sequence_mean[wave.peak]
        assert ratio.min() * 0.999 <= wave.ratio <= ratio.max() * 1.001
        assert wave.above == truth.has_outlier
        if truth.death_layer is None:
            assert wave.deaths == () and wave.survives
        else:
            assert [death.layer for death in wave.deaths] == [truth.death_layer]
            assert wave.last == truth.death_layer - 1
            assert {channel for channel, _ in wave.deaths[0].channels} == set(truth.death_channels)
        alive = np.zeros(planted.lm.num_layers, int)
        alive[born.layer : truth.death_layer] = len(marked)
        np.testing.assert_array_equal(wave.alive, alive)
        np.testing.assert_array_equal(wave.living, np.where(alive > 0, wave.course, np.nan))


def test_two_waves_at_different_dims_and_layers():
    planted = planted_llama(
        seed=5, num_layers=6, births=(Birth(1, dims=2), Birth(3, dims=1)), death_layer=-1
    )
    tokens = planted.tokens(2, 64, 5)
    report = so.lifecycle(planted.lm, tokens, cause=False)
    one, two = report.waves.waves
    assert (one.births[0].layer, two.births[0].layer) == (1, 3)
    assert [set(one.dims), set(two.dims)] == [set(b.dims) for b in planted.truth.births]
    assert report.waves.sweep[1000.0] == (2, 2, 1) and report.waves.sweep[10_000.0] == (0, 0, 0)
    assert report._repr_html_().count("<tr>") == 3  # in a notebook
    kept = json.loads(report.to_json())["waves"]
    assert [wave["births"][0]["layer"] for wave in kept["waves"]] == [1, 3]
    assert kept["sweep"]["1000.0"] == [2, 2, 1]
    assert kept["waves"][1]["spread"]["layers"] == [4, 5]
    assert set(kept["waves"][1]["spread"]) == {"layers", "tokens", "mass", "even", "drain", "heads"}
    # the terminal tells it of the strongest that is under τ
    assert "sinks for" not in lifecycle_summary(report, lambda n, t: "tok")
    under = tuple(dataclasses.replace(wave, above=False) for wave in (one, two))
    weak = dataclasses.replace(report, waves=dataclasses.replace(report.waves, waves=under))
    lines = lifecycle_summary(weak, lambda n, t: "tok").split("\n")
    (spread,) = (line.strip() for line in lines if "sinks for" in line)
    told = max((one, two), key=lambda wave: wave.ratio).spread
    place, most = told.strongest
    assert spread.startswith(f"sinks for {len(told.heads)} of {told.mass.size} heads in layers ")
    assert (
        f"; most: layer {told.layers[place] + 1} head {most}, {told.mass[place, most]:.0%}, ‖v‖ "
        in spread
    )
    at, head = two.spread.strongest
    sections = lifecycle_sections(report, lambda n, t: "tok")
    (shown,) = (s for s in sections if s.title == FIGURES["waves"].title)
    (table,) = (b for b in shown.blocks if isinstance(b, Table) and "sink heads" in b.header)
    assert [row[:2] for row in table.rows] == [(1, "3–6"), (2, "5–6")]
    sink = two.spread.sink_at(at, head)
    assert table.rows[1][3:10] == (
        f"{len(two.spread.heads)} of 8",
        f"{percent(two.spread.mass[at, head])} ({percent(two.spread.even[at], 1)})",
        two.spread.layers[at] + 1,
        head,
        f"{listed(sink.dims, 8)} ({percent(sink.dims_share)})",
        number(two.spread.drain_of(at, head)),
        number(sink.update),
    )
    _holds_what_attention_gives(planted, tokens, report)


def _holds_what_attention_gives(planted, tokens: np.ndarray, report: so.Lifecycle) -> None:
    """Query by query from captured maps and values: in each layer after the birth, until the death takes them, of each wave."""
    lm = planted.lm
    _, taps = so.capture(lm, tokens, ("attn_map", "v"))
    lengths = np.linalg.norm(taps["v"].astype(np.float64), axis=-1)  # (L, N, T, K)
    marked = planted.mask(tokens)
    N, T = tokens.shape
    for wave, birth in zip(report.waves.waves, planted.truth.births, strict=True):
        spread = wave.spread
        assert spread.layers == tuple(range(birth.layer + 1, lm.num_layers))
        assert (spread.tokens == marked.sum()).all()
        for at, layer in enumerate(spread.layers):
            looking = [(n, t) for n, t in np.ndindex(N, T) if marked[n, : t + 1].any()]
            given = [taps["attn_map"][layer][n, :, t][:, marked[n]].sum(1) for n, t in looking]
            np.testing.assert_allclose(spread.mass[at], np.mean(given, 0), rtol=1e-4)
            even = [marked[n, : t + 1].sum() / (t + 1) for n, t in looking]
            np.testing.assert_allclose(spread.even[at], np.mean(even), rtol=1e-6)
            ratio = lengths[layer][marked].mean(0) / lengths[layer][~marked].mean(0)
            np.testing.assert_allclose(spread.drain[at], ratio, rtol=1e-4)
        want = {sink for sink in planted.truth.sink_heads if sink[0] in spread.layers}
        assert want <= places_of(spread) and want
        # what the narrow pass found on the tokens over τ, which are those of both
        pooled = {(head.layer, head.head): head for head in report.spread.heads}
        for head in spread.heads:
            theirs = pooled[head.layer, head.head]
            assert head.dims == theirs.dims
            numbers = [dataclasses.asdict(each) | {"dims": 0} for each in (head, theirs)]
            assert numbers[0] == pytest.approx(numbers[1], rel=1e-3)
        np.testing.assert_allclose(spread.mass, report.spread.mass[list(spread.layers)], rtol=1e-4)
        np.testing.assert_allclose(
            spread.drain, report.spread.drain[list(spread.layers)], rtol=1e-4
        )


def test_two_waves_of_the_same_dim_that_cross_the_threshold_again():
    """A planted life that ends, and a copy of its birth two layers later: at the same tokens and dim, through the same channel."""
    planted = planted_llama(seed=5, num_layers=7, births=(Birth(1, dims=1),), death_layer=3)
    lm, tokens = planted.lm, planted.tokens(2, 64, 5)
    (birth,) = planted.truth.births
    params = {name: lm.read(name) for name in groups(lm.config)}
    params["layer_5"] = params["layer_5"] | {"mlp": params["layer_1"]["mlp"]}
    report = so.lifecycle(dataclasses.replace(lm, source=InMemory(params)), tokens, cause=False)
    one, two = report.waves.waves
    assert one.dims == two.dims == birth.dims and set(one.tokens) == set(two.tokens)
    assert (one.born, one.ended, two.born, two.ended) == ((1,), (3,), (5,), ())
    for wave in (one, two):
        assert wave.above and [c for c, _ in wave.births[0].channels] == list(birth.channels)
    assert [c for c, _ in one.deaths[0].channels] == list(planted.truth.death_channels)
    assert (one.last, two.survives) == (2, True)
    # the same elements are large again, but not in this life
    assert np.isnan(one.living[5:]).all() and (one.course[5:] > 1000).all()
    assert np.flatnonzero(one.alive).tolist() == [1, 2] and np.flatnonzero(two.alive).tolist() == [5, 6]  # fmt: skip
    # each has its own layers of spread: what enters them alive
    assert (one.spread.layers, two.spread.layers) == ((2, 3), (6,))
    assert {sink for sink in planted.truth.sink_heads if sink[0] in (2, 3)} <= places_of(one.spread)
    assert report.waves.sweep[1000.0] == (2, 2, 1)
    # and the fields of one threshold tell both births, and that it is alive at the end
    assert report.birth.layers == (1, 5) and report.death.layer is None


@pytest.mark.parametrize(
    ("name", "changes"),
    [("gpt2", {}), ("llama-gqa", {}), ("llama-mha", {"sliding_window": 4})],
)
def test_the_spread_of_a_wave_counts_its_own_live_tokens(name, changes):
    """Waves of any tokens, some of which die, in a random model: what capture's q, k, v and maps give query by query."""
    lm = random_model(name, 7, **changes)
    rng = np.random.default_rng(7)
    tokens = rng.integers(0, lm.config.vocab_size, (3, 17))
    L, (N, T) = lm.num_layers, tokens.shape
    first = [(), *[{(0, 0), (2, 0), (2, 5)}] * (L - 1)]
    second = [{(1, 3), (1, 4)}, {(1, 4)}, *[()] * (L - 2)]
    one, two, nobody = spreading(lm, tokens)([first, second, [()] * L])
    assert (one.layers, two.layers) == (tuple(range(1, L)), (0, 1))
    assert (one.tokens.tolist(), two.tokens.tolist()) == ([3] * (L - 1), [2, 1])
    assert nobody.layers == () and nobody.mass.shape == (0, lm.config.layer(0).heads.heads)
    assert nobody.strongest is None and nobody.heads == ()
    _, taps = so.capture(lm, tokens, ("attn_map", "v"))
    windows = lm.attention_windows(T)
    for spread, entering in ((one, first), (two, second)):
        for at, layer in enumerate(spread.layers):
            marked = np.zeros((N, T), bool)
            marked[tuple(np.array(sorted(entering[layer])).T)] = True
            mass, even = [], []
            for n, t in np.ndindex(N, T):
                seen = np.arange(T) <= t
                if windows[layer] is not None:
                    seen &= np.arange(T) > t - windows[layer]
                if (marked[n] & seen).any():
                    mass.append(taps["attn_map"][layer][n, :, t][:, marked[n]].sum(1))
                    even.append((marked[n] & seen).sum() / seen.sum())
            np.testing.assert_allclose(spread.mass[at], np.mean(mass, 0), rtol=1e-4)
            assert spread.even[at] == pytest.approx(np.mean(even), rel=1e-5)
            held = marked.any(axis=1)
            lengths = np.linalg.norm(taps["v"][layer], axis=-1)[held]  # (held, T, K)
            drain = lengths[marked[held]].mean(0) / lengths[~marked[held]].mean(0)
            np.testing.assert_allclose(spread.drain[at], drain, rtol=1e-4)


def test_sink_heads_are_over_the_even_share_and_name_their_dims():
    """Two layers, two query heads that share a key head, written down."""
    both = np.array([[0.7, 0.2], [0.9, 0.5]])
    treated = {
        "mass": both,
        "even": np.array([0.79, 0.3]),
        "drain": np.array([[0.3], [1.3]]),
        **dict.fromkeys(("output_drain", "update", "loudness"), both / 2),
        "qk": np.array([np.zeros((2, 4)), [[8.0, 0.1, 1.5, -1.6], [-1.0, 0, 0, 0]]]),
    }
    strong, mute = sink_heads([4, 5], treated)  # 0.7 is under the even share of 0.79
    assert (strong.layer, strong.head, strong.mass, strong.even) == (5, 0, 0.9, 0.3)
    assert strong.dims == (0, 2) and strong.dims_share == pytest.approx(9.5 / 8)
    assert (strong.drain, strong.update) == (1.3, 0.45)
    assert mute.head == 1 and mute.dims == () and np.isnan(mute.dims_share)


def places_of(spread: WaveSpread) -> set[tuple[int, int]]:
    return {(head.layer, head.head) for head in spread.heads}


@pytest.mark.parametrize("name", ["gpt2", "llama-gqa"])
def test_a_random_model_has_at_most_weak_waves(name):
    """Where nothing reaches the level the strongest elements are followed; every number is one of h as `capture` gives it."""
    lm = random_model(name, 4)
    tokens = np.random.default_rng(4).integers(0, lm.config.vocab_size, (3, 20))
    stats = so.collect(lm, tokens)
    found = find_waves(lm, stats.tokens, stats.h, 1000.0)
    _, taps = so.capture(lm, tokens, ("h",))
    h = np.asarray(taps["h"])  # (L, N, T, D)
    for wave in found.waves:
        assert not wave.above and wave.ratio > found.level
        at = h[(wave.peak, *wave.tokens[0], wave.dims[0])]
        assert wave.value == pytest.approx(at, rel=1e-5)
