"""A rule takes its range and nothing else, and its message is short whatever the value is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sysout_jax.checks import Flag, OrNone, Real, Whole, Word, check, check_fields, shown
from sysout_jax.errors import InputError

STRANGE = [None, True, "1", "true", [], [1], {}, {"a": 1}, (1,), b"1", 1j, np.float32, object()]
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (Whole(1, 9), [1, 9], [0, 10, -1, 1.0, 4.5, 1e30, NAN, INF, 10**400, *STRANGE]),
        (Real(0, 1), [0, 1, 0.0, 0.5], [-1e-300, 1.1, NAN, INF, -INF, 10**400, *STRANGE]),
        (Real(above=0, below=1), [1e-300, 0.5], [0, 0.0, 1, 1.0, NAN, INF, *STRANGE]),
        (Real(), [0, -1e308, 1e308, 2**70], [NAN, INF, -INF, 10**400, *STRANGE]),
        (Flag(), [True, False], [0, 1, "false", NAN, None, []]),
        (Word(("a", "b")), ["a"], ["", "ab", "c", "a" * 10**6, 1, ["a"], None, {}]),
        (OrNone(Whole()), [None, 1], [0, True, "none", []]),
    ],
    ids=["whole", "real", "open", "any real", "flag", "word", "or none"],
)
def test_rules(rule, good, bad):
    for value in good:
        assert check("x", value, rule) is value
    for value in bad:
        with pytest.raises(InputError) as caught:
            check("x", value, rule)
        message = str(caught.value)
        assert message.startswith("x is ") and message.endswith(f"; expected {rule}")
        assert len(message) < 250 and message.isprintable()


def test_rules_read_as_sentences():
    assert str(Whole(1, 1000)) == "a whole number from 1 to 1,000"
    assert str(Real(above=0, most=1)) == "a finite number above 0 and at most 1"
    assert str(Real()) == "a finite number"
    assert str(OrNone(Flag())) == "true or false, or none"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (10**100_000, "an integer of 332,193 bits"),
        ([0] * 10**6, "a list of 1,000,000"),
        ("\x1b[2J", r"'\x1b[2J'"),
        (math.nan, "nan"),
        (object(), "of type object"),
    ],
    ids=["huge", "list", "escape code", "nan", "object"],
)
def test_a_value_is_shown_shortly(value, text):
    assert shown(value) == text


def test_fields_of_a_dataclass():
    class Settings:
        lr, steps = NAN, 3

    check_fields(Settings, {"steps": Whole()})
    with pytest.raises(InputError, match=r"^train\.lr is nan; expected a finite number above 0$"):
        check_fields(Settings, {"steps": Whole(), "lr": Real(above=0)}, "train.")
