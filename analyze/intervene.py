"""python -m analyze.intervene: what happens to a model without its outliers, beside random controls, as a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import sysout_jax as so
from analyze.analysis import Analysed, Shared, run_alone
from analyze.limits import MOST_SEEDS, check_count
from analyze.source import Expects, Prepared, Source
from sysout_jax.analyses.intervene.page import summary, verdict, write_interventions_report
from sysout_jax.analyses.intervene.runs import plan
from sysout_jax.analyses.measured import measured_by_interventions
from sysout_jax.commands.arguments import parse
from sysout_jax.commands.cli import run

What = Literal["zero", "mean", "resample"]
Where = Literal["birth", "all", "weight", "column", "row", "head", "value"]


@dataclass(frozen=True)
class Args(Expects, Source):
    """Set outliers to zero, to their mean or to resampled values, and measure outliers, attention and perplexity again."""

    NAME: ClassVar[str] = "intervene"

    what: tuple[What, ...] = ("zero", "mean", "resample")
    """Values that are written."""
    where: tuple[Where, ...] = ("birth", "all", "weight")
    """Output of the birth layers, output of all layers, the birth weights; and, set to zero only: their whole columns or rows, the output of sink heads, value vectors of the sinks."""
    seeds: int = 5
    """Random controls and resamples per kind of edit."""
    out: Path = Path("out/intervene")
    """Directory for intervene.json, figures and report.html."""


def analyse(args: Args, prepared: Prepared, shared: Shared) -> Analysed:
    result = so.intervene(
        shared.lm,
        prepared.windows,
        args.tau,
        what=args.what,
        where=args.where,
        seeds=args.seeds,
        report=shared.lifecycle,
        seed=args.seed,
    )
    return Analysed(
        headline=verdict(result),
        summary=summary(result),
        write=lambda out, *rest: write_interventions_report(out, result, *rest),
        measured=measured_by_interventions(result),
    )


def main() -> None:
    args = parse(Args, "python -m analyze.intervene")
    check_count("--seeds", args.seeds, MOST_SEEDS)
    plan(args.what, args.where, args.seeds)  # what cannot be planned should not show after minutes
    run_alone(args, analyse, cause=False)


if __name__ == "__main__":
    run(main)
