"""python -m analyze.census: the strongest writers of a model, and what the model is without each of them, as a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import sysout_jax as so
from analyze.analysis import Analysed, Shared, run_alone
from analyze.limits import MOST_SEEDS, check_count
from analyze.source import Expects, Prepared, Source
from sysout_jax.analyses.census.measure import MOST_WRITERS
from sysout_jax.analyses.census.page import summary, verdict, write_census_report
from sysout_jax.analyses.measured import measured_by_census
from sysout_jax.commands.arguments import parse
from sysout_jax.commands.cli import run


@dataclass(frozen=True)
class Args(Expects, Source):
    """Take away the strongest writers of a model one by one and in pairs, beside controls, and measure perplexity again."""

    NAME: ClassVar[str] = "census"
    LEAST: ClassVar[int] = 2

    count: int = 2
    """Strongest writers by each ranking: column, row, activation. Each costs about ten passes."""
    seeds: int = 1
    """Random controls per kind of edit."""
    out: Path = Path("out/census")
    """Directory for census.json, figures and report.html."""


def analyse(args: Args, prepared: Prepared, shared: Shared) -> Analysed:
    result = so.census(
        shared.lm,
        prepared.windows,
        args.tau,
        count=args.count,
        seeds=args.seeds,
        stats=shared.stats,
        seed=args.seed,
    )
    return Analysed(
        headline=verdict(result),
        summary=summary(result),
        write=lambda out, *rest: write_census_report(out, result, *rest),
        measured=measured_by_census(result),
    )


def main() -> None:
    args = parse(Args, "python -m analyze.census")
    check_count("--count", args.count, MOST_WRITERS)
    check_count("--seeds", args.seeds, MOST_SEEDS)
    run_alone(args, analyse, cause=False)


if __name__ == "__main__":
    run(main)
