"""Command lines' arguments: parsed by tyro, refused in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import tyro

from sysout_jax.commands import cli
from sysout_jax.errors import InputError
from sysout_jax.printable import printable, printable_name

FLAG = re.compile(r"--[a-zA-Z][^=\s]*")
LONGEST_FLAG = 1000  # characters
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_SIMILAR = re.compile(r"(?:Perhaps you meant|Arguments similar to .*):\s*(--[^\s,]+)")


def parse(kind: Any, prog: str, arguments: Sequence[str] | None = None, **more: Any) -> Any:
    """What `tyro.cli(kind, ...)` makes of the arguments (default: the process's own). `--help` leaves by SystemExit.

    Raises InputError, one line, for what tyro refuses, for a flag given twice, of which only the last would count, for
    one spelled with `_` in place of `-`, and for one of several values that has none.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    _check_spelling(given)
    _check_paths(kind, given)
    _check_lists(kind, given)
    refusal = io.StringIO()
    try:
        with _width(given), contextlib.redirect_stderr(refusal):
            return tyro.cli(kind, prog=prog, args=given, **more)
    except SystemExit as ending:
        if not ending.code:
            raise
    except OSError as error:  # the help could not be printed
        raise cli.Unprinted(error) from None
    except ValueError as error:  # what tyro lets pass of a dataclass's own complaint
        raise InputError(str(error)) from None
    raise InputError(f"{_first_of(refusal.getvalue())}; {prog} --help lists all flags")


def _check_spelling(given: list[str]) -> None:
    seen = set()
    for argument in given:
        if argument == "--":
            return
        name = FLAG.match(argument)
        if name is None:
            continue
        # tyro would compare it with all that it knows, letter by letter
        if len(name[0]) > LONGEST_FLAG:
            raise InputError(
                f"Unrecognized options: {printable_name(name[0])}; --help lists all flags"
            )
        if "_" in name[0]:
            raise InputError(
                f"{printable_name(name[0])}: unknown; did you mean {printable_name(name[0].replace('_', '-'))}?"
            )
        flag = name[0].replace("--no-", "--", 1)
        if flag in seen:
            raise InputError(
                f"{printable_name(name[0])}: given twice, as {printable_name(flag)}; give it once"
                if flag != name[0]
                else f"{printable_name(flag)}: given twice; give it once"
            )
        seen.add(flag)


def _check_paths(kind: Any, given: list[str]) -> None:
    """An empty path (a variable of the shell that is not set) would be the directory that the command runs in."""
    names = _flags(kind, lambda hint: hint is Path or Path in get_args(hint))
    flag = ""
    for argument in given:
        name, equals, value = argument.partition("=")
        if (name in names and equals and not value) or (flag in names and not argument):
            raise InputError(f"{name or flag}: is empty; name a file or directory")
        flag = argument if argument.startswith("--") else flag


def _check_lists(kind: Any, given: list[str]) -> None:
    """`--read $FILES` with a variable of the shell that is not set would do what the command does without the flag."""
    names = _flags(kind, lambda hint: get_args(hint)[1:] == (Ellipsis,))
    for argument, following in itertools.pairwise([*given, "--"]):
        if argument in names and following.startswith("--"):
            raise InputError(f"{argument}: has no value; give at least one, or leave the flag out")


def _flags(kind: Any, wanted: Callable[[Any], bool]) -> set[str]:
    """Of a dataclass's fields with such a type, those of nested ones that have no prefix included."""
    if not dataclasses.is_dataclass(kind):
        return set()
    flags = set()
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            flags |= _flags(hint, wanted)
        elif wanted(hint):
            flags.add(f"--{name.replace('_', '-')}")
    return flags


@contextlib.contextmanager
def _width(given: list[str]) -> Iterator[None]:
    """Within, tyro breaks no message into lines; help it does, at the terminal's width."""
    before = os.environ.get("COLUMNS")
    if not {"-h", "--help"} & set(given):
        os.environ["COLUMNS"] = "100000"
    try:
        yield
    finally:
        os.environ.pop("COLUMNS", None)
        if before is not None:
            os.environ["COLUMNS"] = before


def _first_of(box: str) -> str:
    """tyro's message out of the box that it draws, and the flag that it thinks was meant."""
    lines = [_COLOUR.sub("", line).strip("╭╮╰╯│ ") for line in box.split("\n")]
    parts: list[list[str]] = [
        []
    ]  # title, message, similar flags or the flag's help, how to get help
    for line in lines[1:]:
        if line.strip("─-"):
            parts[-1].append(line)
        elif parts[-1]:  # a rule
            parts.append([])
    message = parts[0]
    if message and message[0].startswith("Missing from"):
        flags = [line.split()[0] for line in message[1:] if line.startswith("--")]
        return f"{', '.join(flags)} missing"
    similar = _SIMILAR.search(" ".join(parts[1])) if len(parts) > 1 else None
    told = printable(" ".join(message), 400).rstrip(".")
    return told + (f"; did you mean {similar[1]}?" if similar else "")
