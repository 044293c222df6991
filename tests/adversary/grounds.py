"""Where kills happen: fresh directories, the commands, what they give undisturbed, and what of it must be equal."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.adversary.kinds import Case
from tests.adversary.pool import START, Worker
from tests.adversary.worker import ROOT, tree

OUT = "new"
SAVED = "saved"

COMMANDS = {
    "convert": "sysout_jax.convert --src model --out new",
    "convert.hf": "sysout_jax.convert --src model --out new --format hf",
    "train.prepare": "train.prepare --source long.jsonl b.jsonl --tokenizer tokenizer.json --out new --workers 2",
    "train": "train --config tiny.py --workdir new --steps 30 --save-every 4 --eval-every 10",
    "train.sweep": "train.sweep grid.py --workdir new",
    "analyze.lifecycle": "analyze.lifecycle --ckpt model --num-seqs 1 --seq-len 24 --out new",
    "analyze.consistency": "analyze.consistency --ckpt model --num-seqs 1 --seq-len 24 --out new",
    "analyze.absorb": "analyze.absorb --ckpt model --prefix 3 --num-seqs 1 --seq-len 24 --out new --save saved",
    "analyze.census": "analyze.census --ckpt model --num-seqs 1 --seq-len 24 --count 1 --out new",
    "analyze.all": "analyze.all --ckpt model --num-seqs 1 --seq-len 24 --skip compression intervene length --out new",
    "analyze.variants": "analyze.variants --ckpt run --num-seqs 1 --seq-len 12 --out new",
    "analyze.compare": "analyze.compare --runs first second --out new",
}
#: What differs between two undisturbed runs.
VOLATILE = ("time", "command", "tokens_per_second", "mfu", "seconds")


@dataclass
class Undisturbed:
    """What a command gives when nobody disturbs it, how long that takes, and the names it leaves."""

    seconds: float
    result: Any
    names: set[str]


class Grounds:
    """Where kills happen: originals, a compilation cache that nobody writes any more, and a worker that reads results."""

    def __init__(self, originals: Path, scratch: Path):
        self.originals, self.scratch = originals, scratch / "kills"
        self.cache = self.scratch / "cache"
        self.cache.mkdir(parents=True)
        self._reader = Worker(originals, scratch)
        self._reading = threading.Lock()
        self.undisturbed: dict[str, Undisturbed] = {}

    def place(self, name: str) -> Path:
        """A fresh directory to run in."""
        place = self.scratch / name.replace(":", "-") / "in"
        shutil.copytree(self.originals / "everything", place)
        place.with_name("tmp").mkdir()
        lines = (place / "b.jsonl").read_text()
        (place / "long.jsonl").write_text(lines * 300)
        return place

    def start(self, command: str, place: Path, fill_cache: bool = False) -> subprocess.Popen[str]:
        environment = {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "TMPDIR": str(place.with_name("tmp")),
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            # a killed process leaves half an entry: only undisturbed runs write any
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0" if fill_cache else "1000000",
        }
        return subprocess.Popen(
            [sys.executable, "-m", *COMMANDS[command].split(" ")],
            cwd=place,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # a background shell ignores it, and so would the process
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def measure(self, command: str, runs: int = 2) -> None:
        """Run it undisturbed: the first run compiles, the last one is timed, all must agree."""
        results = []
        for number in range(runs):
            place = self.place(f"{command}:undisturbed-{number}")
            began = time.monotonic()
            process = self.start(command, place, fill_cache=True)
            _, errors = process.communicate(timeout=600)
            seconds = time.monotonic() - began
            if process.returncode or errors:
                raise RuntimeError(f"{command}: fails undisturbed: {errors}")
            results.append(self.result(command, place))
            names = set(tree(place.parent))
        if results[0] != results[-1]:
            raise RuntimeError(f"{command}: two undisturbed runs differ")
        self.undisturbed[command] = Undisturbed(seconds, results[-1], plain(names))

    def result(self, command: str, place: Path) -> Any:
        """What must be equal: weights bit for bit, bytes, JSON but for its time."""
        out = place / OUT
        if command == "convert":
            fields = json.loads((out / "model.json").read_text())
            for name in ("files", "checksum"):  # of random names, and over them
                fields.pop(name, None)
            return self.weights(place, OUT), fields
        if command == "convert.hf":
            fields = json.loads((out / "config.json").read_text())
            return self.weights(place, OUT), fields, sorted(p.name for p in out.iterdir())
        if command == "train.sweep":
            runs = sorted(path.name for path in out.glob("*=*"))
            rows = json.loads((out / "sweep.json").read_text())
            return [self.weights(place, f"{OUT}/{run}") for run in runs], _steady(rows)
        if command == "train":
            steps = sorted(int(p.name) for p in (out / "checkpoints").iterdir())
            rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            rows = [_steady(row) for row in rows if "run" not in row]
            return steps[-1], self.weights(place, OUT), rows
        if command == "train.prepare":
            return {p.name: p.read_bytes() for p in out.iterdir()}
        saved = self.weights(place, SAVED) if (place / SAVED).exists() else None
        found = {
            str(p.relative_to(out)): _steady(json.loads(p.read_text())) for p in out.rglob("*.json")
        }
        return found, sorted(str(p.relative_to(out)) for p in out.rglob("*")), saved

    def weights(self, place: Path, model: str) -> str:
        with self._reading:
            outcome = self._reader.run(Case("read", 0, str(place), [], ["load", model]), START)
        return outcome.get("values") or f"unreadable: {outcome}"

    def close(self) -> None:
        self._reader.close()


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _steady(v) for k, v in value.items() if k not in VOLATILE}
    return [_steady(v) for v in value] if isinstance(value, list) else value


def plain(names: set[str]) -> set[str]:
    """Without what lies within checkpoints, whose names are random."""
    return {n for n in names if "/checkpoints/" not in n and "/params/" not in n}
