"""Published values: what the table holds, and verdicts on reports whose truth is known."""

from __future__ import annotations

import re

import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analyses.measured import (
    measured_by_consistency,
    measured_by_interventions,
    measured_by_length,
    measured_by_lifecycle,
    measured_by_positions,
    measured_by_statistics,
)
from sysout_jax.data.demo import byte_tokenizer
from sysout_jax.published import values as published_values
from sysout_jax.published.expected import DIFFERS, MATCH, NOT_MEASURED, RULES, Expected, compare
from sysout_jax.published.values import ALIASES, PUBLISHED, published
from sysout_jax.reports.expected import Expectation
from sysout_jax.testing import planted_llama


def verdict(rule, want, found, **more) -> str:
    expected = Expected("x", rule, want, "made up", **more)
    (check,) = compare([expected], {"x": found})
    return check.verdict


@pytest.mark.parametrize(
    "rule, want, yes, no, more",
    [
        ("equal", 1, 1, 2, {}),
        ("equal", 1, 1, "none", {}),
        ("equal", False, False, True, {}),
        ("about", 100.0, 104.9, 105.1, {}),
        ("about", 100.0, 95.1, 94.9, {}),
        ("about", -3.0, -3.1, 3.0, {}),
        ("about", 5.47, 5.5, 5.6, {"tolerance": 0.01}),
        ("about", (10.0, 2.0), np.array([10.2, 2.0]), np.array([10.2, 3.0]), {}),
        ("between", (600.0, 700.0), 650, 701, {}),
        ("below", 50, 49.9, 50, {}),
        ("above", 10, np.inf, 10, {}),
        ("members", (1, 2), (2, 1), (1,), {}),
        ("members", (1,), (1, 7), (1, 8), {"optional": (7,)}),
        ("includes", (1,), (3, 1), (), {}),
        ("includes", ((1, 2, 3),), ((1, 2, 3), (4, 5, 6)), ((1, 3, 2),), {}),
    ],
)
def test_rules(rule, want, yes, no, more):
    assert verdict(rule, want, yes, **more) == MATCH
    assert verdict(rule, want, no, **more) == DIFFERS


def test_rules_over_layers():
    values = np.array([1.0, 2.0, 3.0, 90.0])
    assert verdict("about", 2.0, values, layers=(0, 1, 2)) == MATCH  # their mean
    assert verdict("below", 3.5, values, layers=(0, 1, 2)) == MATCH  # their largest
    assert verdict("below", 3.5, values, layers=(2, 3)) == DIFFERS
    assert verdict("above", 1.5, values, layers=(1, 2)) == MATCH  # their smallest
    assert verdict("above", 1.5, values, layers=(0, 2)) == DIFFERS
    assert verdict("includes", (5,), [(1,), (5, 2)], layers=(1,)) == MATCH
    assert verdict("about", 1.0, values, layers=(4,)) == NOT_MEASURED  # the model has no such layer
    assert verdict("about", 1.0, None) == NOT_MEASURED
    assert verdict("about", 1.0, float("nan")) == NOT_MEASURED


@pytest.fixture(scope="module")
def planted():
    plant = planted_llama(
        seed=int(np.random.default_rng().integers(10_000)),
        placement="both",
        sinks=2,
        vocab_size=257,
    )
    plant.lm.tokenizer = byte_tokenizer()
    tokens = plant.tokens(2, 64)
    return plant, so.lifecycle(plant.lm, tokens, cause=False), tokens


