"""What flags may say: numbers within their bounds, prompts that are text."""

from __future__ import annotations

import os

import sysout_jax as so
from sysout_jax.printable import printable_name

LEAST_TAU, MOST_TAU = 1e-9, 1e9  # beyond, float32 products are 0 or inf
MOST = 2**31 - 1  # of counts and seeds: an int32 holds it
MOST_SEEDS = 1000  # of random controls, each of them some passes


def check_count(flag: str, value: int | None, most: int) -> None:
    """InputError for a number below 1 or so large that the work would never end."""
    if value is not None and not 1 <= value <= most:
        raise so.InputError(f"{flag} {short(value)}: expected at least 1 and at most {most:,}")


def short(value: int) -> str:
    """A number of any length, as it stands in a message."""
    return printable_name(str(value))


def flag_text(flag: str, given: str) -> str:
    """Text that a flag gives as UTF-8, whatever the terminal's encoding; InputError where it is none."""
    try:
        given.encode()
        return given
    except (
        UnicodeEncodeError
    ):  # bytes that the terminal's encoding does not know came as halves of surrogate pairs
        pass
    try:
        return os.fsencode(given).decode()
    except UnicodeError:
        raise so.InputError(
            f"{flag} {printable_name(given)}: not UTF-8 text; expected some words"
        ) from None
