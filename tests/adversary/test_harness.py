"""The harness itself: edits do what they say, and every broken promise is seen."""

from __future__ import annotations

import gzip
import json
import struct
import zipfile
from pathlib import Path
from random import Random

import pytest

from tests.adversary import corpus, kills, report
from tests.adversary.edits import EDITS, apply, changed_json, located, named
from tests.adversary.judge import judge
from tests.adversary.kinds import KINDS, Case, schedule
from tests.adversary.nasty import bytes_edit, json_edit

CASE = Case("config", 0, "hf", [["remove", "model/params/embed/d/*0"]], ["load", "model"])
GOOD = {
    "status": 0, "exception": None, "cpu": 1.0, "memory": 10.0, "stdout": "fine\n", "stderr": "", "reports": [],
    "new": [], "changed": [], "gone": [], "lost": [], "values": "weights 1",
}  # fmt: skip
REFUSED = GOOD | {"status": 2, "stderr": "error: model/config.json: not JSON; download it again\n"}
NORMAL = {"cpu": 0.5, "values": ["weights 1"]}


def promises(outcome: dict, **case) -> list[str]:
    return [f.promise for f in judge(Case(**{**CASE.__dict__, **case}), outcome, NORMAL)]


def test_good_outcomes_break_nothing():
    assert promises(GOOD) == promises(REFUSED) == []
    assert promises(GOOD, same_values=("load model",)) == []
    assert promises(GOOD | {"new": ["in/new/convert.json"]}) == []
    assert promises(GOOD | {"status": 1, "stderr": "error: x\n"}, allowed=(1,)) == []


@pytest.mark.parametrize(
    ("promise", "outcome"),
    [
        ("hang", {"ended": "hang", "trace": ""}),
        ("died by signal 11", {"ended": "died by signal 11", "trace": ""}),
        ("traceback", GOOD | {"status": None, "exception": {"type": "KeyError", "where": "x:y", "text": ""}}),
        ("traceback printed", GOOD | {"stderr": "Traceback (most recent call last):\nKeyError: 1\n"}),
        ("status 1", REFUSED | {"status": 1}),
        ("status 3", REFUSED | {"status": 3}),
        ("not one line", REFUSED | {"stderr": ""}),
        ("not one line", REFUSED | {"stderr": REFUSED["stderr"] * 2}),
        ("not one line", REFUSED | {"stderr": "usage: x\n"}),
        ("warning printed", GOOD | {"stderr": "x.py:1: RuntimeWarning: overflow\n"}),
        ("control characters", REFUSED | {"stderr": "error: \x1b[31m\n"}),
        ("control characters", GOOD | {"stdout": "a\u202eb"}),
        ("endless line", REFUSED | {"stderr": "error: " + "x" * 10_000 + "\n"}),
        ("slow", GOOD | {"cpu": 12.0}),
        ("memory", GOOD | {"memory": 1100.0}),
        ("written though refused", REFUSED | {"new": ["in/new"]}),
        ("lost", REFUSED | {"lost": ["in/model/x"], "gone": ["in/model/x"]}),
        ("left behind", GOOD | {"new": ["in/.new.partial"]}),
        ("left behind", GOOD | {"new": ["tmp/tmpabc"]}),
        ("unreadable report", GOOD | {"reports": ["ParseError"]}),
        ("wrong in silence", GOOD | {"values": "weights 2"}),
        ("wrong in silence", GOOD | {"values": None}),
    ],
)  # fmt: skip
def test_every_broken_promise_is_seen(promise, outcome):
    assert promise in promises(outcome, same_values=("load model",))


def test_a_command_of_many_commands_may_take_longer():
    assert promises(GOOD | {"cpu": 25.0}, command=["analyze.all"]) == []
    assert promises(GOOD | {"cpu": 95.0}, command=["analyze.all"]) == ["slow"]


def test_a_command_line_that_asks_for_other_work_may_take_longer():
    assert promises(GOOD | {"cpu": 25.0}, kind="arguments", edits=[]) == []
    assert promises(REFUSED | {"cpu": 25.0}, kind="arguments", edits=[]) == ["slow"]
    assert promises(GOOD | {"cpu": 75.0}, kind="arguments", edits=[]) == ["slow"]


