"""Flags of all analyses that cannot work, refused before anything is loaded; and what a terminal sees of a report."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import analyze.source
from analyze import lifecycle
from analyze.limits import flag_text
from analyze.source import Source, prepare, tell
from sysout_jax.errors import InputError, RunError
from tests.analyze import command

BIG = 10**400
REFUSED = [
    ({"tau": float("inf")}, "--tau inf: expected a positive threshold"),
    ({"tau": float("nan")}, "--tau nan: expected a positive threshold"),
    ({"tau": 1e300}, "--tau 1e+300"),
    ({"tau": 1e-300}, "--tau 1e-300"),
    ({"tau": -1.0}, "--tau -1"),
    ({"seed": -1}, "--seed -1: expected a number from 0"),
    ({"seed": 2**70}, "--seed 1180591620717411303424"),
    ({"seed": BIG}, "--seed 1000"),
    ({"batch_size": 10**12}, "--batch-size 1000000000000: expected at least 1 and at most"),
    ({"batch_size": 0}, "--batch-size 0"),
    ({"num_seqs": BIG}, "--num-seqs 1000"),
    ({"seq_len": -5}, "--seq-len -5"),
    ({"prompt": "x", "text": Path("y")}, "exclude each other"),
]


@pytest.mark.parametrize("flags, says", REFUSED)
def test_refused_before_a_device_is_touched(flags, says, monkeypatch):
    monkeypatch.setattr(analyze.source, "start_processes", lambda: pytest.fail("too late"))
    with pytest.raises(InputError) as caught:
        prepare(Source(**flags))
    assert says in str(caught.value) and len(str(caught.value)) < 300


def test_a_prompt_is_utf8_whatever_the_terminal():
    assert flag_text("--prompt", "Grüße\x00 τ") == "Grüße\x00 τ"
    assert (
        flag_text("--prompt", "Gr\udcc3\udcbc\udcc3\udc9fe") == "Grüße"
    )  # as an ASCII terminal hands it on
    with pytest.raises(InputError, match="--prompt a.udcff: not UTF-8"):
        flag_text("--prompt", "a\udcff")
    with pytest.raises(InputError, match="not UTF-8"):
        flag_text("--prompt", "\ud800")


def test_a_report_is_written_before_its_summary_is_shown(tmp_path, capsys):
    def write():
        assert capsys.readouterr().out == ""
        return [tmp_path / "report.html"]

    tell("sum\x1bmary", write, tmp_path)
    assert capsys.readouterr().out.startswith("sum\\x1bmary\nReport  ")


def test_a_report_that_cannot_be_written_costs_no_summary(tmp_path, capsys):
    def write():
        raise RunError("disk full")

    with pytest.raises(RunError):
        tell("summary", write, tmp_path)
    assert capsys.readouterr().out == "summary\n"


def flag_that_is_named(model, flags, monkeypatch, capsys) -> str:
    name, *given = flags.split(" ")
    given = ["word " * 40 if word == "@" else "" if word == "^" else word for word in given]
    main = importlib.import_module(f"analyze.{name}").main
    assert command.call(monkeypatch, main, "--ckpt", model, "--out", model / "new", *given) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and not (model / "new").exists()
    return line.removeprefix("error: ").partition(":")[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("lifecycle --seq-len 1 --bos", "--seq-len 1"),
        ("lifecycle --seq-len 65", "--seq-len 65"),
        ("lifecycle --prompt @", "--prompt"),
        ("lifecycle --prompt ^", "--prompt"),
        ("lifecycle --text ^", "--text"),
        ("length --prompt ^", "--prompt"),
        ("census --seq-len 1", "--seq-len 1"),
        ("census --prompt a", "--prompt"),
        ("compression --seq-len 1", "--seq-len 1"),
        ("compression --prompt a", "--prompt"),
        ("absorb --prefix 3 --seq-len 64", "--seq-len 64"),
        ("absorb --prefix @ --seq-len 8", "--seq-len 8"),
    ],
)
def test_what_cannot_work_is_said_of_its_flag(flags, named, model, monkeypatch, capsys):
    assert flag_that_is_named(model, flags, monkeypatch, capsys) == named


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lifecycle", "length", "census"])
def test_bos_of_a_model_that_has_none(name, tmp_path, monkeypatch, capsys):
    model = command.write_model(tmp_path / "none", bos_token_id=None)
    assert flag_that_is_named(model, f"{name} --bos", monkeypatch, capsys) == "--bos"


@pytest.mark.slow
def test_a_model_without_a_name(tmp_path, monkeypatch, capsys):
    flags = ("--ckpt", "", "--out", tmp_path / "new")
    assert command.call(monkeypatch, lifecycle.main, *flags) == 2
    assert capsys.readouterr().err.startswith("error: a model's path is empty")
