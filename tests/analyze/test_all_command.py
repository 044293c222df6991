"""`analyze.all`: every analysis in shared passes, what fails is named and costs the rest nothing, and each report is the one of its own command."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import analyze.all
import analyze.compression
import analyze.existence
import analyze.positions
import sysout_jax as so
from analyze.commands import COMMANDS
from sysout_jax.commands.cli import run
from tests.analyze.command import call, tree, words

pytestmark = pytest.mark.slow

FEW = ("--num-seqs", 2, "--seq-len", 24, "--tau", 100)
DEAR = ("length", "intervene", "compression", "variants", "lifecycle")


def without_run(report: dict) -> dict:
    return {key: value for key, value in report.items() if key != "settings"}


def test_reports_are_those_of_the_single_commands(tmp_path, monkeypatch, capsys):
    passes = []
    collect = so.collect
    monkeypatch.setattr(
        so, "collect", lambda *args, **more: passes.append(1) or collect(*args, **more)
    )
    out = tmp_path / "out"
    flags = (*FEW, "--skip", *DEAR, "positions", "--export", "npz")
    assert call(monkeypatch, analyze.all.main, *flags, "--out", out) == 0
    assert len(passes) == 1
    assert np.load(out / "statistics.npz")["h.ratio"].shape == (8,)
    assert (out / "mask.json").is_file()
    printed = capsys.readouterr()
    assert printed.err == ""
    index = json.loads((out / "all.json").read_text())
    assert [part["name"] for part in index["parts"]] == ["consistency", "existence"]
    page = (out / "report.html").read_text()
    for part in index["parts"]:
        assert part["done"] and part["headline"] and part["name"] in printed.out
        assert f'href="{part["name"]}/report.html"' in page
        assert (out / part["name"] / "report.html").is_file()
    assert not (out / "figures").exists()
    assert page.count("<img") == 2 and "://" not in page
    assert call(monkeypatch, analyze.existence.main, *FEW, "--out", tmp_path / "alone") == 0
    alone, beside = (
        json.loads((directory / "existence.json").read_text())
        for directory in (tmp_path / "alone", out / "existence")
    )
    assert without_run(beside) == without_run(alone)


def test_compression_records_its_own_windows(tmp_path, monkeypatch):
    """It reads fewer and shorter ones than the others, and its report says so."""
    monkeypatch.setattr(analyze.compression.Args, "LENGTH", 24)
    monkeypatch.setattr(analyze.compression, "compression", only_one_method)
    out = tmp_path / "out"
    skip = [name for name in analyze.all.ANALYSES if name != "compression"]
    flags = ("--tau", 100, "--skip", *skip)
    assert call(monkeypatch, analyze.all.main, *flags, "--out", out) == 0
    report = json.loads((out / "compression" / "compression.json").read_text())
    (model,) = report["models"]
    assert (model["protocol"]["windows"], model["protocol"]["length"]) == (2, 24)
    assert (report["settings"]["sequences"], report["settings"]["length"]) == (2, 24)


def only_one_method(*args, **more):
    return so.compression(*args, **more | {"methods": ("w8_tensor",)})


def test_what_fails_is_named_and_the_rest_is_written(tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise so.InputError("no outlier to draw")

    def is_broken(*_):
        raise KeyError("a bug")

    monkeypatch.setattr(analyze.existence, "analyse", fails)
    monkeypatch.setattr(analyze.positions, "analyse", is_broken)
    out = tmp_path / "out"
    assert call(monkeypatch, analyze.all.main, *FEW, "--skip", *DEAR, "--out", out) == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == (
        "error: not done: positions, existence; the rest is written"
    )
    assert "Traceback" in printed.err and "no outlier to draw" in words(printed.out)
    parts = {p["name"]: p["done"] for p in json.loads((out / "all.json").read_text())["parts"]}
    assert parts == {"positions": False, "consistency": True, "existence": False}
    assert "no outlier to draw" in (out / "report.html").read_text()
    assert not (out / "existence").exists() and (out / "consistency" / "report.html").is_file()


@pytest.mark.parametrize(("flags", "expected"), [
    (["--skip", "lifecycel"], "--skip lifecycel: unknown; known are lifecycle"),
    (["--skip", *analyze.all.ANALYSES], "leaves no analysis"),
    (["--tau", -1], "positive threshold"),
])  # fmt: skip
def test_bad_flags(flags, expected, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, analyze.all.main, *flags, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1 and tree(tmp_path) == {}


def test_help_lists_every_command(monkeypatch, capsys):
    import analyze.__main__ as overview

    monkeypatch.setattr("sys.argv", ["analyze", "--help"])
    with pytest.raises(SystemExit) as end:
        run(overview.main)
    assert not end.value.code
    listed = re.findall(r"^  python -m analyze\.(\w+)  +\w", capsys.readouterr().out, re.MULTILINE)
    folder = Path(overview.__file__).parent
    programs = {p.stem for p in folder.glob("[a-z]*.py") if "\ndef main()" in p.read_text()}
    assert listed == list(COMMANDS) and set(COMMANDS) == programs
