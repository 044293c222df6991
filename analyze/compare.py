"""python -m analyze.compare: two finished lifecycles side by side, differences in plain sentences."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from analyze.places import check_out
from analyze.source import tell
from sysout_jax.analyses.compare.measure import compare
from sysout_jax.analyses.compare.page import NAME, differences, write_comparison
from sysout_jax.commands.arguments import parse
from sysout_jax.commands.cli import run
from sysout_jax.processes import all_devices
from sysout_jax.provenance import run_settings


@dataclass(frozen=True)
class Args:
    """Show two lifecycles of python -m analyze.lifecycle side by side, on one page."""

    runs: tuple[Path, Path]
    """Two directories that python -m analyze.lifecycle has written."""
    out: Path = Path("out/compare")
    """Directory for compare.json, figures and report.html."""


def main() -> None:
    args = parse(Args, "python -m analyze.compare")
    read = (run if os.path.isdir(run) else run.parent for run in args.runs)
    out = check_out(args.out, [f"{NAME}.json"], *read)
    all_devices()  # the report names one
    report = compare(*args.runs)
    flags = {"runs": [str(path) for path in args.runs], "out": str(args.out)}
    settings = run_settings(flags=flags)
    tell("\n".join(differences(report)), partial(write_comparison, out, report, settings), out)


if __name__ == "__main__":
    run(main)