def test_locks_of_runs_stay():
    lock = GOOD | {"new": ["in/a/seed=0/.lock"]}
    assert promises(lock, command=["train.sweep"]) == promises(lock, command=["train"]) == []
    assert promises(lock, command=["convert"]) == ["left behind"]


def test_the_only_right_status():
    assert promises(GOOD, status=2) == ["status 0"]
    assert promises(REFUSED, status=0) == ["status 2"]


def test_a_spoiled_command_line_has_no_damaged_place():
    assert promises(GOOD | {"values": "x"}, edits=[], same_values=("x",)) == ["wrong in silence"]


def test_a_train_run_may_set_damaged_checkpoints_aside_but_lose_none():
    resume = {"command": ["train", "--workdir", "run"]}
    lost = GOOD | {"lost": ["in/run/checkpoints/4/embed/x"]}
    assert promises(lost, **resume) == ["lost"]
    assert promises(GOOD | {"lost": ["in/run/metrics.jsonl"]}, **resume) == []
    assert promises(REFUSED | {"lost": ["in/run/metrics.jsonl"]}, **resume) == ["lost"]
    assert promises(REFUSED | {"new": ["in/run/checkpoints/4.damaged"]}, **resume) == []
    assert promises(REFUSED | {"new": ["in/run2"]}, **resume) == ["written though refused"]


def test_what_a_command_may_replace_and_leave():
    report = GOOD | {"lost": ["in/new/consistency.json"]}
    assert promises(report, command=["analyze.consistency", "--out", "new"]) == []
    assert promises(report, command=["analyze.consistency", "--out", "ne"]) == ["lost"]
    locked = GOOD | {"new": ["in/run/.lock"]}
    assert promises(locked, command=["train", "--workdir", "run"]) == []
    assert promises(locked, command=["convert", "--out", "run"]) == ["left behind"]


def test_one_fault_has_one_signature():
    refused = [REFUSED | {"stderr": f"/tmp/a{n}/b.py:{n}: bad thing {n}\nmore\n"} for n in (1, 22)]
    first, second = (judge(CASE, outcome, NORMAL) for outcome in refused)
    assert first == second != []


def test_edits(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"a": {"b": [1, 2]}, "c": 3}')
    apply([["json", "a.json", ["a", "b", 1], "NaN"], ["json", "a.json", ["d"], [["[", 3]]]], tmp_path)  # fmt: skip
    assert (tmp_path / "a.json").read_text() == '{"a": {"b": [1, NaN]}, "c": 3, "d": [[[}'
    (tmp_path / "b.json").write_text('{"c": 3}')  # too deep to be read for a second edit
    apply([["json", "b.json", ["c"], [["[", 99999], ["]", 99999]]], ["json", "b.json", ["d"], "5"]], tmp_path)  # fmt: skip
    assert (tmp_path / "b.json").read_text() == f'{{"c": {"[" * 99999}{"]" * 99999}}}'
    assert changed_json('{"c": 3}', ["c"], "4", True) == '{"c": 3, "c": 4}'
    assert changed_json('{"c": 3, "d": 4}', ["c"], None) == '{"d": 4}'
    (tmp_path / "a.bin").write_bytes(b"abcdef")
    apply([["splice", "a.bin", 1, 2, "2a", 3]], tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == b"a***def"
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"abc"))
    apply([["packed", "a.gz", 3, 0, "64"]], tmp_path)
    assert gzip.decompress((tmp_path / "a.gz").read_bytes()) == b"abcd"
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    apply([["line", "a.jsonl", 1, ["a"], "true"]], tmp_path)
    assert (tmp_path / "a.jsonl").read_text() == '{"a": 1}\n{"a": true}\n'
    head = b'{"x": 1}'
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + b"body")
    apply([["header", "a.safetensors", ["x"], "100"]], tmp_path)
    assert (tmp_path / "a.safetensors").read_bytes() == struct.pack("<Q", 10) + b'{"x": 100}body'
    apply([["write", "b/c", "x"], ["folder", "d"], ["link", "e", "d"], ["remove", "a.bin"]], tmp_path)  # fmt: skip
    assert (tmp_path / "b" / "c").read_text() == "x" and (tmp_path / "e").is_symlink()
    assert not (tmp_path / "a.bin").exists()


