"""Kills: a command is started as a process and gets SIGKILL, SIGTERM or SIGINT at a random moment; then the same command runs again."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.adversary.grounds import COMMANDS, OUT, SAVED, Grounds, Undisturbed, plain
from tests.adversary.worker import tree

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PATIENCE = 2.0  # seconds from the signal to the end, on a quiet machine
LEFT = 20.0  # seconds for children to follow


@dataclass
class Kill:
    """What happened in one case."""

    name: str
    command: str
    signal: str
    seconds: float | None  # from the signal to the end; None where the command was faster
    faults: list[str] = field(default_factory=list)


def run_kills(
    count: int, seed: int, originals: Path, scratch: Path, workers: int = 2, commands: tuple[str, ...] = tuple(COMMANDS),
    on_kill: Callable[[], object] = lambda: None,
) -> dict[str, Any]:  # fmt: skip
    """Kill `count` times, over all commands in turn; the figures of `report.kill_lines`."""
    grounds = Grounds(originals, scratch)
    try:
        for command in commands[:count]:
            grounds.measure(command)
        names = [f"{commands[i % len(commands)]}:{seed * 1000 + i}" for i in range(count)]
        with ThreadPoolExecutor(workers) as pool:
            kills = []
            for kill in pool.map(lambda name: kill_once(name, grounds), names):
                kills.append(kill)
                on_kill()
    finally:
        grounds.close()
    return figures(kills)


def figures(kills: list[Kill]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    faults: dict[str, list[str]] = {}
    for kill in kills:
        row = rows.setdefault(kill.command, {"seconds": [], "failures": 0})
        row[kill.signal] = row.get(kill.signal, 0) + 1
        row["failures"] += bool(kill.faults)
        if kill.seconds is not None and kill.signal != "SIGKILL":
            row["seconds"].append(round(kill.seconds, 2))
        for fault in kill.faults:
            faults.setdefault(f"{kill.command}  {fault}", []).append(kill.name)
    waits = [wait for row in rows.values() for wait in row["seconds"]]
    median = statistics.median(waits) if waits else None
    return {"kills": len(kills), "commands": rows, "faults": faults, "median_seconds": median}


def kill_once(name: str, grounds: Grounds) -> Kill:
    """The kill that COMMAND:SEED names: its signal and its moment, as a share of the command's usual duration."""
    command, _, _ = name.rpartition(":")
    rng = Random(f"kill:{name}")
    usual = grounds.undisturbed[command]
    which, share = rng.choice(SIGNALS), rng.random()
    place = grounds.place(name)
    before = set(tree(place.parent))
    process = grounds.start(command, place)
    deadline = time.monotonic() + share * usual.seconds
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    kill = Kill(name, command, which.name, None)
    ready = _is_ours(process.pid)
    if process.poll() is None:
        sent = time.monotonic()
        process.send_signal(which)
    else:
        sent = None
    try:
        _, errors = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        kill.faults.append(f"{which.name} does not end it")
        _end_group(process.pid)
        return kill
    if sent is not None:
        kill.seconds = time.monotonic() - sent
        kill.faults += _faults_of_the_end(command, which, process.returncode, errors, ready)
        if ready and which != signal.SIGKILL and kill.seconds > _patience():
            kill.faults.append(f"{which.name} takes longer than {PATIENCE:g} s")
    if not _ends_with_children(process.pid):
        kill.faults.append(f"processes stay after {which.name}")
    _end_group(process.pid)
    if which != signal.SIGKILL and process.returncode in (128 + which, -which):
        left = plain(set(tree(place.parent)) - before)
        if command == "analyze.all":
            left -= finished_reports(left, usual.names)
        if left and command not in ("train", "train.sweep") and ready:
            kill.faults.append(f"left behind after {which.name}: {_shape(left)}")
    kill.faults += _again(command, place, usual, grounds)
    if not kill.faults:
        shutil.rmtree(place.parent)
    return kill


