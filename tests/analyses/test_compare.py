"""Two lifecycles side by side, from files that somebody may have damaged."""

from __future__ import annotations

import copy
import json
import sys

import numpy as np
import pytest

import analyze.compare
from sysout_jax.analyses.compare.measure import compare
from sysout_jax.analyses.compare.page import differences, facts, made_from
from sysout_jax.commands.cli import run
from sysout_jax.errors import InputError


def lifecycle(layers=4, heads=2, **changes) -> dict:
    """As `analyze.lifecycle` writes it: an outlier from layer 2 to 3, counted from 1."""
    mass = np.zeros((layers, heads))
    mass[2:] = 0.9
    report = {
        "model": "models/one",
        "tau": 1000.0,
        "found": True,
        "num_layers": layers,
        "num_sequences": 2,
        "length": 64,
        "largest_h": {"ratio": 4000.0, "value": 600.0, "layer": 1, "label": "7"},
        "birth": {"layers": [1], "dims": [7], "events": [{"channels": [{"label": "3"}]}]},
        "spread": {"heads": [{}] * 3, "mass": mass.tolist()},
        "death": {"layer": 3, "last_alive": 2},
        "cause": {
            "baseline": {"perplexity": 20.0},
            "edits": {"element": {"weights": 2, "effect": {"perplexity": 200.0}}},
        },
        "statistics": {
            "h": {"ratio": [10.0, 4000.0, 3000.0, 10.0][:layers]},
            "x_down": {"ratio": [10.0, None, 30.0, 10.0][:layers]},
            "attention": {"first_token_share": mass.tolist()},
        },
        "settings": {"flags": {"text": None, "prompt": None}},
    }
    return report | changes


def write(folder, report):
    folder.mkdir()
    (folder / "lifecycle.json").write_text(json.dumps(report))
    return folder


@pytest.fixture
def one(tmp_path):
    return write(tmp_path / "one", lifecycle())


def other_report():
    report = lifecycle(
        model="models/two",
        tau=300.0,
        largest_h={"ratio": 1000.0, "value": 50.0, "layer": 0, "label": "9"},
        birth={"layers": [0, 1], "dims": [8, 9], "events": [{"channels": []}]},
        death={"layer": None, "last_alive": 3},
        cause=None,
    )
    report["spread"]["heads"] = []
    return report


def test_differences_in_sentences(one, tmp_path):
    found = differences(compare(one, write(tmp_path / "two", other_report())))
    assert found == [
        "Both one at τ = 1000 and two at τ = 300 have systematic outliers.",
        "The largest number is 4 times as large against its mean in one: 4,000 times its mean in one, 1,000 times in two.",
        "They are born in one in layer 2 of 4, and are last seen in layer 3; in two in layers 1–2 of 4, and are last seen in layer 4.",
        "one uses dim 7, two dims 8, 9.",
        "one has 3 sink heads after the birth and two 0 sink heads after the birth.",
        "Without the weights that write the outliers perplexity changes by ×10 in one (2 of them).",
        "Mind that the runs are not alike: τ is 1000 in one and 300 in the other.",
    ]


def test_one_without_outliers(one, tmp_path):
    none = lifecycle(model="two", found=False, birth={"layers": [], "dims": [], "events": []}, cause=None)  # fmt: skip
    none["death"] = {"layer": None, "last_alive": None}
    report = compare(one, write(tmp_path / "two", none))
    assert differences(report)[0] == "one has systematic outliers, two has none at τ = 1000."
    rows = {row[0]: row[1:] for row in facts(report).rows}
    assert rows["birth layers"] == ("2", "–") and rows["systematic outliers"] == ("yes", "no")
    assert report.second.attention is report.second.first_token


@pytest.mark.parametrize(
    "found, said",
    [
        ((True, False), "one has systematic outliers at τ = 2, two has none at τ = 1000."),
        ((False, True), "two has systematic outliers at τ = 1000, one has none at τ = 2."),
        ((False, False), "Neither one at τ = 2 nor two at τ = 1000 has a systematic outlier."),
    ],
)
def test_thresholds_that_differ_are_both_told(found, said, tmp_path):
    one = write(tmp_path / "one", lifecycle(found=found[0], tau=2.0))
    two = write(tmp_path / "two", lifecycle(found=found[1], model="two"))
    assert differences(compare(one, two))[0] == said


def test_runs_of_one_model_are_told_apart_by_their_directories(one, tmp_path):
    report = compare(one, write(tmp_path / "two", lifecycle(tau=300.0)))
    assert [told.name for told in report.both] == ["models/one (one)", "models/one (two)"]
    twice = compare(one, one)
    assert [told.name for told in twice.both] == ["models/one (1)", "models/one (2)"]


def test_the_same_run_twice_has_no_difference(one, tmp_path):
    report = compare(one, one / "lifecycle.json")
    assert report.first.name != report.second.name
    assert "about as strong in both" in differences(report)[1]
    assert not any("not alike" in sentence for sentence in differences(report))


def test_each_figure_tells_its_runs(one, tmp_path):
    alike = made_from(compare(one, write(tmp_path / "b", lifecycle(model="b"))))
    assert alike == "one and b · the package's text, 2 × 64 tokens · τ = 1000"
    other = made_from(compare(one, write(tmp_path / "two", other_report())))
    assert other == (
        "one: the package's text, 2 × 64 tokens · τ = 1000 — two: the package's text, 2 × 64 tokens · τ = 300"
    )


def damaged():
    for path, value in (
        ("model", 3), ("tau", "x"), ("found", 1), ("largest_h", []), ("birth", None), ("spread", {}), ("death", 0),
        ("statistics", {"h": {"ratio": [1.0]}}), ("settings", None), ("num_layers", True), ("cause", {}),
    ):  # fmt: skip
        yield pytest.param(path, value, id=path)
    yield pytest.param("birth", {"layers": [1], "dims": [7], "events": [3]}, id="events")
    yield pytest.param("spread", {"heads": [], "mass": [[1.0], [1.0, 2.0]]}, id="ragged")


@pytest.mark.parametrize("path, value", damaged())
def test_damage_is_one_line(path, value, one, tmp_path, monkeypatch, capsys):
    bad = write(tmp_path / "bad", copy.deepcopy(lifecycle()) | {path: value})
    with pytest.raises(InputError, match=r"lifecycle.json: is no report of a lifecycle \("):
        compare(one, bad)


def test_the_command_writes_a_page_and_refuses_in_one_line(one, tmp_path, monkeypatch, capsys):
    two, out = write(tmp_path / "two", other_report()), tmp_path / "out"

    def call(*flags):
        monkeypatch.setattr(sys, "argv", ["analyze.compare", *map(str, flags)])
        with pytest.raises(SystemExit) as end:
            run(analyze.compare.main)
        return int(end.value.code or 0)

    assert call("--runs", one, tmp_path, "--out", out) == 2
    assert not out.exists() and len(capsys.readouterr().err.splitlines()) == 1
    assert call("--runs", one, two, "--out", out) == 0
    assert {path.name for path in (out / "figures").iterdir()} == {
        f"{name}.{kind}" for name in ("strength", "attention") for kind in ("png", "pdf")
    }
    stored = json.loads((out / "compare.json").read_text())
    assert [model["name"] for model in stored["models"]] == ["one", "two"]
    assert "one uses dim 7, two dims 8, 9." in (out / "report.html").read_text()