def test_planted_report_matches_its_truth_and_no_other(planted):
    plant, report, tokens = planted
    truth, (birth,) = plant.truth, plant.truth.births
    mask = plant.mask(tokens)
    measured = measured_by_lifecycle(report, lambda n, t: f"“{tokens[n, t]}”")
    value = abs(report.trace.h[birth.layer]).max()

    def expectations(shift: int) -> list[Expected]:
        """All true at `shift` 0, all wrong beside it."""
        weights = tuple((birth.layer, d, c + shift) for d in birth.dims for c in birth.channels)
        channels = tuple(c + shift for c in birth.channels)
        positions = tuple(int(t) + shift for t in np.unique(np.argwhere(mask)[:, 1]))
        scale = 1 + shift
        share = 100 * mask[:, 0].sum() / mask.sum()
        alive = mask.sum() if shift == 0 else 0.5
        layers = tuple(range(birth.layer, truth.death_layer))
        return [
            Expected("birth layer, from 0", "equal", birth.layer + shift, "made up"),
            Expected("outliers in h", "equal", shift == 0, "made up"),
            Expected("h dims", "members", tuple(d + shift for d in birth.dims), "made up"),
            Expected("x_down channels of the birth", "members", channels, "made up"),
            Expected("birth weights (layer from 0, row, column)", "members", weights, "made up"),
            Expected("positions of outlier tokens", "members", positions, "made up"),
            Expected(
                "outlier tokens beyond the first position", "members",
                (f"“{truth.outlier_tokens[0] + shift}”",), "made up",
            ),
            Expected("outlier tokens that are first (%)", "about", share * scale, "made up"),
            Expected("largest |h|", "about", value * scale, "made up"),
            Expected("tokens with an outlier in h", "about", float(alive), "made up", layers),
            Expected("largest |h| of all sequences", "about", value * scale, "made up", (birth.layer,)),
        ]  # fmt: skip

    right = Expectation("made up", expectations(0), measured)
    assert [c.verdict for c in right.checks] == [MATCH] * len(right.checks), right.text()
    wrong = Expectation("made up", expectations(1), measured)
    assert [c.verdict for c in wrong.checks] == [DIFFERS] * len(wrong.checks), wrong.text()
    assert f"{len(right.checks)} match, 0 differ" in right.verdict
    assert "differs" in wrong.text() and wrong.section().blocks[0] == wrong.verdict
    assert wrong.to_dict()["checks"][0]["expected"] == str(birth.layer + 1)


def test_planted_interventions(planted):
    plant, report, tokens = planted
    found = so.intervene(
        plant.lm, tokens, report=report, what=("zero", "mean"), where=("birth",), seeds=1
    )
    measured = measured_by_interventions(found)
    same = measured["perplexity"]
    checks = compare(
        [
            Expected("perplexity, outliers to the mean", "about", same, "made up", tolerance=0.01),
            Expected("perplexity ratio, outliers to zero", "above", 10.0, "made up"),
            Expected("sink rate at T 64 (%)", "about", 1.0, "made up"),
        ],
        measured,
    )
    # a planted model's perplexity does not explode: its outliers do nothing but be there
    assert [check.verdict for check in checks] == [MATCH, DIFFERS, NOT_MEASURED]


def find(name: str, quantity: str, layer: int | None = None) -> Expected:
    (one,) = [
        e
        for e in published(name)
        if e.quantity == quantity and (layer is None or layer in e.layers)
    ]
    return one


def test_the_table_holds_the_reference():
    """Spot checks against REFERENCE.md."""
    assert len(PUBLISHED) == 29
    places = {name for name, rows in PUBLISHED.items() if rows[0].quantity == "birth layer, from 0"}
    assert places == set(
        """llama-2-7b llama-2-13b llama-3-8b mistral-7b mixtral-8x7b opt-6.7b mpt-7b falcon-7b phi-2 gpt2
        llama-3.2-1b""".split()
    )
    assert [
        find(n, "birth layer, from 0").want for n in ("llama-2-7b", "falcon-7b", "opt-6.7b")
    ] == [1, 3, 0]
    assert find("llama-2-13b", "h dims").want == (2100, 4743)
    assert find("mistral-7b", "h dims").optional == (3398,)
    assert find("llama-3-8b", "x_down channels of the birth").want == (2427,)
    assert find("olmo-1b", "birth weights (layer from 0, row, column)").want == (
        (1, 1764, 1710),
        (1, 1764, 8041),
    )
    assert find("llama-2-7b", "extremal ratio of W_down", 30).want == 565
    assert find("llama-2-7b", "three largest |h|").layers == tuple(range(1, 30))
    assert find("llama-2-7b", "attention on outlier tokens", 31).want == 0.43
    assert find("gpt2", "largest |h| of all sequences", 9).want == 3024
    assert find("gpt2-xl", "sink rate at T 64 (%)").want == 77.0
    assert find("gpt2_context_bias", "largest |h|").want == (600, 700)
    assert find("gpt2_default", "perplexity on WikiText-2, 50 % pruned").want == 7235.68
    assert published("LLaMA-2-7B-chat") == published("llama-2-7b")


def test_every_entry_can_be_held_against_a_report(planted):
    _, report, tokens = planted
    measured = measured_by_lifecycle(report, lambda n, t: str(tokens[n, t]))
    assert set(ALIASES.values()) <= set(PUBLISHED)
    for name, rows in PUBLISHED.items():
        assert rows and all(row.rule in RULES and row.source for row in rows)
        checks = Expectation(name, rows, measured).checks
        assert {check.verdict for check in checks} <= {MATCH, DIFFERS, NOT_MEASURED}
        assert all(check.expected and check.found for check in checks)


