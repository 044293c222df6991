"""Holding a report against expected values: rules, and the comparison of what was measured with them.

A measurement is a name and a value; what has one value per layer is a sequence over layers, and an expectation says which
layers it speaks about. A name that a report does not have, or a layer that the model lacks, is "not measured".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

MATCH, DIFFERS, NOT_MEASURED = "match", "differs", "not measured"
MOST = 12  # members of a set that are written out
#: Of values read off figures by eye; statistics of another text are held against the same.
TOLERANCE = 0.05


@dataclass(frozen=True)
class Expected:
    """One expected value and where it comes from."""

    quantity: str  # a name of the report's measurements
    rule: str  # one of RULES
    want: Any  # a number or a word; a tuple for rules on sets, (low, high) for `between`
    source: str
    layers: tuple[int, ...] = ()  # 0-based; empty where the quantity is not per layer
    optional: tuple = ()  # members that may be there or not
    tolerance: float = TOLERANCE


@dataclass(frozen=True)
class Check:
    """An expectation beside what was found."""

    quantity: str
    layers: tuple[int, ...]  # 0-based; empty where the quantity is not per layer
    expected: str
    found: str
    verdict: str
    source: str


class Rule(NamedTuple):
    """`over` joins the layers of an expectation, `holds(found, expected)` decides, `text` is the expectation in words."""

    over: Callable[[Sequence], Any]
    holds: Callable[[Any, Expected], bool]
    text: Callable[[Expected], str]


def _mean(values: Sequence) -> Any:
    return np.mean(np.asarray(values, float), axis=0)


def _union(values: Sequence) -> tuple:
    return tuple(sorted({member for value in values for member in value}))


def _about(measured, expected: Expected) -> bool:
    want = np.asarray(expected.want, float)
    return bool(
        np.all(np.abs(np.asarray(measured, float) - want) <= expected.tolerance * np.abs(want))
    )


def _members(measured, expected: Expected) -> bool:
    want = set(expected.want)
    return want <= set(measured) <= want | set(expected.optional)


def _members_text(expected: Expected) -> str:
    return _text(expected.want) + (
        f" (perhaps {_text(expected.optional)})" if expected.optional else ""
    )


#: How an expectation is decided. Numbers of several layers: their mean (`about`, `between`), largest (`below`), smallest (`above`).
RULES: dict[str, Rule] = {
    "equal": Rule(lambda v: v[0], lambda f, e: bool(f == e.want), lambda e: _text(e.want)),
    "about": Rule(_mean, _about, lambda e: f"≈ {_text(e.want)}"),
    "between": Rule(
        _mean,
        lambda f, e: bool(e.want[0] <= f <= e.want[1]),
        lambda e: f"{_text(e.want[0])} to {_text(e.want[1])}",
    ),
    "below": Rule(max, lambda f, e: bool(f < e.want), lambda e: f"below {_text(e.want)}"),
    "above": Rule(min, lambda f, e: bool(f > e.want), lambda e: f"above {_text(e.want)}"),
    "members": Rule(_union, _members, _members_text),
    "includes": Rule(
        _union, lambda f, e: set(e.want) <= set(f), lambda e: f"among others {_members_text(e)}"
    ),
}


def compare(expected: Sequence[Expected], measured: Mapping[str, Any]) -> tuple[Check, ...]:
    """Every expectation with its verdict: match, differs or not measured."""
    return tuple(_check(expectation, measured) for expectation in expected)


def _check(expected: Expected, measured: Mapping[str, Any]) -> Check:
    rule = RULES[expected.rule]
    value = measured.get(expected.quantity)
    if expected.layers and value is not None:
        inside = max(expected.layers) < len(value)
        value = rule.over([value[layer] for layer in expected.layers]) if inside else None
    if value is None or (np.asarray(value).dtype.kind == "f" and np.isnan(value).any()):
        verdict, text = NOT_MEASURED, "–"
    else:
        verdict = MATCH if rule.holds(value, expected) else DIFFERS
        text = _text(value)
    return Check(
        expected.quantity, expected.layers, rule.text(expected), text, verdict, expected.source
    )


def _text(value: Any) -> str:
    """Numbers with four digits, members joined."""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        return f"{value:,.4g}"
    if isinstance(value, (tuple, np.ndarray)):
        shown = [f"({_text(v)})" if isinstance(v, tuple) else _text(v) for v in value]
        more = f" and {len(shown) - MOST} more" if len(shown) > MOST else ""
        return ", ".join(shown[:MOST]) + more or "none"
    return str(value)
