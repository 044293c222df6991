"""How often each analysis runs a layer, as a command of its own and in `analyze.all`: what shared passes can save at most.

    python benchmarks/passes.py --ckpt planted --num-seqs 4 --seq-len 64

A count, not a time: the same on every machine. One batch of all sequences through one layer counts as one, and it counts what a progress bar counts.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from analyze import source
from analyze.all import ANALYSES


@dataclass(frozen=True)
class Args:
    """Count the layers that the commands run."""

    ckpt: str = "planted"
    num_seqs: int = 4
    seq_len: int = 64


class Counter:
    """In place of a progress bar."""

    def __init__(self, *args: Any, **more: Any) -> None:
        self.n = self.total = 0

    def __enter__(self) -> Counter:
        return self

    def __exit__(self, *raised: object) -> None:
        counted.append(self.n)

    def update(self, layers: int = 1) -> None:
        self.n += layers

    def refresh(self) -> None: ...

    def set_description(self, text: str) -> None: ...


counted: list[int] = []


def main() -> None:
    args = tyro.cli(Args)
    source.tqdm = Counter
    flags = ["--ckpt", args.ckpt, "--num-seqs", str(args.num_seqs), "--seq-len", str(args.seq_len)]
    alone = {name: count(name, flags) for name in ANALYSES}
    together = count("all", flags)
    for name, layers in [*alone.items(), ("one by one", sum(alone.values())), ("all", together)]:
        print(f"{name:<12}{layers:>8,}")
    print(f"analyze.all runs {together / sum(alone.values()):.2f} of the layers")


def count(name: str, flags: list[str]) -> int:
    """How many layers the command runs."""
    counted.clear()
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        sys.argv = [f"analyze.{name}", *flags, "--out", str(Path(out) / name)]
        importlib.import_module(f"analyze.{name}").main()
    return sum(counted)


if __name__ == "__main__":
    main()