def test_edits_of_zip_archives(tmp_path: Path):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"abc")
        archive.writestr("x/byteorder", b"little")
    apply([["entry", "a.pt", "x/data.pkl", 0, 1, "ff"]], tmp_path)
    with zipfile.ZipFile(path) as archive:
        assert archive.read("x/data.pkl") == b"\xffbc" and archive.testzip() is None
    apply([["bomb", "a.pt", "x/byteorder", 4]], tmp_path)
    assert path.stat().st_size < 100_000
    with zipfile.ZipFile(path) as archive, archive.open("x/byteorder") as unpacked:
        assert archive.getinfo("x/byteorder").file_size == 4 << 20
        assert unpacked.read(1 << 20) == bytes(1 << 20)


def test_random_names_have_a_place(tmp_path: Path):
    for size, name in enumerate(("b" * 32, "a" * 32)):
        (tmp_path / name).write_bytes(b"x" * size)
    assert named(tmp_path, tmp_path / ("a" * 32)) == "*1"
    assert located(tmp_path, "*0").name == "b" * 32


def test_random_edits_change_something_and_are_data(tmp_path: Path):
    tree = {"a": [1, {"b": "c"}], "d": None}
    for seed in range(300):
        text, data = json.dumps(tree), bytes(range(200))
        (tmp_path / "a.json").write_text(text)
        (tmp_path / "a.bin").write_bytes(data)
        edits = [json_edit(Random(seed), "json", "a.json", tree), bytes_edit(Random(seed), "splice", "a.bin", data)]  # fmt: skip
        assert json.loads(json.dumps(edits)) == edits
        apply(edits, tmp_path)
    assert {"json", "splice"} <= set(EDITS)


def test_the_corpus_is_well_formed():
    cases = corpus.cases()
    assert len(cases) > 100
    assert {case.kind for case in cases} <= set(KINDS)
    assert all(case.reason and case.command for case in cases)
    assert {edit[0] for case in cases for edit in case.edits} <= set(EDITS)
    assert len({(case.kind, case.reason) for case in cases}) == len(cases)


def test_the_schedule_holds_every_kind_by_its_share():
    drawn = schedule(1000, 3)
    counts = {kind: sum(name == kind for name, _ in drawn) for kind in KINDS}
    assert abs(len(drawn) - 1000) < len(KINDS) and min(counts.values()) > 10
    assert len(set(drawn)) == len(drawn) and not set(drawn) & set(schedule(1000, 4))


def test_figures_fill_a_page(tmp_path: Path):
    figures = report.Figures()
    figures.add(CASE, REFUSED, [])
    figures.add(CASE, GOOD, judge(CASE, GOOD | {"memory": 2000.0}, NORMAL))
    kill = kills.Kill("train:1", "train", "SIGINT", 0.5, ["left behind"])
    figures.kills = kills.figures([kill])
    assert figures.failed and "memory" in figures.table() and "left behind" in figures.table()
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.fill(page, json.loads(json.dumps(figures.to_dict())))
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| config | 2 | 1 | 1 | 0 | 1 |" in text and "| train | 1 | 0 | 0 |" in text


def test_finished_reports_of_analyze_all_may_stay_whole():
    whole = {f"in/new/{n}" for n in ("report.html", "lifecycle", "lifecycle/report.html", "lifecycle/lifecycle.json", "positions", "positions/report.html")} | {"in/new"}  # fmt: skip
    first = {"in/new", "in/new/lifecycle", "in/new/lifecycle/report.html", "in/new/lifecycle/lifecycle.json"}  # fmt: skip
    assert kills.finished_reports(first, whole) == first
    assert kills.finished_reports(first | {"in/new/.positions.partial"}, whole) == first
    assert kills.finished_reports(first - {"in/new/lifecycle/report.html"}, whole) == set()
    assert (
        kills.finished_reports({"in/new"}, whole) == kills.finished_reports(set(), whole) == set()
    )
