"""python -m analyze.variants: several trained checkpoints side by side, as a report."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import sysout_jax as so
from analyze.source import Source, check_out, prepare, progress, settings, tell
from sysout_jax.analyses.variants.page import summary, write_variants_report
from sysout_jax.analyses.variants.side_by_side import SideBySide
from sysout_jax.commands.arguments import parse
from sysout_jax.commands.cli import run, say
from sysout_jax.figures.select import short_names
from sysout_jax.reports.terminal import fit


@dataclass(frozen=True)
class Args(Source):
    """Compare trained checkpoints: outliers, explicit and implicit scale, loss and monitor curves (Figures 10 to 12, Appendix C)."""

    compare: tuple[str, ...] = ()
    """More checkpoints, shown side by side with --ckpt."""
    labels: tuple[str, ...] = ()
    """What figures call them, one for each. Default: the last part of their paths."""
    out: Path = Path("out/variants")
    """Directory for variants.json, figures and report.html."""


def main() -> None:
    args = parse(Args, "python -m analyze.variants")
    out = check_out(args.out)
    ckpts = (args.ckpt, *args.compare)
    if args.labels and len(args.labels) != len(ckpts):
        raise so.InputError(
            f"--labels: {len(args.labels)} given for {len(ckpts)} checkpoints; give one for each or none"
        )
    prepared = [prepare(dataclasses.replace(args, ckpt=ckpt)) for ckpt in ckpts]
    for note in dict.fromkeys(note for one in prepared for note in one.notes):
        say(fit(note))
    profiles = []
    for one in prepared:
        with progress(one.lm, 3) as lm:
            profiles.append(so.variant_profile(lm, one.tokens, args.tau))
    names = args.labels or tuple(short_names([one.lm.name for one in prepared]))
    report = SideBySide(tuple(profiles), tuple(names), tuple(one.token_text for one in prepared))
    written = partial(write_variants_report, out, report, settings(args, *prepared))
    tell(summary(report), written, out)


if __name__ == "__main__":
    run(main)
