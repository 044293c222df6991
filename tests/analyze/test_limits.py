"""Flags of all analyses that cannot work, refused before anything is loaded; and what a terminal sees of a report."""

from __future__ import annotations

from pathlib import Path

import pytest

import analyze.source
from analyze.limits import flag_text
from analyze.source import Source, prepare, tell
from sysout_jax.errors import InputError, RunError

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
