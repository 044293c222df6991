"""What edits of planted birth writers do, computed a second time from weights edited by hand."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analyses.lifecycle.figures.cause import cause_sentence, left
from sysout_jax.analyses.lifecycle.page import lifecycle_sections
from sysout_jax.analyses.lifecycle.summary import lifecycle_summary
from sysout_jax.interventions.weights import CONTROLS, EDITS
from sysout_jax.outliers.definitions import TAUS
from sysout_jax.testing import Birth, planted_llama
from sysout_jax.weights import InMemory, groups


@pytest.fixture(scope="module")
def planted():
    """A birth by two channels, one dim."""
    plant = planted_llama(3, births=(Birth(layer=1, dims=1, channels=2),), death_layer=-2)
    tokens = plant.tokens(2, 96)
    return plant, tokens, so.lifecycle(plant.lm, tokens)


def by_hand(plant, tokens, edit) -> tuple[float, np.ndarray, np.ndarray]:
    """Perplexity, largest |h| over the mean (L,), and magnitudes (L, N, T) of h over the mean, of W_down (F, D) after `edit`."""
    params = jax.tree.map(np.array, plant.lm.params)
    (birth,) = plant.truth.births
    edit(params[f"layer_{birth.layer}"]["mlp"]["down_proj"]["kernel"])
    lm = dataclasses.replace(plant.lm, source=InMemory(params))
    logits, taps = so.capture(lm, tokens, ("h",))
    logits = np.asarray(logits, np.float64)[:, :-1]
    log_p = logits - logits.max(-1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
    nll = -np.take_along_axis(log_p, np.asarray(tokens)[:, 1:, None], axis=-1)
    size = np.abs(np.asarray(taps["h"], np.float64))
    token_max = size.max(-1) / size.mean((2, 3))[..., None]
    return float(np.exp(nll.mean())), token_max.max((1, 2)), token_max


def test_every_edit_is_that_of_weights_edited_by_hand(planted):
    plant, tokens, report = planted
    (birth,) = plant.truth.births
    channels, dims = list(birth.channels), list(birth.dims)

    def scaled(place, factor):
        def edit(kernel):
            kernel[place] *= factor

        return edit

    element = np.ix_(channels, dims)
    want = {
        "element": scaled(element, 0),
        "half": scaled(element, 0.5),
        "column": scaled(channels, 0),
        "row": scaled((slice(None), dims), 0),
    }
    found = report.cause
    assert list(found.edits) == list(EDITS) == list(want)
    cases = [(found.baseline, lambda kernel: None)]
    cases += [(found.edits[name].effect, edit) for name, edit in want.items()]
    cases += [
        (effect, scaled(np.ix_([writer.channel], dims), 0))
        for writer, effect in zip(found.singles, found.edits["element"].alone, strict=True)
    ]
    assert {writer.channel for writer in found.singles} == set(channels)
    for effect, edit in cases:
        perplexity, ratios, over = by_hand(plant, tokens, edit)
        assert effect.perplexity == pytest.approx(perplexity, rel=1e-4)
        np.testing.assert_allclose(effect.ratio_per_layer, ratios, rtol=1e-3)
        over, left = over[found.first :], ratios[found.first :].max()
        assert effect.flags == {f"{tau:g}": int((over > tau).sum()) for tau in TAUS}
        assert effect.outliers == int((over > report.tau).sum())
        assert effect.ratio == pytest.approx(left, rel=1e-3)
    counts = [len(channels) * len(dims)] * 2
    F, D = plant.lm.config.d_ff, plant.lm.config.d_model
    counts += [len(channels) * D, F * len(dims)]
    assert [edit.weights for edit in found.edits.values()] == counts


def test_what_an_earlier_wave_leaves_is_not_told_of_an_edit():
    """A life under τ in layers 1 and 2, and a larger one from layer 5 on: edits of layer 5 change nothing of the first."""
    plant = planted_llama(seed=5, num_layers=7, births=(Birth(1, dims=1),), death_layer=3)
    lm, tokens = plant.lm, plant.tokens(2, 64, 5)
    params = {name: lm.read(name) for name in groups(lm.config)}
    params["layer_5"] = params["layer_5"] | {"mlp": params["layer_1"]["mlp"]}
    for name in ("layer_1", "layer_3"):  # what is written and what is taken back
        mlp = params[name]["mlp"]
        weaker = {"down_proj": {"kernel": 0.3 * mlp["down_proj"]["kernel"]}}
        params[name] = params[name] | {"mlp": mlp | weaker}
    lm = dataclasses.replace(lm, source=InMemory(params))
    tau = 1.5 * so.collect(lm, tokens).h.ratio[:5].max()
    report = so.lifecycle(lm, tokens, tau)
    element = report.cause.edits["element"].effect
    assert report.birth.layers == (5,) and report.cause.first == 5
    assert element.ratio == pytest.approx(element.ratio_per_layer[5:].max())
    assert element.ratio < 0.2 * element.ratio_per_layer[:5].max()
    assert element.flags["300"] == 0 < report.cause.baseline.flags["300"]
    told = cause_sentence(report, str)
    assert "from layer 6 on" in told and f"{element.ratio_per_layer.max():.0f}" not in told


def test_attention_goes_where_the_outlier_goes_and_controls_change_little(planted):
    plant, _, report = planted
    found = report.cause
    (birth,) = plant.truth.births
    before, element = found.baseline, found.edits["element"]
    assert found.heads == len(plant.truth.sink_heads)
    after = slice(birth.layer + 1, None)
    for name in ("element", "column", "row"):
        effect = found.edits[name].effect
        assert (effect.mass_per_layer[after] <= before.mass_per_layer[after] + 1e-3).all()
        assert effect.mass_per_layer[after].max() < before.mass_per_layer[after].max()
        np.testing.assert_array_equal(
            effect.mass_per_layer[: birth.layer], before.mass_per_layer[: birth.layer]
        )
    for name in ("element", "column"):
        assert list(found.edits[name].controls) == list(CONTROLS)
        for effect in found.edits[name].controls.values():
            assert effect.outliers == before.outliers
    assert element.controls["random"].perplexity == pytest.approx(before.perplexity, rel=0.05)


def test_what_is_only_under_tau_is_not_said_to_be_gone(planted):
    """Half of an outlier of 1.5 τ is no outlier, and it is there."""
    plant, tokens, report = planted
    tau = report.largest_h.ratio / 1.5
    report = so.lifecycle(plant.lm, tokens, tau)
    half = report.cause.edits["half"].effect
    assert half.outliers == 0 < half.flags["1000"]
    told = left(report, half)
    assert "nothing over τ" in told and "over 1000" in told and "but" in told
    texts = [cause_sentence(report, str), lifecycle_summary(report, lambda n, t: "tok")]
    for text in texts:
        assert "gone" not in text
    assert told in texts[0] and str(half.flags["1000"]) in texts[1]
    (section,) = [s for s in lifecycle_sections(report, lambda n, t: "tok") if s.title == "Cause"]
    rows = [row for part in section.blocks if hasattr(part, "rows") for row in part.rows]
    assert [row[:2] for row in rows if row[0] == "half"] == [("half", "all writers of the births")]