def finished_reports(left: set[str], whole: set[str]) -> set[str]:
    """Of the names that `analyze.all` left, those of analyses it had finished: they are meant to stay, with all their files."""
    out = f"in/{OUT}"
    kept = {out}
    for report in {name for name in left if name.count("/") == out.count("/") + 1}:
        within = {n for n in whole if n == report or n.startswith(f"{report}/")}
        if within and within == {n for n in left if n == report or n.startswith(f"{report}/")}:
            kept |= within
    return kept if len(kept) > 1 else set()


def _is_ours(pid: int) -> bool:
    """Whether the interpreter has started and our imports have begun; before that nobody can promise anything."""
    with contextlib.suppress(OSError):
        if "numpy" in Path(f"/proc/{pid}/maps").read_text():
            return True
        status = Path(f"/proc/{pid}/status").read_text()
        caught = int(status.split("SigCgt:")[1].split()[0], 16)
        return bool(caught >> (signal.SIGTERM - 1) & 1)
    return False


def _faults_of_the_end(
    command: str, which: signal.Signals, status: int, errors: str, ready: bool
) -> list[str]:
    if which == signal.SIGKILL or not ready:
        return [] if status in (0, -which, 128 + which, 1) else [f"status {status} after {which.name}"]  # fmt: skip
    faults = []
    if status not in (0, 128 + which):
        faults.append(f"status {status} after {which.name}")
    if "Traceback" in errors:
        frames = [line.strip() for line in errors.splitlines() if 'File "' in line]
        last = frames[-1].split(", ")[0].split("/")[-1].strip('"') if frames else ""
        faults.append(f"traceback after {which.name}, {last}")
    elif errors.count("\n") != (status != 0):
        faults.append(f"{errors.count(chr(10))} lines after {which.name} with status {status}")
    return faults


def _patience() -> float:
    """Seconds that count as two on a machine as busy as this one is now."""
    return PATIENCE * max(1.5, 2 * os.getloadavg()[0] / (os.cpu_count() or 1))


def _ends_with_children(group: int) -> bool:
    deadline = time.monotonic() + LEFT
    while time.monotonic() < deadline:
        if not list(_members(group)):
            return True
        time.sleep(0.05)
    return False


def _members(group: int) -> Iterator[int]:
    """Processes of a session that still run."""
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, IndexError):
            if folder.name.isdigit():
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == group and fields[0] != "Z":
                    yield int(folder.name)


def _end_group(group: int) -> None:
    for pid in _members(group):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _again(command: str, place: Path, usual: Undisturbed, grounds: Grounds) -> list[str]:
    """The same command once more: it ends well, its result is that of an undisturbed run, and nothing temporary is left."""
    whole = (place / OUT).exists()
    faults = []
    if whole and command in ("convert", "convert.hf", "train.prepare"):
        # what has its final name is whole, and a second run says that it exists
        if grounds.result(command, place) != usual.result:
            faults.append("half-written under its final name")
        return faults
    if (place / SAVED).exists():  # likewise; the report beside it may be missing
        if grounds.weights(place, SAVED) != usual.result[-1]:
            faults.append("half-written under its final name")
        return faults
    process = grounds.start(command, place)
    _, errors = process.communicate(timeout=600)
    if process.returncode:
        return [f"the next run fails with status {process.returncode}: {errors.strip()[-150:]}"]
    try:
        if grounds.result(command, place) != usual.result:
            faults.append("the next run gives another result")
    except (OSError, ValueError, LookupError) as error:
        faults.append(f"the next run's result is not readable: {type(error).__name__}")
    left = {n for n in plain(set(tree(place.parent))) - usual.names if not n.startswith("tmp/")}
    if left:
        faults.append(f"the next run leaves {_shape(left)}")
    return faults


def _shape(names: set[str]) -> str:
    return ", ".join(sorted({re.sub(r"[0-9a-z_]{8}$|\d+", "N", n) for n in names})[:3])
