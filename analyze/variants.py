"""python -m analyze.variants: trained checkpoints side by side, those of one run against the step, or the runs of a sweep, as a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import sysout_jax as so
from analyze.analysis import Analysed, Shared, finish, say_notes
from analyze.places import check_out
from analyze.source import Prepared, Source, prepare, progress, tell
from sysout_jax.analyses.variants.page import summary, verdict, write_variants_report
from sysout_jax.analyses.variants.side_by_side import SideBySide
from sysout_jax.analyses.variants.snapshots import Snapshot, checkpoints_of, runs_of, snapshot
from sysout_jax.analyses.variants.snapshots_page import (
    STEPS,
    SWEEP,
    steps_headline,
    steps_summary,
    sweep_headline,
    sweep_summary,
    write_steps_report,
    write_sweep_report,
)
from sysout_jax.analyses.variants.stored import read_sweeps
from sysout_jax.commands.arguments import parse
from sysout_jax.commands.cli import run, say
from sysout_jax.figures.select import short_names
from sysout_jax.printable import some
from sysout_jax.processes import all_devices
from sysout_jax.provenance import run_settings


@dataclass(frozen=True)
class Args(Source):
    """Compare trained checkpoints: outliers, explicit and implicit scale, loss and monitor curves (Figures 10 to 12, Appendix C)."""

    NAME: ClassVar[str] = "variants"

    compare: tuple[str, ...] = ()
    """More checkpoints, shown side by side with --ckpt."""
    labels: tuple[str, ...] = ()
    """What figures call them, one for each. Default: the last part of their paths."""
    steps: Literal["all"] | None = None
    """Measure every checkpoint of --ckpt, a training run or a folder of checkpoints, against the step."""
    over: str | None = None
    """--ckpt is the directory of python -m train.sweep: measure all its runs, mean and interval over this axis, such as seed."""
    read: tuple[Path, ...] = ()
    """Reports of --over (variants_sweep.json) to show again, their runs together: loads no model."""
    out: Path = Path("out/variants")
    """Directory for variants.json (of --steps variants_steps.json, of --over variants_sweep.json), figures and report.html."""

    def places_read(self) -> list[str | Path | None]:
        return [*super().places_read(), *self.compare, *(path.parent for path in self.read)]

    def files(self) -> list[str]:
        if self.over or self.read:
            return [f"{SWEEP}.json", f"{SWEEP}.md"]
        return [f"{STEPS}.json"] if self.steps else super().files()


def analyse(args: Args, prepared: Prepared, shared: Shared) -> Analysed:
    return _side_by_side(args, [prepared], [_profile(prepared, shared)])


def main() -> None:
    args = parse(Args, "python -m analyze.variants")
    out = check_out(args.out, args.files(), *args.places_read())
    if args.read:
        _read_again(args, out)
        return
    if args.steps or args.over:
        _many(args, out)
        return
    ckpts = (args.ckpt, *args.compare)
    if args.labels and len(args.labels) != len(ckpts):
        raise so.InputError(
            f"--labels: {len(args.labels)} given for {len(ckpts)} checkpoints; give one for each or none"
        )
    prepared = [prepare(dataclasses.replace(args, ckpt=ckpt)) for ckpt in ckpts]
    say_notes(*prepared)
    profiles = []
    for each in prepared:
        with progress(each.lm, 3) as lm:
            profiles.append(_profile(each, Shared(lm, each, args.tau, args.seed)))
    analysed = _side_by_side(args, prepared, profiles)
    finish(analysed, args, prepared[0], out, others=prepared[1:])


def _read_again(args: Args, out: Path) -> None:
    """Sweeps from their JSON. All other flags are of models, which are not read."""
    if args != Args(read=args.read, out=args.out):
        raise so.InputError("--read: shows what is stored; give no other flag but --out")
    all_devices()  # the report names one
    over, groups = read_sweeps(args.read)
    names = ", ".join(path.stem for path in args.read)
    settings = run_settings(flags={"read": [str(path) for path in args.read], "out": str(out)})
    tell(
        sweep_summary(groups, over),
        partial(write_sweep_report, out, names, groups, over, settings),
        out,
    )


def _many(args: Args, out: Path) -> None:
    """Many checkpoints, a few numbers of each."""
    if (
        args.compare
        or args.labels
        or args.export
        or args.ckpt is None
        or (args.steps and args.over)
    ):
        raise so.InputError(
            "--steps and --over measure what lies in one directory: give --ckpt with one of them, and neither --compare, --labels "
            "nor --export"
        )
    where = Path(args.ckpt)
    jobs: list[tuple[str, int | None, Path]]
    if args.over:
        groups, behind = runs_of(where, args.over)
        jobs = [(s, None, p) for s, paths in groups.items() for p in paths]
        if behind:
            say(f"Left out, since not as far as the others: {some(behind)}.")
    else:
        jobs = [("", step, path) for step, path in checkpoints_of(where)]
    check_out(out, args.files(), *(path for _, _, path in jobs))
    snapshots: dict[str, list[Snapshot]] = {}
    prepared = []
    for setting, step, path in jobs:
        each = prepare(dataclasses.replace(args, ckpt=str(path)))
        with progress(each.lm, 1) as lm:
            snapshots.setdefault(setting, []).append(snapshot(lm, each.tokens, path, step))
        prepared.append(each)
    say_notes(*prepared)
    finish(_told(args, where, snapshots), args, prepared[0], out, others=prepared[1:])


def _told(args: Args, where: Path, groups: dict[str, list[Snapshot]]) -> Analysed:
    if args.over:
        over = args.over
        return Analysed(
            headline=sweep_headline(groups, over),
            summary=sweep_summary(groups, over),
            write=lambda out, settings, _: write_sweep_report(
                out, where.name, groups, over, settings
            ),
        )
    return Analysed(
        headline=steps_headline(groups[""]),
        summary=steps_summary(groups[""]),
        write=lambda out, settings, _: write_steps_report(out, where.name, groups[""], settings),
    )


def _profile(prepared: Prepared, shared: Shared) -> so.VariantProfile:
    return so.variant_profile(shared.lm, prepared.tokens, shared.tau, stats=shared.stats)


def _side_by_side(
    args: Args, prepared: Sequence[Prepared], profiles: Sequence[so.VariantProfile]
) -> Analysed:
    names = args.labels or tuple(short_names([each.lm.name for each in prepared]))
    report = SideBySide(tuple(profiles), tuple(names), tuple(each.token_text for each in prepared))
    return Analysed(
        headline=verdict(report),
        summary=summary(report),
        write=lambda out, settings, _: write_variants_report(out, report, settings),
    )


if __name__ == "__main__":
    run(main)
