"""The command as people call it: what it writes, one clear line for what cannot work, and nothing left by what was interrupted."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sysout_jax.commands.cli import BAD_INPUT, CANNOT_GO_ON, run
from sysout_jax.data import tokenizers
from sysout_jax.errors import InputError
from sysout_jax.storage import staging
from tests.parameters import mostly_endurance
from train.prepare import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def call(monkeypatch, *flags) -> int:
    monkeypatch.setattr(sys, "argv", ["train.prepare", *map(str, flags)])
    with pytest.raises(SystemExit) as end:
        run(main)
    return int(end.value.code or 0)


def start(*flags) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "train.prepare", *map(str, flags)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a background shell ignores it, and so would the process
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def books(directory: Path, count: int = 40, characters: int = 400) -> Path:
    """Random words, as .jsonl."""
    rng = np.random.default_rng()
    letters = rng.choice(list("etaoin shrdlu\n"), (count, characters))
    path = directory / "books.jsonl"
    path.write_text("".join(json.dumps({"text": "".join(row)}) + "\n" for row in letters))
    return path


def test_command(tmp_path):
    source, out = books(tmp_path), tmp_path / "new" / "out"
    flags = ("--source", source, source, "--tokenizer", "bytes", "--out", out, "--workers", "2")
    process = start(*flags, "--val-fraction", "0.3")
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (0, "")
    assert stdout.count("\n") == 3 and str(out) in stdout and "vocabulary 257, uint16" in stdout
    names = ["meta.json", "tokenizer.json", "train.bin", "val.bin"]
    assert sorted(p.name for p in out.iterdir()) == names
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    meta = json.loads((out / "meta.json").read_text())
    assert sum(split["documents"] for split in meta["splits"].values()) == 80
    assert sum(split["tokens"] for split in meta["splits"].values()) == 80 * 401
    assert "train.prepare --source" in meta["command"]


@pytest.mark.parametrize(
    ("task", "more", "setting", "opening"),
    [
        ("bigram-backcopy", [], {"triggers": "te "}, "BOS"),
        ("bigram-backcopy", ["--without-bos"], {"triggers": "te "}, "one character"),
        ("sparse-copy", ["--idle", "0.25"], {"idle": 0.25}, "BOS"),
    ],
)
def test_a_task(task, more, setting, opening, tmp_path, monkeypatch, capsys):
    flags = ("--task", task, *more, "--windows", 300, "--bos-every", 16, "--val-fraction", "0.1")
    assert call(monkeypatch, *flags, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    floor = meta["task"].pop("loss_floor")
    assert meta["task"] == {"name": task} | setting
    assert f"loss of {floor:.4f} nats" in printed and "--seq-len 16" in printed
    assert f"Windows of {opening} and 16 tokens" in printed
    assert (meta["windows"]["bos_id"] is None) == ("--without-bos" in more)
    assert {s: n["documents"] for s, n in meta["splits"].items()} == {"train": 270, "val": 30}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--task bigram-backcopy --eos x", "--eos: means nothing for --task bigram-backcopy"),
        ("--task bigram-backcopy --idle 0.5", "--idle: means nothing"),
        ("--task bigram-backcopy --idle 0", "--idle: means nothing"),
        ("--windows 0 --tokenizer bytes", "--windows: means nothing for text"),
        ("--task sparse-copy --triggers t", "--triggers: means nothing"),
        ("--task sparse-copy --idle 2", "idle 2: expected a share"),
        ("--task sparse-copy --windows 1", "--windows 1: expected at least 2"),
        ("--task sparse-copy --val-fraction 0", "--val-fraction 0"),
        ("--windows 5 --tokenizer bytes", "--windows: means nothing for text"),
        ("--without-bos --tokenizer bytes", "--without-bos: means nothing for text"),
        ("--tokenizer bytes", "--source missing"),
    ],
)
def test_flags_that_make_no_task(flags, message, tmp_path, monkeypatch, capsys):
    status = call(monkeypatch, *flags.split(), "--out", tmp_path / "out")
    assert_refused(status, capsys.readouterr().err, message, tmp_path)


def test_a_tail_and_missing_separators_are_said(tmp_path, monkeypatch, capsys, shared_data):
    (tmp_path / "a.txt").write_text("one document")
    tokenizer = shared_data / "aidreams-260k" / "tokenizer.json"
    spec = json.loads(tokenizer.read_text())
    spec["added_tokens"] = []
    for piece in ("</s>", "<s>"):
        if piece in spec["model"]["vocab"]:
            spec["model"]["vocab"][f"{piece}renamed"] = spec["model"]["vocab"].pop(piece)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    flags = ("--source", tmp_path / "a.txt", "--tokenizer", tmp_path, "--out", tmp_path / "out")
    assert call(monkeypatch, *flags) == 0
    printed = capsys.readouterr().out
    assert "too few to divide" in printed and "unmarked" in printed


def test_second_run_refuses_and_changes_nothing(tmp_path, monkeypatch, capsys):
    flags = ("--source", books(tmp_path), "--tokenizer", "bytes", "--out", tmp_path / "out")
    assert call(monkeypatch, *flags) == 0
    before = {p: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert call(monkeypatch, *flags, "--seed", "1") == 2
    assert "exists already" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


def text(content: bytes | str, name: str):
    def write(directory: Path) -> Path:
        path = directory / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


GOOD = '{"text": "good"}\n'
BAD_SOURCES = {
    "missing": (lambda d: d / "none.txt", "none.txt: No such file"),
    "directory": (lambda d: d, "is a directory"),
    "unknown kind": (text("x", "a.pdf"), "a.pdf: unknown kind of file"),
    "packed unknown kind": (text("x", "a.gz"), "a.gz: unknown kind of file"),
    "empty": (text("", "a.txt"), "a.txt: holds no text"),
    "blank": (text(" \n", "a.md"), "a.md: holds no text"),
    "nothing in its documents": (text('{"text": ""}\n\n', "a.jsonl"), "a.jsonl: holds no text"),
    "not UTF-8": (text(b"abc\xff", "a.txt"), "a.txt: not UTF-8"),
    "cut in a character": (text("ä".encode()[:1], "a.txt"), "a.txt: not UTF-8"),
    "not JSON": (text(GOOD + "\n{text}\n", "a.jsonl"), "a.jsonl, line 3: not JSON"),
    "too deep": (text("[" * 100_000, "a.jsonl"), "a.jsonl, line 1: not JSON"),
    "JSON not UTF-8": (text(GOOD.encode() + b'{"text": "\xff"}', "a.jsonl"), "line 2: not JSON"),
    "not an object": (text(GOOD + '["text"]', "a.jsonl"), "a.jsonl, line 2: holds a list"),
    "no field": (text(GOOD + '{"body": ""}', "a.jsonl"), "line 2: field 'text' is not in ['body']"),
    "field no string": (text('{"text": 1}', "a.jsonl"), "line 1: field 'text' is not a string"),
    "half a surrogate": (text(r'{"text": "\ud800"}', "a.jsonl"), "line 1: holds half"),
    "truncated gz": (text(gzip.compress(GOOD.encode())[:-9], "a.jsonl.gz"), "a.jsonl.gz: cannot"),
    "truncated xz": (text(lzma.compress(GOOD.encode())[:-9], "a.jsonl.xz"), "a.jsonl.xz: cannot"),
    "junk behind xz": (
        text(lzma.compress(GOOD.encode()) + b"junk", "a.jsonl.xz"),
        "a.jsonl.xz: cannot",
    ),
    "half a stream behind xz": (
        text(lzma.compress(GOOD.encode()) + lzma.compress(b"x")[:-9], "a.jsonl.xz"),
        "a.jsonl.xz: cannot",
    ),
    "junk behind gz": (
        text(gzip.compress(GOOD.encode()) + b"junk", "a.jsonl.gz"),
        "a.jsonl.gz: cannot",
    ),
    "not gz": (text(GOOD, "a.jsonl.gz"), "a.jsonl.gz: cannot be read"),
    "not xz": (text(GOOD, "a.txt.xz"), "a.txt.xz: cannot be read"),
}


def assert_refused(
    status: int, printed: str, message: str, directory: Path, expected: int = BAD_INPUT
) -> None:
    assert status == expected
    assert printed.startswith("error: ") and printed.count("\n") == 1
    assert message in printed
    assert [p.name for p in directory.iterdir() if p.name not in ("in", "books.jsonl")] == []


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_bad_sources_cost_one_line(case, tmp_path, monkeypatch, capsys):
    """Also where good files come before: nothing stays of what was written for them, not even parents of --out."""
    make, message = BAD_SOURCES[case]
    (tmp_path / "in").mkdir()
    flags = ("--source", books(tmp_path), make(tmp_path / "in"), "--tokenizer", "bytes")
    status = call(monkeypatch, *flags, "--out", tmp_path / "new" / "out")
    assert_refused(status, capsys.readouterr().err, message, tmp_path)


BAD_FLAGS = {
    "unknown tokenizer": (["--tokenizer", "nowhere/tokenizer.json"], "nowhere/tokenizer.json"),
    "directory without one": (
        ["--tokenizer", str(ROOT)],
        "tokenizer.json is not a file that is there",
    ),
    "no tokenizer.json": (["--tokenizer", str(ROOT / "LICENSE")], "not a readable tokenizer.json"),
    "unknown separator": (["--eos", "[END]"], "'[END]' is no token"),
    "fraction": (["--val-fraction", "1"], "val_fraction 1"),
    "negative fraction": (["--val-fraction", "-0.1"], "val_fraction -0.1"),
    "half a surrogate as separator": (["--eos", "\udcff"], "end token '\\udcff': no text"),
    "no separator": (["--eos", ""], "end token '': no text"),
    "BOS without windows": (
        ["--bos", "x"],
        "--bos: nothing is cut into windows; give --bos-every too",
    ),
    "windows of nothing": (["--bos-every", "0"], "--bos-every 0: expected at least 1"),
    "endless windows": (["--bos-every", "1" * 400], "--bos-every 1111"),
    "an empty name": (["--tokenizer", ""], "--tokenizer missing"),
    "a huge seed": (["--seed", "1" + "0" * 70], "seed 1000"),
    "a negative seed": (["--seed", "-1"], "seed -1: expected a whole number from 0"),
    "workers": (["--workers", "0"], "workers 0"),
    "a million workers": (["--workers", "1000000"], "workers 1000000: expected 1 to 256"),
}


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_bad_flags_cost_one_line(case, tmp_path, monkeypatch, capsys):
    more, message = BAD_FLAGS[case]
    flags = ["--source", books(tmp_path), "--out", tmp_path / "new" / "out"]
    tokenizer = [] if "--tokenizer" in more else ["--tokenizer", "bytes"]
    status = call(monkeypatch, *flags, *tokenizer, *more)
    assert_refused(status, capsys.readouterr().err, message, tmp_path)


def test_out_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    flags = ("--source", books(tmp_path), "--tokenizer", "bytes")
    (tmp_path / "in").write_text("a file")
    monkeypatch.setattr(tokenizers, "load", lambda name: pytest.fail("after it has begun"))
    for out in (tmp_path / "in", tmp_path / "in" / "below"):
        status = call(monkeypatch, *flags, "--out", out)
        assert_refused(status, capsys.readouterr().err, f"{out}: ", tmp_path)
    (tmp_path / "in").unlink()
    (tmp_path / "in").symlink_to("nothing")
    status = call(monkeypatch, *flags, "--out", tmp_path / "in")
    assert_refused(status, capsys.readouterr().err, "leads nowhere", tmp_path)


def test_full_disk_costs_one_line(tmp_path):
    """A limit on file size stands for the disk: the same OSError from the same call."""
    process = subprocess.run(
        f"ulimit -f 8; exec {sys.executable} -m train.prepare --source {books(tmp_path)} "
        f"--tokenizer bytes --out {tmp_path / 'out'}",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert_refused(process.returncode, process.stderr, "File too large", tmp_path, CANNOT_GO_ON)


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(c) for c in children] + [d for c in children for d in descendants(int(c))]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the process tree of Linux")
@pytest.mark.parametrize(
    "kind",
    mostly_endurance(
        [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], usual=[signal.SIGKILL, signal.SIGINT]
    ),
)
def test_interrupted_run_leaves_nothing(kind, tmp_path):
    """Killed in the midst of writing: no --out, no process left behind, and the next run works."""
    source, out = books(tmp_path, count=3000, characters=4000), tmp_path / "out"
    tokenizers.copy("bytes", tmp_path / "bpe.json")  # a path takes no short cut, the name would
    flags = ("--source", source, "--tokenizer", tmp_path / "bpe.json", "--out", out, "--workers", 2)
    process = start(*flags)
    written = tmp_path / ".out.partial" / "new" / "train.bin"
    end = time.monotonic() + 60
    while not (written.exists() and written.stat().st_size) and time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    workers = descendants(process.pid)
    assert len(workers) >= 2
    before = time.monotonic()
    os.killpg(process.pid, kind) if kind == signal.SIGINT else process.send_signal(
        kind
    )  # as a terminal does, to all
    stderr = process.communicate(timeout=60)[1]
    ends = {signal.SIGINT: (130, "interrupted\n"), signal.SIGTERM: (143, "terminated\n")}
    assert (process.returncode, stderr) == ends.get(kind, (-kind, stderr))
    assert not out.exists()
    if kind in ends:
        assert not written.parent.parent.exists()
        assert (
            time.monotonic() - before < 10
        )  # 0.2 by itself; it was 15 where the pool was waited for
    end = time.monotonic() + 20
    while any(map(runs, workers)) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(map(runs, workers))

    books(tmp_path)  # a shorter one in its place
    process = start(*flags)
    assert process.communicate(timeout=120)[1] == "" and process.returncode == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["books.jsonl", "bpe.json", "out"]


def test_two_runs_to_one_directory_do_not_mix(tmp_path):
    with (
        staging.new_directory(tmp_path / "out") as directory,
        pytest.raises(InputError, match="another process is writing"),
        staging.new_directory(tmp_path / "out"),
    ):
        (directory / "file").write_text("first")
    assert directory.parent.name == ".out.partial"
