"""Contestants that take turns, so that one run compares them on the same machine in the same state.

Those that must not share a process (other libraries, peak memory) get one each, round by round; those that can take turns call by call, which
tells differences of a few percent that processes drown.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence


def take_turns(
    script: str, contestants: Sequence[str], flags: Sequence[object], rounds: int
) -> dict[str, list[dict]]:
    """Run `script --child NAME flags…` for every contestant, `rounds` times; its last line of output is its JSON result."""
    found: dict[str, list[dict]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name in contestants:
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr)
            command = [sys.executable, script, "--child", name, *map(str, flags)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def time_calls(run: Callable[[], object], repeat: int) -> float:
    """Median seconds of `repeat` calls after one that warms up; `run` returns when its work is done."""
    return statistics.median(time_in_turn({"": run}, repeat)[""])


def time_in_turn(runs: dict[str, Callable[[], object]], repeat: int) -> dict[str, list[float]]:
    """Seconds of `repeat` calls of each, taken in turn in this process after one call each that warms up."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeat):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def median(found: dict[str, list[dict]], name: str, field: str) -> float:
    return statistics.median(row[field] for row in found[name])


def ratio(found: dict[str, list[dict]], above: str, below: str, field: str) -> float:
    """Median over the rounds of one contestant's number over another's."""
    pairs = zip(found[above], found[below], strict=True)
    return statistics.median(a[field] / b[field] for a, b in pairs)


def whole_process(command: Sequence[str]) -> tuple[float, int]:
    """Seconds and peak resident bytes of a process; ends here with its error when it fails."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{errors.read().decode()[-3000:]}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024
