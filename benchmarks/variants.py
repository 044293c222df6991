"""Tokens per second of every attention variant over default attention, in training, on the shapes of benchmarks/training.py.

python benchmarks/variants.py --shape tiny
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import tyro
from contest import median, ratio, take_turns
from training import Args as TrainingArgs
from training import ours

from sysout_jax.config import ATTENTION


@dataclass(frozen=True)
class Args(TrainingArgs):
    """Compare variants, or (with --child) be one of them."""


def main() -> None:
    args = tyro.cli(Args)
    if args.child:
        print(json.dumps(ours(replace(args, attention=args.child))))
        return
    flags = ("--shape", args.shape, "--repeat", args.repeat)
    found = take_turns(__file__, ATTENTION, flags, args.rounds)
    print(f"{'':<18}{'tokens/s':>11}{'of default':>12}")
    for name in found:
        speed = found[name][0]["tokens"] / median(found, name, "seconds")
        share = ratio(found, "default", name, "seconds")
        print(f"{name:<18}{speed:>11,.0f}{share:>11.2f}x")


if __name__ == "__main__":
    main()