def test_unknown_names_are_answered_with_the_nearest_and_all():
    with pytest.raises(so.InputError, match="did you mean llama-2-7b\\?") as error:
        published("llama2-7b")
    assert all(name in str(error.value) for name in [*PUBLISHED, *ALIASES])


def test_sources_are_well_formed():
    """Every value says where it is from: one of the few sources, with the arXiv number of a paper in its known form."""
    known = {
        "2502.06415": "An et al. 2025",
        "2402.17762": "Sun et al. 2024",
        "2411.07191": "Yu et al. 2024",
        "2410.10781": "Gu et al. 2024",
    }
    unnumbered = {published_values.PLACES, published_values.OPENWEBTEXT, published_values.ROWS}
    for name, rows in PUBLISHED.items():
        assert len({(r.quantity, r.layers, r.rule) for r in rows}) == len(rows), name
        for row in rows:
            numbers = re.findall(r"arXiv (\d{4}\.\d{5})\)", row.source)
            if row.source in unnumbered:
                assert not numbers
                continue
            assert len(numbers) == 1, (name, row)
            assert row.source.startswith(f"{known[numbers[0]]}"), (name, row)
            assert row.layers == tuple(sorted(set(row.layers))) and min(row.layers, default=0) >= 0


def numbers_of(want) -> list[float]:
    """Every number in a wanted value, however it is nested."""
    if isinstance(want, tuple):
        return [number for part in want for number in numbers_of(part)]
    return [float(want)] if isinstance(want, (int, float)) and not isinstance(want, bool) else []


def test_every_number_stands_in_the_reference(shared_data):
    """REFERENCE.md or the paper's text holds each of them; layers there are counted from 0 or from 1."""
    texts = [(shared_data.parent / name) for name in ("REFERENCE.md", "PAPER.md")]
    if not all(text.is_file() for text in texts):
        pytest.skip("the reference is not beside the data")
    text = " ".join(path.read_text() for path in texts)
    there = {float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*(?:\.\d+)?", text) if n != ","}
    # words: "explodes", "then none"
    words = {("perplexity ratio, outliers to zero", 10.0), ("tokens with an outlier in h", 1.0)}
    k = {1000.0: 1.0}  # "≈ 1k"
    for name, rows in PUBLISHED.items():
        for row in rows:
            for value in numbers_of(row.want):
                assert value in there or k.get(value) in there or (row.quantity, value) in words, (
                    name,
                    row.quantity,
                    value,
                )


def test_planted_truth_in_the_other_reports(planted):
    """Positions, existence, consistency and length measure the same quantities under the same names."""
    plant, lifecycle_report, tokens = planted
    birth = plant.truth.births[0]
    lm = plant.lm
    mask = plant.mask(tokens)

    def text(n: int, t: int) -> str:
        return lm.tokenizer.token(int(tokens[n, t]))

    positions = tuple(int(t) for t in np.unique(np.argwhere(mask)[:, 1]))
    truth = [
        Expected("birth layer, from 0", "equal", birth.layer, "made up"),
        Expected("outliers in h", "equal", True, "made up"),
        Expected("positions of outlier tokens", "members", positions, "made up"),
    ]
    dims = Expected("h dims", "members", birth.dims, "made up")
    found = {
        "positions": measured_by_positions(so.positions(lm, tokens), text),
        "existence": measured_by_statistics(lifecycle_report.stats, 1000.0, text),
        "length": measured_by_length(
            so.by_length(lm, tokens, sentences=(), lengths=(32, 64)), text
        ),
    }
    for name, measured in found.items():
        wanted = truth if name == "length" else [*truth, dims]
        assert [c.verdict for c in compare(wanted, measured)] == [MATCH] * len(wanted), name
    sinks = {(s.layer, s.head) for s in plant.truth.sinks}
    layer = next(iter(sinks))[0]
    assert found["positions"]["attention on outlier tokens, most of a head"][layer] > 0.8
    measured = measured_by_consistency(so.consistency(lm, tokens))
    paper = {e.quantity for e in published("llama-2-7b") if e.quantity.startswith("consistency")}
    assert paper == {q for q in measured if q.startswith("consistency")}
    assert measured["outliers in h"] is True


def test_the_terminal_table_fits_and_loses_no_word(planted):
    _, report, tokens = planted
    measured = measured_by_lifecycle(report, lambda n, t: f"“{tokens[n, t]}”")
    for name, rows in PUBLISHED.items():
        expectation = Expectation(name, rows, measured)
        text = expectation.text()
        assert max(map(len, text.splitlines())) <= 100
        words = set(text.split())
        for check in expectation.checks:
            assert set(check.quantity.split()) - {""} <= {w.rstrip(",") for w in words} | words
