"""The analysis must recover what was planted, exactly, and stay sensible where there is nothing to find."""

import json

import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analyses.lifecycle.summary import lifecycle_summary
from sysout_jax.testing import planted_llama, random_plant
from sysout_jax.weights import InMemory
from tests.parameters import mostly_endurance
from tests.random_models import random_model

# a fresh draw every time; sixteen seeds in a row run through all cases of random_plant, and where they begin is drawn
FIRST = int(np.random.default_rng().integers(160_000))
NUM_PLANTS = 16
USUAL = 7


def positions(mask):
    return tuple((int(n), int(t)) for n, t in np.argwhere(mask))


@pytest.mark.parametrize("case", mostly_endurance(range(NUM_PLANTS), usual=range(USUAL)))
def test_planted_truth_is_recovered(case):
    seed = FIRST + case
    print("seed", seed)  # pytest shows it when the test fails
    planted = random_plant(seed)
    truth = planted.truth
    tokens = planted.tokens(2, 256, seed)
    report = so.lifecycle(planted.lm, tokens)
    json.loads(report.to_json())
    assert lifecycle_summary(report, lambda n, t: str(tokens[n, t])).count("\n") <= 25

    assert report.found == truth.has_outlier
    if not truth.has_outlier:
        assert report.birth.layer is None and not report.birth.events
        assert not report.spread.heads
        assert report.death.layer is None and not report.death.oppositions
        assert report.cause is None
        assert report.largest_h.ratio < 1000
        if not truth.births:
            return
        # 300 to 600 times the mean: no outlier, but the strongest candidate, and it is followed all the same
        report = report.candidate

    assert report.birth.layers == truth.birth_layers
    for event, planted_birth in zip(report.birth.events, truth.births, strict=True):
        assert event.dims == planted_birth.dims
        assert tuple(np.sign(event.values)) == planted_birth.signs
        assert {c.index for c in event.channels} == set(planted_birth.channels)
        assert event.tokens == positions(planted.mask(tokens))
        assert event.explained > 0.9 and event.from_mlp > 0.9
        shares = dict(zip(planted_birth.channels, planted_birth.shares, strict=True))
        for channel in event.channels:
            assert channel.share == pytest.approx(shares[channel.index], abs=0.05)

    assert {(head.layer, head.head) for head in report.spread.heads} == truth.sink_heads
    sinks = {(sink.layer, sink.head): sink for sink in truth.sinks}
    for head in report.spread.heads:
        assert head.dims == sinks[head.layer, head.head].dims
        assert head.mass > 0.8
        assert head.drain < 0.5

    assert report.death.layer == truth.death_layer
    if truth.death_layer is not None:
        (killer,) = [
            o for o in report.death.oppositions if o.layer == truth.death_layer and o.part == "mlp"
        ]
        assert {c.index for c in killer.channels} == set(truth.death_channels)
        assert set(killer.dims) == set(truth.dims)
        assert killer.removed == pytest.approx(1.0, abs=0.05)

    if report.cause is not None:
        element = report.cause.edits["element"]
        assert element.effect.outliers == 0 < report.cause.baseline.outliers
        assert element.controls["random"].outliers == report.cause.baseline.outliers
        assert element.effect.mass < 0.3 < element.controls["random"].mass


def test_streamed_equals_in_memory_and_converted_equals_direct(tmp_path):
    """A model read layer by layer from disk gives the very same report as one in memory."""
    from sysout_jax.checkpoints import checkpoint

    planted = planted_llama(seed=5)
    tokens = planted.tokens(2, 256)
    checkpoint.save(tmp_path / "saved", planted.lm.config, planted.lm.source, "float32")
    streamed = so.load(tmp_path / "saved")
    found, want = (
        so.lifecycle(streamed, tokens).to_dict(),
        so.lifecycle(planted.lm, tokens).to_dict(),
    )
    assert found | {"model": ""} == want | {"model": ""}


def test_nan_weights_are_reported_not_fatal():
    lm = random_model("llama-gqa", seed=1)
    import jax

    broken = so.LanguageModel(
        lm.config, InMemory(jax.tree.map(lambda x: x * np.nan, lm.params)), name="broken"
    )
    tokens = np.random.default_rng(0).integers(0, 61, (2, 30))
    report = so.lifecycle(broken, tokens)
    assert not report.found and report.candidate is None
    assert report.stats.h.nonfinite.tolist() == [2 * 30 * 48] * 3
    assert report.stats.h.first_nonfinite[0].tolist() == [0, 0, 0]
    assert (report.stats.weights.nonfinite > 0).all()
    text = lifecycle_summary(report, lambda n, t: "x")
    assert "NaN or inf" in text
    json.loads(report.to_json())


@pytest.mark.parametrize(
    ("name", "shape"), [("gpt2", (1, 1)), ("gpt2", (3, 40)), ("llama-mqa", (1, 2))]
)
def test_random_models_have_no_outliers_and_a_candidate(name, shape):
    lm = random_model(name, seed=3)
    report = so.lifecycle(lm, np.random.default_rng(0).integers(0, 61, shape))
    assert not report.found
    assert report.candidate is not None and report.candidate.birth.layer is not None
    json.loads(report.to_json())


def test_low_threshold_finds_many_and_survives():
    lm = random_model("gpt2", seed=4)
    report = so.lifecycle(lm, np.random.default_rng(0).integers(0, 61, (4, 50)), tau=2.0)
    assert report.found and report.cause is not None
    assert report.birth.layer == 0
    assert sum(report.stats.h.outlier_tokens(2.0)[0].ravel()) == len(report.birth.events[0].tokens)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_a_short_text_makes_no_sink_by_arithmetic(length):
    """Of 9 tokens the first one gets 31% of even causal rows, of one token all: that alone is no sink."""
    lm = random_model("llama-gqa", 3)
    report = so.lifecycle(lm, np.random.default_rng(3).integers(0, 61, (1, length)))
    life = report if report.found else report.candidate
    even = life.spread.even
    assert (life.trace.targets.mask.sum(2) > 0).all() and (even <= 1).all()
    later = np.arange(len(even)) > life.birth.layer
    mass = life.spread.mass
    wanted = np.argwhere((mass > 0.3) & (mass > even[:, None]) & later[:, None]).tolist()
    assert [[head.layer, head.head] for head in life.spread.heads] == wanted
    if length == 1:
        assert not wanted and (mass > 0.3).all()
