"""The command as people call it, on the planted model, small; and its page."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

from analyze import census
from tests.analyze import command
from tests.analyze.command import words

pytestmark = pytest.mark.slow

SMALL = ["--bos", "--seq-len", "48", "--num-seqs", "2", "--count", 2]


def test_outputs(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert (
        command.call(monkeypatch, census.main, *SMALL, "--expect", "smollm2-135m", "--out", out)
        == 0
    )
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "Rank is not severity" in words(printed.out)
    assert max(map(len, printed.out.split("Report ")[0].splitlines())) <= 100
    found = json.loads((out / "census.json").read_text(), parse_constant=pytest.fail)
    writes = [entry["writer"]["write"] for entry in found["entries"]]
    assert writes == sorted(writes, reverse=True)
    verdicts = {c["quantity"]: c["verdict"] for c in found["expected"]["checks"]}
    # the planted model has no such layer, and a row of its own
    assert verdicts["loss with row 507 of layer 11 (from 0) zeroed (%)"] == "not measured"
    assert verdicts["row that raises the loss most (layer from 0, row)"] == "differs"
    root = ET.fromstring((out / "report.html").read_text())
    titles = [h.text for h in root.iter("h2")]
    assert titles == [
        "How to read this page", "Writers", "Effects", "Pairs", "Expected and found", "Definitions", "Settings",
    ]  # fmt: skip
    assert {p.stem for p in (out / "figures").iterdir()} == {"effects", "ranks"}


@pytest.mark.parametrize("flags", [["--count", 0], ["--seeds", 0]])
def test_flags_that_cannot_work(flags, tmp_path, monkeypatch, capsys):
    assert command.call(monkeypatch, census.main, *flags, "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith(f"error: {flags[0]} 0: expected at least 1")
    assert not (tmp_path / "out").exists()
