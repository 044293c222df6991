"""Contestants in processes of their own that take turns, so that one run compares them on the same machine in the same state."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
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
    run()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def median(found: dict[str, list[dict]], name: str, field: str) -> float:
    return statistics.median(row[field] for row in found[name])


def ratio(found: dict[str, list[dict]], above: str, below: str, field: str) -> float:
    """Median over the rounds of one contestant's number over another's."""
    pairs = zip(found[above], found[below], strict=True)
    return statistics.median(a[field] / b[field] for a, b in pairs)
