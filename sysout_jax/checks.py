"""One way to check a setting, whoever wrote it: a name, a type, a range. Messages give the name, the value and what was expected."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from sysout_jax.errors import InputError
from sysout_jax.printable import printable_name

MOST_BITS = 256  # of an integer whose digits are shown


class Rule(Protocol):
    """What a value must be; `str(rule)` ends the sentence "expected …"."""

    def accepts(self, value: Any) -> bool: ...


@dataclass(frozen=True)
class Whole:
    """An int (no bool, no 4.0) from `least` to `most`."""

    least: int = 1
    most: int = 2**31 - 1  # arrays are indexed by int32

    def accepts(self, value: Any) -> bool:
        return type(value) is int and self.least <= value <= self.most

    def __str__(self) -> str:
        return f"a whole number from {self.least:,} to {self.most:,}"


@dataclass(frozen=True)
class Real:
    """A finite float or int (no bool) from `least` to `most`; `above` and `below` are bounds that it must not reach."""

    least: float = -sys.float_info.max
    most: float = sys.float_info.max
    above: float = -math.inf
    below: float = math.inf

    def accepts(self, value: Any) -> bool:
        # NaN fails every comparison, infinities the last two
        return (
            type(value) in (int, float)
            and self.least <= value <= self.most
            and self.above < value < self.below
        )

    def __str__(self) -> str:
        lowest, highest = -sys.float_info.max, sys.float_info.max
        bounds = [
            text
            for text, given in (
                (f"at least {self.least:g}", self.least != lowest),
                (f"above {self.above:g}", self.above != -math.inf),
                (f"at most {self.most:g}", self.most != highest),
                (f"below {self.below:g}", self.below != math.inf),
            )
            if given
        ]
        return "a finite number" + (f" {' and '.join(bounds)}" if bounds else "")


@dataclass(frozen=True)
class Flag:
    """True or False, and no word or number that stands for it."""

    def accepts(self, value: Any) -> bool:
        return type(value) is bool

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Word:
    """One of these words."""

    words: tuple[str, ...]

    def accepts(self, value: Any) -> bool:
        return type(value) is str and value in self.words

    def __str__(self) -> str:
        return f"one of {', '.join(self.words)}"


@dataclass(frozen=True)
class Is:
    """An object of a class."""

    kind: type

    def accepts(self, value: Any) -> bool:
        return isinstance(value, self.kind)

    def __str__(self) -> str:
        return f"a {self.kind.__name__}"


@dataclass(frozen=True)
class OrNone:
    """What another rule accepts, or None."""

    rule: Rule

    def accepts(self, value: Any) -> bool:
        return value is None or self.rule.accepts(value)

    def __str__(self) -> str:
        return f"{self.rule}, or none"


def scalar(value: Any) -> Any:
    """A scalar of numpy or jax as Python's own; anything else as it is."""
    if isinstance(value, np.generic | np.ndarray | jax.Array) and np.ndim(value) == 0:
        return value.item()
    return value


def check(name: str, value: Any, rule: Rule) -> Any:
    """The value; InputError `<name> is <value>; expected <rule>` when the rule does not accept it."""
    if not rule.accepts(value):
        raise InputError(f"{name} is {shown(value)}; expected {rule}")
    return value


def check_fields(settings: Any, rules: Mapping[str, Rule], prefix: str = "") -> None:
    """Check those attributes of `settings` (a dataclass, in its `__post_init__`) that have a rule."""
    for name, rule in rules.items():
        check(prefix + name, getattr(settings, name), rule)


def shown(value: Any) -> str:
    """A value from outside, short enough to stand in a sentence, whatever its size."""
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        return f"an integer of {value.bit_length():,} bits"
    if isinstance(value, (dict, list, tuple, set, bytes)):
        return f"a {type(value).__name__} of {len(value):,}"
    if isinstance(value, str):
        value = value[:1000]  # a long one is cut once more
    elif not isinstance(value, (int, float, type(None))):
        return f"of type {type(value).__name__}"
    return printable_name(repr(value))
