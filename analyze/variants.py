"""python -m analyze.variants: several trained checkpoints side by side, as a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sysout_jax as so
from analyze.analysis import Found, Shared, finish, say_notes
from analyze.source import Prepared, Source, check_out, prepare, progress
from sysout_jax.analyses.variants.page import summary, verdict, write_variants_report
from sysout_jax.analyses.variants.side_by_side import SideBySide
from sysout_jax.commands.arguments import parse
from sysout_jax.commands.cli import run
from sysout_jax.figures.select import short_names


@dataclass(frozen=True)
class Args(Source):
    """Compare trained checkpoints: outliers, explicit and implicit scale, loss and monitor curves (Figures 10 to 12, Appendix C)."""

    compare: tuple[str, ...] = ()
    """More checkpoints, shown side by side with --ckpt."""
    labels: tuple[str, ...] = ()
    """What figures call them, one for each. Default: the last part of their paths."""
    out: Path = Path("out/variants")
    """Directory for variants.json, figures and report.html."""


def analyse(args: Args, prepared: Prepared, shared: Shared) -> Found:
    return _side_by_side(args, [prepared], [_profile(prepared, shared)])


def main() -> None:
    args = parse(Args, "python -m analyze.variants")
    out = check_out(args.out)
    ckpts = (args.ckpt, *args.compare)
    if args.labels and len(args.labels) != len(ckpts):
        raise so.InputError(
            f"--labels: {len(args.labels)} given for {len(ckpts)} checkpoints; give one for each or none"
        )
    prepared = [prepare(dataclasses.replace(args, ckpt=ckpt)) for ckpt in ckpts]
    say_notes(*prepared)
    profiles = []
    for one in prepared:
        with progress(one.lm, 3) as lm:
            profiles.append(_profile(one, Shared(lm, one, args.tau, args.seed)))
    found = _side_by_side(args, prepared, profiles)
    finish(found, args, prepared[0], out, others=prepared[1:])


def _profile(prepared: Prepared, shared: Shared) -> so.VariantProfile:
    return so.variant_profile(shared.lm, prepared.tokens, shared.tau, stats=shared.stats)


def _side_by_side(
    args: Args, prepared: Sequence[Prepared], profiles: Sequence[so.VariantProfile]
) -> Found:
    names = args.labels or tuple(short_names([one.lm.name for one in prepared]))
    report = SideBySide(tuple(profiles), tuple(names), tuple(one.token_text for one in prepared))
    return Found(
        headline=verdict(report),
        summary=summary(report),
        write=lambda out, settings, _: write_variants_report(out, report, settings),
    )


if __name__ == "__main__":
    run(main)
