"""What every analysis command does: one analysis of one model and text, as a part that `analyze.all` runs beside others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

import sysout_jax as so
from analyze.places import check_out
from analyze.source import (
    Expects,
    Prepared,
    Source,
    prepare,
    progress,
    settings,
    tell,
)
from sysout_jax.commands.cli import say
from sysout_jax.errors import RunError
from sysout_jax.reports.expected import Expectation
from sysout_jax.reports.terminal import fit
from sysout_jax.statistics.export import export


class Shared:
    """What several analyses of the same windows need, computed when the first one asks for it; the lifecycle's cause only if it is wanted."""

    def __init__(
        self, lm: so.LanguageModel, prepared: Prepared, tau: float, seed: int, cause: bool = True
    ):
        self.lm, self.windows, self.tau, self.seed = lm, prepared.windows, tau, seed
        self.tokens = prepared.tokens
        self._cause = cause

    @cached_property
    def stats(self) -> so.Stats:
        return so.collect(self.lm, self.tokens, self.tau)

    @cached_property
    def lifecycle(self) -> so.Lifecycle:
        return so.lifecycle(
            self.lm, self.windows, self.tau, stats=self.stats, cause=self._cause, seed=self.seed
        )


@dataclass(frozen=True)
class Analysed:
    """What an analysis found, and how it is told."""

    headline: str
    """One sentence."""
    summary: str
    """One terminal screen."""
    write: Callable[[Path, dict[str, Any], Expectation | None], list[Path]]
    """`write(out, settings, expectation)`: its report; returns the paths of all files."""
    measured: Mapping[str, Any] | None = None
    """Quantities that published values are held against."""
    own: Prepared | None = None
    """What it read, where that is not what it was given."""


#: What an analysis is: its flags, model and windows, and what it shares with others, to what it found.
Analyse = Callable[[Any, Prepared, Shared], Analysed]


def run_alone(args: Any, analyse: Analyse, passes: int | None = None, cause: bool = True) -> None:
    """One analysis as a command: check, load, measure behind a bar, write, tell. `passes` through the model, where their number is known."""
    out = check_out(args.out, args.files(), *args.places_read())
    if isinstance(args, Expects):
        args.expected()
    prepared = prepare(args)
    say_notes(prepared)
    with progress(prepared.lm, passes) as lm:
        shared = Shared(lm, prepared, args.tau, args.seed, cause)
        analysed = analyse(args, prepared, shared)
    finish(analysed, args, prepared, out, shared)


def say_notes(*prepared: Prepared) -> None:
    """What the user should know of models and texts, each once."""
    for note in dict.fromkeys(note for each in prepared for note in each.notes):
        say(fit(note))


def finish(
    analysed: Analysed,
    args: Source,
    prepared: Prepared,
    out: Path,
    shared: Shared | None = None,
    others: Sequence[Prepared] = (),
) -> None:
    """Write what was found, of other models too, and tell it. Statistics that are to be exported are those of `shared`, or of a pass of their own."""
    expectation = held_against(args, analysed)
    recorded = settings(args, prepared, *others)

    def write() -> list[Path]:
        paths = analysed.write(out, recorded, expectation)
        if args.export:
            own = shared or Shared(prepared.lm, prepared, args.tau, args.seed)
            paths += export_statistics(out, args.export, prepared, own)
        return paths

    tell(analysed.summary, write, out, expectation)


def export_statistics(out: Path, format: str, prepared: Prepared, shared: Shared) -> list[Path]:
    """Statistics and mask into `out`; of several processes the first one writes. RunError where the disk takes no more."""
    stats = shared.stats
    if jax.process_index() > 0:
        return []
    N, T = stats.tokens.shape
    texts = [[prepared.token_text(n, t) for t in range(T)] for n in range(N)]
    try:
        return export(out, stats, format, texts)
    except OSError as error:
        raise RunError(f"{out}: the statistics are not written ({error})") from None


def held_against(args: Source, analysed: Analysed) -> Expectation | None:
    """What was found beside the published values that the flags name, if they do."""
    if not isinstance(args, Expects) or analysed.measured is None:
        return None
    return args.held_against(analysed.measured)
