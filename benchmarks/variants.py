"""Tokens per second of every attention variant over default attention, in training, on the shapes of benchmarks/training.py.

    python benchmarks/variants.py --shape tiny      # or 124m; on a GPU too

All variants live in one process and take turns step by step; the ratio is the median over turns, its quartiles beside it.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Literal

import tyro
from contest import time_in_turn
from training import our_step

from sysout_jax.config import ATTENTION


@dataclass(frozen=True)
class Args:
    """Compare the variants."""

    shape: Literal["tiny", "124m"] = "tiny"
    steps: int = 30


def main() -> None:
    args = tyro.cli(Args)
    ready = {name: our_step(args.shape, name) for name in ATTENTION}
    times = time_in_turn({name: each.step for name, each in ready.items()}, args.steps)
    print(f"{'':<18}{'tokens/s':>11}{'of default':>12}{'quartiles':>16}")
    for name, seconds in times.items():
        speed = ready[name].tokens / statistics.median(seconds)
        shares = [a / b for a, b in zip(times["default"], seconds, strict=True)]
        low, middle, high = statistics.quantiles(shares, n=4)
        print(f"{name:<18}{speed:>11,.0f}{middle:>11.2f}x{low:>10.2f}-{high:.2f}")


if __name__ == "__main__":
    main()
