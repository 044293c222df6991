"""What every analysis writes: `<name>.json`, figures as PNG and PDF, and one self-contained `report.html`.

All files are finished in a workspace first (`staging.py`) and then moved into place one by one; when anything fails, the output
directory is as it was before.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from matplotlib.figure import Figure

from sysout_jax import interrupts
from sysout_jax.errors import InputError, RunError
from sysout_jax.figures.saving import SUFFIXES, save_figures
from sysout_jax.figures.spec import FigureSpec
from sysout_jax.figures.stamp import origin, stamp
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.reports.expected import Expectation
from sysout_jax.reports.ours import check_ours
from sysout_jax.reports.page import Picture, Section, Table, page
from sysout_jax.storage import staging
from sysout_jax.storage.places import nearest
from sysout_jax.storage.serialise import plain, read_json_object
from sysout_jax.storage.workspaces import workspace

PAGE, FIGURES = "report.html", "figures"
WORKSPACE = "report"  # what one analysis left unfinished, the next one clears, whichever it is
#: What tables of definitions say of it; the rule is in `outliers.definitions`.
ATTENTION_ON_THEM = (
    "share that a head gives to those that enter its layer (where none enters, to all that there ever are), over the queries of all sequences "
    "that can see one"
)
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")  # of analyses and figures, which become file names


def counting(name: str) -> str:
    """How the page of an analysis counts, and how its JSON does."""
    return (
        f"Layers are counted from 1 on this page and from 0 in {name}.json. Sequences, tokens, channels, dims and heads are "
        "counted from 0 everywhere."
    )


def expert_terms(expert_width: int | None) -> tuple[tuple[str, str], ...]:
    """What a table of definitions says of a mixture of experts; nothing without one."""
    if expert_width is None:
        return ()
    counted = f"expert:unit, each with {expert_width} units; W_down is the matrices of all experts side by side, and the mean of its row goes over all of them"
    return (
        ("channel, column", counted),
        ("x_down of a token", "the values in the experts that its router chose, before they are weighted; means and medians are over these, the other experts have none"),
    )  # fmt: skip


def figure_sections(
    specs: Mapping[str, FigureSpec],
    report: Any,
    token_text: TokenText,
    tables: Mapping[str, str | Table | Sequence[Table] | None],
) -> list[Section]:
    """One section for each figure that applies: the picture, its sentence, and the tables or text of its name if there are any."""
    sections = []
    for name, spec in specs.items():
        if spec.applies(report):
            blocks: list[str | Table | Picture] = [Picture(name, spec.sentence(report, token_text))]
            if below := tables.get(name):
                blocks += [below] if isinstance(below, (str, Table)) else below
            sections.append(Section(spec.title, tuple(blocks)))
    return sections


def check_replaced(out: Path, results: str, *beside: str) -> None:
    """InputError, before any work is done, when `write_report` would replace in `out` what no report of ours has written.

    `results` is the JSON that it writes; files `beside` it are looked at too.
    """
    check_ours(out, PAGE, FIGURES, results, beside)


def check_out(out: Path) -> None:
    """InputError, before any work is done, when `write_report` could not write to `out`."""
    staging.check_out(out, new=False, name=WORKSPACE)
    if (out / FIGURES).is_symlink():
        raise InputError(f"{out}: {FIGURES} in it is a link; name another directory")
    if os.path.lexists(out / FIGURES):
        staging.check_out(out / FIGURES, new=False, name=WORKSPACE)
    for file in [out / PAGE, *out.glob("*.json")]:
        if file.is_dir() and not file.is_symlink():
            raise InputError(f"{out}: {file.name} in it is a directory; name another directory")


def write_report(
    out: Path,
    name: str,
    title: str,
    *,
    headline: str,
    payload: Mapping[str, Any],
    sections: Sequence[Section],
    figures: Mapping[str, Figure],
    settings: Mapping[str, Any],
    expectation: Expectation | None = None,
) -> list[Path]:
    """Write `<out>/<name>.json`, `<out>/figures/<figure>.png` and `.pdf`, and `<out>/report.html`; returns their paths.

    The JSON is `payload` and `settings`, strict: NaN and inf are null. The page shows `title`, `headline`, `sections` (a
    `Picture` in them names one of `figures`) and `settings`; an `expectation` goes into both, on the page before the last of
    the sections, which is where terms are defined. Files of the same names are replaced, and figures that an
    earlier run of the same analysis left and this one does not draw are removed. Whatever fails, nothing changes in `out`.
    Of several processes the first one writes; the others return no paths. Raises RunError when files cannot be written.
    """
    if jax.process_index() > 0:
        return []
    for each in (name, *figures):
        if not _NAME.fullmatch(each):
            raise ValueError(
                f"{each!r} becomes a file name; expected lower-case letters, digits, - and _"
            )
    if expectation:
        payload = {**payload, "expected": expectation.to_dict()}
        sections = [*sections[:-1], expectation.section(), *sections[-1:]]
    try:
        return _write(Path(out), name, title, headline, payload, sections, figures, settings)
    except OSError as error:
        raise RunError(
            f"{out}: the report is not written ({error}); the directory is as it was"
        ) from None


def _write(
    out: Path,
    name: str,
    title: str,
    headline: str,
    payload: Mapping[str, Any],
    sections: Sequence[Section],
    figures: Mapping[str, Figure],
    settings: Mapping[str, Any],
) -> list[Path]:
    with workspace(nearest(out.absolute()), WORKSPACE) as work:
        staged = work / "new"
        (staged / FIGURES).mkdir(parents=True)
        made_from = origin(settings)
        save_figures({k: stamp(v, made_from) for k, v in figures.items()}, staged / FIGURES)
        images = {name: (staged / FIGURES / f"{name}.png").read_bytes() for name in figures}
        (staged / PAGE).write_text(
            page(title, headline, sections, images, settings, name), encoding="utf-8"
        )
        # written and moved last: whoever finds it finds the rest as well; the page comes first and tells that the figures are ours
        result = plain(dict(payload)) | {"figures": list(figures), "settings": plain(settings)}
        (staged / f"{name}.json").write_text(
            json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )
        drawn = [f"{FIGURES}/{figure}.{suffix}" for figure in figures for suffix in SUFFIXES]
        files = [PAGE, *drawn, f"{name}.json"]
        staging.sync(staged)
        with interrupts.whole():
            _replace(staged, out, files, _outdated(out, name, files), work / "old")
    return [out / file for file in files]


def _outdated(out: Path, name: str, files: Sequence[str]) -> list[str]:
    """Figures that the last run of this analysis wrote here and this one does not."""
    try:
        earlier = read_json_object(out / f"{name}.json", "it is replaced")["figures"]
        earlier = [figure for figure in earlier if _NAME.fullmatch(figure)]
    except (InputError, KeyError, TypeError):
        return []
    candidates = [f"{FIGURES}/{figure}.{suffix}" for figure in earlier for suffix in SUFFIXES]
    return [file for file in candidates if file not in files and (out / file).is_file()]


def _replace(
    staged: Path, out: Path, files: Sequence[str], outdated: Sequence[str], kept: Path
) -> None:
    """Move finished files into `out` and drop outdated ones; on failure bring back what was there."""
    touched: list[str] = []
    drawn = any(file.startswith(FIGURES) for file in (*files, *outdated))
    with staging.new_parents((out / FIGURES if drawn else out).absolute()):
        try:
            for file in (*files, *outdated):
                if os.path.lexists(out / file):
                    (kept / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(out / file, kept / file, follow_symlinks=False)
                touched.append(file)
                if file in outdated:
                    (out / file).unlink()
                else:
                    os.replace(staged / file, out / file)
        except BaseException:
            for file in touched:
                if os.path.lexists(kept / file):
                    os.replace(kept / file, out / file)
                else:
                    (out / file).unlink(missing_ok=True)
            raise
