"""Workers with a watchdog: cases go to processes that are replaced when they hang, die or grow old."""

from __future__ import annotations

import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tests.adversary.judge import COMMANDS_IN, Fault, judge
from tests.adversary.kinds import Case
from tests.adversary.worker import ROOT

START = 600.0  # seconds until a worker is ready, or an undisturbed command has ended, on a loaded machine
HANG = 10.0  # seconds beyond the undamaged run, times how much slower this machine may be at the moment
LOADED = 6.0
CASES_PER_WORKER = 400


class Worker:
    """One process. `run` gives the outcome of a case; `ended` in it says that the process did not survive it.

    Where it is not `careful`, spoiled command lines are judged without a run of the same command that works.
    """

    def __init__(self, originals: Path, scratch: Path, careful: bool = True):
        self._originals, self._scratch, self._careful = originals, scratch, careful
        self._process: subprocess.Popen[str] | None = None
        self._count = self._born = 0
        self._normal: dict[tuple[str, str], dict[str, Any]] = {}

    def judged(self, case: Case) -> tuple[dict[str, Any], list[Fault]]:
        """A case's outcome beside that of the same command undamaged."""
        spoiled = case.kind == "arguments"
        usual = (
            self.normal(case.original, case.command, spoiled)
            if self._careful or not spoiled
            else {"status": 0, "cpu": 0.0, "wall": 0.0, "values": None}
        )
        rights = [self.normal(case.original, c.split(" ")) for c in case.same_values]
        for outcome in (usual, *rights):
            if outcome.get("status") != 0:
                return outcome, [Fault("fails undamaged", case.command[0])]
        right = [outcome["values"] for outcome in rights]
        seconds = HANG * LOADED * COMMANDS_IN.get(case.command[0], 1) + 3 * usual["wall"]
        outcome = self.run(case, seconds)
        return outcome, judge(case, outcome, {"cpu": usual["cpu"], "values": right})

    def normal(self, original: str, command: list[str], spoiled: bool = False) -> dict[str, Any]:
        """The undamaged run of a command, once per worker; of a spoiled command line, a run of its command that works."""
        from tests.adversary.arguments import BASE

        if spoiled:
            command = next(c for c in BASE if c.startswith(command[0] + " ")).split(" ")
        key = (original, " ".join(command))
        if key not in self._normal:
            outcome = self.run(Case("normal", 0, original, [], command), START)
            outcome.setdefault("values", None)
            self._normal[key] = outcome
        return self._normal[key]

    def run(self, case: Case, seconds: float) -> dict[str, Any]:
        if self._process is None or self._count >= CASES_PER_WORKER:
            self._start()
        assert self._process and self._process.stdin and self._process.stdout
        self._count += 1
        print(json.dumps(asdict(case)), file=self._process.stdin, flush=True)
        began = time.monotonic()
        answer = self._answer(seconds)
        if answer:
            return json.loads(answer)
        ended = "hang" if answer is None else "died"
        if ended == "hang":
            self._process.send_signal(signal.SIGUSR1)  # it writes down where it is
            time.sleep(1.0)
        self.close()
        number = self._process_status
        trace = (self._folder / "trace").read_text(errors="replace")
        if ended == "died":
            ended = f"died by signal {-number}" if number < 0 else f"died with status {number}"
        return {"ended": ended, "trace": trace, "wall": time.monotonic() - began}

    def close(self) -> None:
        if self._process:
            self._process.kill()
            self._process_status = self._process.wait()
            self._process = None

    def _start(self) -> None:
        self.close()
        self._born += 1
        self._count = 0
        self._folder = self._scratch / f"worker-{os.getpid()}-{id(self)}-{self._born}"
        self._messages = self._folder.with_suffix(".log")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.adversary.worker", self._originals, self._folder],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages.open("w"),
            text=True,
        )
        if self._answer(START) != "ready\n":
            raise RuntimeError(f"a worker does not start: {self._messages.read_text()}")

    def _answer(self, seconds: float) -> str | None:
        """A line; "" when the process has ended, None when the time is over."""
        assert self._process and self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        if not ready:
            return None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
        return line


def run_all(
    cases: Iterable[Case], originals: Path, scratch: Path, workers: int = 2
) -> Iterator[tuple[Case, dict[str, Any], list[Fault]]]:
    """Every case with its outcome and faults, as they end."""
    waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for case in cases:
        waiting.put(case)

    def work() -> None:
        worker = Worker(originals, scratch)
        try:
            while True:
                case = waiting.get_nowait()
                done.put((case, *worker.judged(case)))
        except queue.Empty:
            done.put(None)
        except BaseException as error:
            done.put(error)
        finally:
            worker.close()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    running = workers
    while running:
        result = done.get()
        if isinstance(result, BaseException):
            raise result
        if result is None:
            running -= 1
        else:
            yield result


def alone(case: Case, originals: Path, scratch: Path) -> tuple[dict[str, Any], list[Fault]]:
    """One case in a worker of its own."""
    worker = Worker(originals, scratch)
    try:
        return worker.judged(case)
    finally:
        worker.close()


def smaller(case: Case, still_fails: Callable[[Case], bool]) -> Case:
    """The case with only those of its edits that its fault needs."""
    for edit in case.edits:
        if len(case.edits) > 1 and still_fails(
            shorter := replace(case, edits=[e for e in case.edits if e is not edit])
        ):
            case = shorter
    return case


def build_originals(directory: Path) -> Path:
    """The originals, made in a process of their own."""
    originals = directory / "originals"
    if not originals.exists():
        making = directory / "making"
        shutil.rmtree(making, ignore_errors=True)
        done = subprocess.run(
            [sys.executable, "-m", "tests.adversary.originals", making],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"the originals cannot be made: {done.stderr}")
        making.rename(originals)
    return originals
