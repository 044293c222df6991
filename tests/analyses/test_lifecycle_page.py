"""What the lifecycle's page tells first, and what a reader can move on it, against what was planted."""

from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analyses.lifecycle.explore import explore
from sysout_jax.analyses.lifecycle.page import lifecycle_sections
from sysout_jax.analyses.lifecycle.story import story
from sysout_jax.analyses.lifecycle.summary import lifecycle_summary
from sysout_jax.reports.interactive import Curves, TokenView
from sysout_jax.reports.page import Table
from sysout_jax.testing import Birth, planted_llama

TAU = 1000.0


@pytest.fixture(scope="module")
def planted():
    plant = planted_llama(births=(Birth(layer=1, dims=1, channels=2),), death_layer=-2)
    tokens = plant.tokens(2, 64)
    return plant, tokens, so.lifecycle(plant.lm, tokens, TAU)


def test_the_story_names_what_was_planted(planted):
    plant, _, report = planted
    told = " ".join(story(report, lambda n, t: "tok"))
    (birth,) = plant.truth.births
    assert f"One number, dim {birth.dims[0]}, of the" in told and "in layer 2, up to" in told
    assert "It is written by two channels of" in told
    assert {int(c) for c in re.findall(r"(\d+) \(\d+%\)", told)} == set(birth.channels)
    assert f"After layer {report.death.layer + 1} nothing is over τ any more" in told
    heads = len(report.spread.heads)
    assert f"Later, {heads} attention head" in told
    edits = (report.cause.edits[name].effect.perplexity for name in ("element", "column"))
    depends = min(edits) > 1.05 * report.cause.baseline.perplexity
    assert ("The model depends on it" in told) == depends
    for term in (
        "residual stream",
        "systematic outlier",
        "channel is",
        "attention sinks",
        "perplexity (",
    ):
        assert told.count(term) == 1  # explained where it first appears  # fmt: skip


@pytest.mark.parametrize("times, said", ((0.5, False), (2.0, True)))
def test_the_story_says_where_a_smaller_edit_is_worse(planted, times, said):
    _, _, report = planted
    edits = report.cause.edits
    effect = dataclasses.replace(
        edits["element"].effect, perplexity=times * edits["column"].effect.perplexity
    )
    edits = edits | {"element": dataclasses.replace(edits["element"], effect=effect)}
    changed = dataclasses.replace(report, cause=dataclasses.replace(report.cause, edits=edits))
    told = " ".join(story(changed, lambda n, t: "tok"))
    assert ("lose the outlier alone" in told) == said


def test_an_even_share_has_the_same_digits_on_the_page_and_the_terminal(planted):
    _, _, report = planted
    heads = tuple(dataclasses.replace(head, even=0.0073) for head in report.spread.heads)
    changed = dataclasses.replace(report, spread=dataclasses.replace(report.spread, heads=heads))
    told = " ".join(story(changed, lambda n, t: "tok"))
    assert "even attention would give 0.7%;" in told
    assert "(even attention: 0.7%)" in lifecycle_summary(changed, lambda n, t: "tok")
    sections = lifecycle_sections(changed, lambda n, t: "tok")
    tables = [block for section in sections for block in section.blocks if isinstance(block, Table)]
    (table,) = (t for t in tables if "attention on the tokens (even share)" in t.header)
    assert all("(0.7%)" in row[2] for row in table.rows)


def test_one_sink_head_gives_and_two_give(planted):
    _, _, report = planted
    for count, said in ((1, "later heads gives them more than 30% of its"), (2, "later heads give them more than 30% of their")):  # fmt: skip
        heads = (report.spread.heads * 2)[:count]
        spread = dataclasses.replace(report.spread, heads=heads)
        summary = lifecycle_summary(dataclasses.replace(report, spread=spread), lambda n, t: "tok")
        assert said in summary
        calm = dataclasses.replace(
            report, found=False, candidate=dataclasses.replace(report, spread=spread)
        )
        expected = (
            "1 later head gives their tokens more than 30% of its"
            if count == 1
            else "2 later heads give their"
        )
        assert expected in lifecycle_summary(calm, lambda n, t: "tok")


def test_the_story_of_a_model_without_outliers(planted):
    _, _, report = planted
    calm = dataclasses.replace(report, found=False, tau=1e6)
    told = " ".join(story(calm, lambda n, t: "tok"))
    assert "this model has none" in told and "One number, dim" not in told


def test_the_reader_sees_the_statistics(planted):
    plant, tokens, report = planted
    section = explore(report, lambda n, t: f"{n}:{t}")
    view = next(block for block in section.blocks if isinstance(block, TokenView))
    data = json.loads(ET.fromstring(f"<x>{view.html()}</x>").find(".//script").text)
    assert data["texts"][1][5] == "1:5" and data["start"] == report.largest_h.layer
    ratio, received, values = (np.array(m["values"], float) for m in data["measures"])
    _, taps = so.capture(plant.lm, tokens, names=("h", "attn_map", "v"))
    h, maps, v = (np.asarray(taps[name], np.float64) for name in ("h", "attn_map", "v"))
    a = np.abs(h)
    np.testing.assert_allclose(ratio, a.max(3) / a.mean((2, 3))[:, :, None], rtol=6e-3)
    see = 64 - np.arange(64)
    np.testing.assert_allclose(received, 100 * maps.sum(3).mean(2) / see, rtol=6e-3, atol=1e-4)
    norm = np.linalg.norm(v, axis=-1).mean(-1)
    np.testing.assert_allclose(values, norm / norm.mean(-1, keepdims=True), rtol=6e-3)
    heads = np.array(data["heads"]["values"], float)
    np.testing.assert_allclose(heads, 100 * maps.sum(3).mean(1) / see, rtol=6e-3, atol=1e-4)
    assert sum(isinstance(block, Curves) for block in section.blocks) == 2
