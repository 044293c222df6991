"""Whole commands get a signal at known moments: while they import, compile, compute, save and write a report."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.analyses.test_compare import lifecycle, write
from tests.analyze.command import write_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
LIFECYCLE = "analyze.lifecycle --ckpt planted --num-seqs 1 --seq-len 24 --out out"
CONVERT = "sysout_jax.convert --src model --out out"
TRAIN = "train --config tiny.py --workdir out --steps 1000000 --save-every 1"
COMPARE = "analyze.compare --runs one two --out out"


def importing(process: subprocess.Popen[str], _: Path) -> bool:
    return "jaxlib" in Path(f"/proc/{process.pid}/maps").read_text()


def computing(process: subprocess.Popen[str], _: Path) -> bool:
    assert process.stdout is not None
    return "planted model" in process.stdout.readline()  # said when the model is loaded


def compiling_the_first_step(_: subprocess.Popen[str], directory: Path) -> bool:
    return (directory / "out" / "train.json").exists()


def saving(_: subprocess.Popen[str], directory: Path) -> bool:
    """The third checkpoint or a later one, on disk under a name of its own until it is whole."""
    halves = (directory / "out" / "checkpoints").glob("*.orbax-checkpoint-tmp*")
    return any(int(half.name.partition(".")[0]) > 2 for half in halves)


def reporting(_: subprocess.Popen[str], directory: Path) -> bool:
    return any(directory.glob(".report.partial*/new/figures"))


CASES = [
    (LIFECYCLE, importing, signal.SIGINT),
    (LIFECYCLE, computing, signal.SIGTERM),
    (CONVERT, importing, signal.SIGTERM),
    (TRAIN, compiling_the_first_step, signal.SIGTERM),  # nothing is there to be saved
    (TRAIN, saving, signal.SIGINT),
    (COMPARE, reporting, signal.SIGTERM),
]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="sees by Linux's /proc what is imported")  # fmt: skip
@pytest.mark.parametrize("command, moment, number", CASES)
def test_one_line_and_the_status_of_the_signal(command, moment, number, tmp_path, config_file):
    if command == CONVERT:
        write_model(tmp_path / "model")
    elif command == COMPARE:
        for name in ("one", "two"):
            write(tmp_path / name, lifecycle())
    before = {path.name for path in tmp_path.iterdir()}
    process = subprocess.Popen(
        [sys.executable, "-m", *command.split()],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a background shell ignores it, and so would the process
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 240
    while not moment(process, tmp_path):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.005)
    sent = time.monotonic()
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - sent < 10  # 1.2 at most by itself, on a machine that may be busy
    wanted = {signal.SIGINT: (130, "interrupted\n"), signal.SIGTERM: (143, "terminated\n")}
    assert (process.returncode, stderr) == wanted[number]
    left = {path.name for path in tmp_path.iterdir()} - before
    assert left == ({"out"} if command == TRAIN else set())
