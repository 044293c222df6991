"""Where a report may be written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import sysout_jax as so
from sysout_jax.checkpoints import checkpoint
from sysout_jax.reports import report


def check_out(out: Path, files: Sequence[str], *read: str | Path | None) -> Path:
    """The output directory if it can be written to; nothing is created yet.

    It may lie inside a model or a run, and hold one, but not be one of those that are `read`, nor lie among their weights. Of the
    report's page, its figures and its `files`, JSON first, it may hold earlier ones and none of somebody else.
    """
    try:
        report.check_out(out)
        for each in read:
            if each is not None:
                _check_apart(out, Path(os.path.expanduser(each)))  # as `so.load` finds it
        report.check_replaced(out, *files)
    except so.InputError as error:
        raise so.InputError(f"--out {error}") from None
    return out


def _check_apart(out: Path, read: Path) -> None:
    if not os.path.isdir(read):  # a file, a hub id, a model that has a name
        return
    home = checkpoint.home_of(read)
    written = [Path(os.path.realpath(place)) for place in (out, out / report.FIGURES)]
    for model in (read, home or read):
        if Path(os.path.realpath(model)) in written:
            raise so.InputError(
                f"{out}: its files would come into {model}, which is read; name another directory, {model / 'report'} for example"
            )
    for weights in (home / checkpoint.PARAMS, home / checkpoint.RUN) if home else ():
        if written[0].is_relative_to(os.path.realpath(weights)):
            raise so.InputError(
                f"{out}: lies among the weights in {weights}; name a place outside of them"
            )
