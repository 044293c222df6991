"""python -m analyze.all: the analyses of one model and text, and one page that leads to their reports."""

from __future__ import annotations

import dataclasses
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import sysout_jax as so
from analyze import (
    compression,
    consistency,
    existence,
    intervene,
    length,
    lifecycle,
    positions,
    variants,
)
from analyze.analysis import Shared, export_statistics, held_against, say_notes
from analyze.commands import COMMANDS
from analyze.places import check_out
from analyze.source import (
    ClassLists,
    Expects,
    Prepared,
    Source,
    prepare,
    settings,
    terminal_bar,
    where_report_lies,
)
from sysout_jax.commands.arguments import parse
from sysout_jax.commands.cli import out_of_memory, run, say
from sysout_jax.errors import RunError
from sysout_jax.printable import printable
from sysout_jax.reports.index import Part, index_summary, write_index
from sysout_jax.reports.terminal import fit

#: Those that run, the quick ones first.
ANALYSES: dict[str, Any] = {
    "lifecycle": lifecycle,
    "positions": positions,
    "consistency": consistency,
    "existence": existence,
    "variants": variants,
    "length": length,
    "intervene": intervene,
    "compression": compression,
}


@dataclass(frozen=True)
class Args(Expects, Source, ClassLists):
    """Run the eight analyses of one model and text (all but absorb, census and compare) in shared passes, and write an index page over their reports."""

    NAME: ClassVar[str] = "all"

    skip: tuple[str, ...] = ()
    """Analyses to leave out; compression and intervene take most of the time."""
    out: Path = Path("out/all")
    """Directory for report.html, all.json, and one directory for each analysis."""


def main() -> None:
    args = parse(Args, "python -m analyze.all")
    out = check_out(args.out, args.files(), *args.places_read())
    names = _chosen(args.skip)
    for name in names:
        check_out(out / name, [f"{name}.json"], *args.places_read())
    args.expected()
    args.load_classes()
    prepared = prepare(args)
    say_notes(prepared)
    parts = []
    with terminal_bar() as bar:
        lm = prepared.lm.with_passes(on_layer=bar.update)
        shared = Shared(lm, prepared, args.tau, args.seed)
        for name in names:
            bar.set_description(name)
            parts.append(_part(name, args, prepared, shared, out / name))
    if not any(part.done for part in parts):
        raise RunError(f"none of the analyses could be done; {parts[0].name}: {parts[0].headline}")
    stats = vars(shared).get("stats")  # where an analysis asked for them
    nonfinite = stats.nonfinite if stats else None
    recorded = settings(args, prepared)
    paths = write_index(out, prepared.lm.name, parts, recorded, nonfinite)
    if args.export:
        paths += export_statistics(out, args.export, prepared, shared)
    say(fit(index_summary(parts, nonfinite)))
    say(where_report_lies(out, paths, ", and one directory for each analysis"))
    failed = [part.name for part in parts if not part.done]
    if failed:
        raise RunError(f"not done: {', '.join(failed)}; the rest is written")


def _chosen(skip: tuple[str, ...]) -> list[str]:
    for name in skip:
        if name not in ANALYSES:
            raise so.InputError(
                f"--skip {printable(name)}: unknown; known are {', '.join(ANALYSES)}"
            )
    names = [name for name in ANALYSES if name not in skip]
    if not names:
        raise so.InputError("--skip: leaves no analysis; name fewer")
    return names


def _part(name: str, args: Args, prepared: Prepared, shared: Shared, out: Path) -> Part:
    """One analysis, written; where it fails, why."""
    analysis, does = ANALYSES[name], COMMANDS[name]
    own = _flags(analysis.Args, args, out)
    start = time.perf_counter()
    try:
        if analysis is length:
            prepared, shared = _without_bos(args, prepared, shared)
        analysed = analysis.analyse(own, prepared, shared)
        analysed.write(out, settings(own, analysed.own or prepared), held_against(own, analysed))
    except (so.InputError, RunError) as error:
        return Part(name, does, str(error), time.perf_counter() - start, done=False)
    except Exception as error:
        if not out_of_memory(error):  # a bug: it is told, and costs the other analyses nothing
            traceback.print_exc(file=sys.stderr)
        why = printable(f"{type(error).__name__}: {error}")
        return Part(name, does, why, time.perf_counter() - start, done=False)
    return Part(name, does, analysed.headline, time.perf_counter() - start)


def _flags(kind: type, args: Args, out: Path) -> Any:
    """The flags that an analysis shares with this command; its own have their defaults."""
    own = {field.name for field in dataclasses.fields(kind)} - {"out"}
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(args) if f.name in own}
    return kind(**given, out=out)


def _without_bos(args: Args, prepared: Prepared, shared: Shared) -> tuple[Prepared, Shared]:
    """Windows as `analyze.length` wants them: it adds BOS itself."""
    if not args.bos:
        return prepared, shared
    tokens: np.ndarray = prepared.tokens[:, 1:]
    windows = dataclasses.replace(prepared.windows, tokens=tokens)
    prepared = dataclasses.replace(prepared, windows=windows)
    return prepared, Shared(shared.lm, prepared, args.tau, args.seed)


if __name__ == "__main__":
    run(main)
