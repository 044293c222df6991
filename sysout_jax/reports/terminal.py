"""Reports on a terminal: tables, line breaks, what was read."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from itertools import zip_longest

from sysout_jax.printable import escaped


def text_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], most: Sequence[int] | None = None
) -> str:
    """Columns aligned with spaces; cells wider than `most` of their column go on in the next line."""
    table = [header, *rows]
    if most:
        table = [line for row in table for line in _lines(row, most)]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )


def _lines(row: Sequence[str], most: Sequence[int]) -> list[tuple[str, ...]]:
    cells = [_wrapped(cell, width) or [""] for cell, width in zip(row, most, strict=True)]
    return list(zip_longest(*cells, fillvalue=""))


def fit(text: str, width: int = 100) -> str:
    """Lines that are too long for a terminal broken at spaces, what follows a break indented. Control characters are escaped."""
    lines = []
    for line in escaped(text, kept="\n").split("\n"):
        indent = " " * (len(line) - len(line.lstrip()) + 8)
        lines += _wrapped(line, width, indent) if len(line) > width else [line]
    return "\n".join(lines)


#: Spaces within a number or a formula: `4 × 512`, `τ = 1000`, `[507, 1229]`, `layer 12`, `12 %`.
_TIED = re.compile(
    r"(?<=[=×<>≥≤]) (?=\S)| (?=[=×<>≥≤%])|(?<=\d,) (?=\d)|(?<=\blayer) (?=\d)|(?<=\blayers) (?=\d)"
)
_TIE = "\N{NO-BREAK SPACE}"


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Lines of at most `width`, broken at spaces only, none of them within a number."""
    lines = textwrap.wrap(
        _TIED.sub(_TIE, text), width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )  # fmt: skip
    return [line.replace(_TIE, " ") for line in lines]


def ran_over(sequences: int, length: int) -> str:
    """What was analysed: `2 sequences of 64 tokens`."""
    return f"{sequences} sequence{'s' * (sequences > 1)} of {length:,} token{'s' * (length > 1)}"
