"""Text from outside (prompts, names in files, library messages) as it may be shown: no control codes, no endless lines."""

from __future__ import annotations

import html
import shlex
from collections.abc import Iterable

LONGEST = 1000  # characters of one message
LONGEST_NAME = 120  # of one name within a message


def printable(text: str, most: int = LONGEST) -> str:
    """`text` on one line: what a terminal would obey or could not show is escaped (`\\x1b`), the middle is cut out beyond `most` characters.

    Runs of white space become one space. Characters that turn the direction of writing are escaped too.
    """
    kept = text if len(text) <= 4 * most else text[: 2 * most] + text[-2 * most :]
    shown = escaped(" ".join(kept.split()))
    if len(shown) <= most and len(kept) == len(text):
        return shown
    half = (most - 1) // 2
    return f"{shown[:half]}…{shown[-half:]}"


def printable_name(name: str) -> str:
    """A name out of a file, short enough to stand in a sentence."""
    return printable(name, LONGEST_NAME)


def some(names: Iterable[str], most: int = 12) -> str:
    """A list of names out of files, cut where it stops being read."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(printable_name, names[:most])) + more


def escaped(text: str, kept: str = "") -> str:
    """`text` at its length: only what a terminal would obey or could not show is escaped, except for the characters `kept`."""
    return "".join(c if c.isprintable() or c in kept else _escaped(c) for c in text)


def shell_word(text: str) -> str | None:
    """`text` as one word for a shell, in printable ASCII; None where no argument of a program can be this text."""
    try:
        encoded = text.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return None
    if "\0" in text:
        return None
    if text.isascii() and text.isprintable():
        return shlex.quote(text)
    # $'…' of bash, ksh and zsh; three octal digits end by themselves
    plain = (chr(b) if b < 128 and chr(b).isalnum() else f"\\{b:03o}" for b in encoded)
    return "$'" + "".join(plain) + "'"


def html_table(header: Iterable[str], rows: Iterable[Iterable[object]], caption: str) -> str:
    """A small table for notebooks; all text is escaped."""

    def line(tag: str, cells: Iterable[object]) -> str:
        return (
            "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"
        )

    body = "".join(line("td", row) for row in rows)
    return f"<table><caption>{html.escape(caption)}</caption>{line('th', header)}{body}</table>"


class Told:
    """What notebooks show of a report with `to_dict`: its single values."""

    def to_dict(self) -> dict:
        raise NotImplementedError

    def _repr_html_(self) -> str:
        single = (str, int, float, bool)
        rows = [(k, v) for k, v in self.to_dict().items() if isinstance(v, single)]
        return html_table(("quantity", "value"), rows, type(self).__name__)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
