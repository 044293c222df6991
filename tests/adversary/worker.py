"""A process that runs one case after another: `python -m tests.adversary.worker ORIGINALS SCRATCH`; cases come as JSON lines, outcomes go."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import hashlib
import json
import multiprocessing.util
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "0"}
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from tests.adversary import actions
from tests.adversary.edits import apply

MEBIBYTE = 1 << 20
MOST_MEMORY = 1024  # MiB beyond what the process holds already; the rest of a system call's rounding is no case's fault
MOST_MAPS = 15_000  # see tests/conftest.py
SHOWN = 20_000  # bytes kept of an output
ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    originals, scratch = (Path(argument).absolute() for argument in sys.argv[1:3])
    scratch.mkdir(parents=True)
    answers = os.fdopen(os.dup(1), "w")
    trace = (scratch / "trace").open("w+")
    faulthandler.enable(trace)
    faulthandler.register(signal.SIGUSR1, trace, all_threads=False)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    import jax

    import sysout_jax  # noqa: F401

    # a command that has lost its --ckpt takes the demo, a real model: without it the planted one stands in
    os.environ |= {"SYSOUT_CACHE": str(scratch / "cache"), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "TORCHINDUCTOR_CACHE_DIR": str(scratch / "torch")}  # fmt: skip
    # kept for the life of this process, so not in a directory of a case
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    multiprocessing.util.get_temp_dir()

    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    actions.make_fast()
    print("ready", file=answers, flush=True)
    for number, line in enumerate(sys.stdin):
        trace.seek(0)
        trace.truncate()
        place = scratch / f"{number}"
        outcome = _run(json.loads(line), originals, place)
        print(json.dumps(outcome), file=answers, flush=True)
        os.chdir(scratch)
        shutil.rmtree(place, ignore_errors=True)
        if Path("/proc/self/maps").read_bytes().count(b"\n") > MOST_MAPS:
            jax.clear_caches()
        gc.collect()


def _run(case: dict[str, Any], originals: Path, place: Path) -> dict[str, Any]:
    shutil.copytree(originals / case["original"], place / "in", symlinks=True)
    (place / "tmp").mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(place / "tmp")
    apply(case["edits"], place / "in")
    os.chdir(place / "in")
    before = tree(place)
    outcome = _called(case["command"], place)
    os.chdir(place)
    after = tree(place)
    with contextlib.suppress(Exception):
        if outcome["status"] == 0 and "values" not in outcome:
            os.chdir(place / "in")
            outcome["values"] = actions.values_after(case["command"])
    damaged = {(place / "in" / edit[1]).parent for edit in case["edits"]}
    reports = _wrong_reports(place, damaged) if after != before else []
    return outcome | _changes(before, after) | {"reports": reports}


def _called(command: list[str], place: Path) -> dict[str, Any]:
    """Status or exception of a command, what it printed, its seconds of processor and wall, its memory in MiB."""
    from sysout_jax.commands import cli

    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}  # fmt: skip
    unraisable, streams = sys.unraisablehook, (sys.stdout, sys.stderr)
    sys.argv = list(command)
    outcome: dict[str, Any] = {"status": None, "exception": None}
    with _captured(place.parent / "stdout", 1), _captured(place.parent / "stderr", 2), _limited():
        held = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that of this case
        cpu, wall = time.process_time(), time.monotonic()
        try:
            cli.run(actions.main_of(command[0]))
        except SystemExit as end:
            outcome["status"] = 0 if end.code is None else end.code
        except BaseException as error:
            outcome["exception"] = _described(error)
        outcome["cpu"] = time.process_time() - cpu
        outcome["wall"] = time.monotonic() - wall
        outcome["memory"] = (_memory("VmHWM") - held) / MEBIBYTE
        sys.stdout, sys.stderr = streams
    sys.unraisablehook = unraisable
    for number, handler in signals.items():
        signal.signal(number, handler)
    for name in ("stdout", "stderr"):
        printed = (place.parent / name).read_bytes()
        outcome[name] = printed[:SHOWN].decode(errors="backslashreplace")
        outcome[f"{name}_bytes"] = len(printed)
    if outcome["stdout"].startswith("weights "):
        outcome["values"], _, outcome["stdout"] = outcome["stdout"].partition("\n")
    return outcome


@contextlib.contextmanager
def _captured(file: Path, descriptor: int):
    """What is written to a descriptor, by Python or C, goes to a file."""
    stream = sys.stdout if descriptor == 1 else sys.stderr
    stream.flush()
    kept, target = os.dup(descriptor), os.open(file, os.O_CREAT | os.O_TRUNC | os.O_RDWR | os.O_APPEND)  # fmt: skip
    os.dup2(target, descriptor)
    try:
        yield
    finally:
        stream.flush()
        os.dup2(kept, descriptor)
        os.close(kept)
        os.close(target)


@contextlib.contextmanager
def _limited():
    """No case may take the machine's memory: beyond twice what it may use, allocations fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = _memory("VmData") + 2 * MOST_MEMORY * MEBIBYTE
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _memory(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) << 10


def _described(error: BaseException) -> dict[str, str]:
    """An exception, and the innermost frame of ours that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if is_ours(frame.filename)]
    where = f"{Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].name}" if ours else "?"
    return {"type": type(error).__name__, "text": str(error)[:500], "where": where}


def is_ours(file: str) -> bool:
    """Whether a file is part of the library or of its command lines."""
    return any(file.startswith(f"{ROOT / part}/") for part in ("sysout_jax", "analyze", "train"))


def tree(directory: Path) -> dict[str, str]:
    """Everything below a directory: kind, and for files a hash of what they hold."""
    found = {}
    for folder, folders, files in os.walk(directory):
        for name in folders + files:
            path = Path(folder) / name
            if path.is_symlink():
                held = "link " + os.readlink(path)
            elif path.is_file():
                held = hashlib.sha1(path.read_bytes()).hexdigest()
            else:
                held = "folder" if path.is_dir() else "special"
            found[str(path.relative_to(directory))] = held
    return found


def _wrong_reports(place: Path, damaged: set[Path]) -> list[str]:
    """What is wrong with the reports below a directory: JSON that is not strict, a page that is no XML. Those that were damaged are no output."""
    wrong = []
    for page in place.rglob("report.html"):
        if page.parent in damaged:
            continue
        try:
            ET.fromstring(page.read_text(encoding="utf-8"))
            for file in page.parent.glob("*.json"):
                json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_number)
        except (ET.ParseError, ValueError) as error:
            wrong.append(type(error).__name__)
    return wrong


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _changes(before: dict[str, str], after: dict[str, str]) -> dict[str, Any]:
    """What came, what became other or is gone, and which contents lie nowhere any more."""
    lost = Counter(before.values()) - Counter(after.values())
    return {
        "new": sorted(set(after) - set(before)),
        "changed": sorted(name for name in before if after.get(name) not in (before[name], None)),
        "gone": sorted(set(before) - set(after)),
        "lost": sorted(name for name, held in before.items() if len(held) == 40 and held in lost),
    }


if __name__ == "__main__":
    main()
