"""Arguments of the public functions, checked before anything is computed: a caller's mistake is an InputError of one line."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from sysout_jax.checks import Real, Rule, Whole, check, scalar, shown
from sysout_jax.errors import InputError
from sysout_jax.language_model import LanguageModel
from sysout_jax.printable import printable_name, some

#: What the arguments that many functions share must be. Beyond these thresholds, products in float32 are 0 or inf.
RULES: dict[str, Rule] = {
    "tau": Real(1e-9, 1e9),
    "seed": Whole(0, 2**63 - 1),
    "seeds": Whole(1, 10_000),
}


def check_arguments(lm: Any, **given: Any) -> None:
    """The model, and arguments that have a rule."""
    if not isinstance(lm, LanguageModel):
        raise InputError(
            f"lm is {shown(lm)}; expected a model, open one with sysout_jax.load(path)"
        )
    for name, value in given.items():
        check(name, scalar(value), RULES[name])


def check_kind(name: str, value: Any, kind: type) -> None:
    """None, or an object of a class of ours."""
    if value is not None and not isinstance(value, kind):
        raise InputError(f"{name} is {shown(value)}; expected a {kind.__name__}, or none")


def check_same(name: str, held: np.ndarray, held_tau: float, given: np.ndarray, tau: float) -> None:
    """What was measured before was measured on these tokens (N, T), at this τ."""
    if held.shape != given.shape or (held != given).any():
        raise InputError(
            f"{name} was measured on other tokens {held.shape} than those given {given.shape}; give the same, or leave {name} out"
        )
    if held_tau != tau:
        raise InputError(
            f"{name} was measured at tau = {held_tau:g}, not {tau:g}; give the same tau, or leave {name} out"
        )


def check_words(name: str, words: Any, known: Collection[str], least: int = 1) -> tuple[str, ...]:
    """A list of at least so many of the known words; a word alone is none, it would be read letter by letter."""
    listed = _listed(name, words, f"a list of words such as ({next(iter(known))!r},)")
    unknown = [word for word in listed if not isinstance(word, str) or word not in known]
    if unknown:
        names = some(word if isinstance(word, str) else shown(word) for word in unknown)
        raise InputError(f"{name} holds unknown {names}; expected some of {', '.join(known)}")
    if len(listed) < least:
        raise InputError(f"{name} is empty; expected some of {', '.join(known)}")
    return listed


def check_list(name: str, values: Any, rule: Rule) -> tuple[Any, ...]:
    """A list, not empty, of values that a rule accepts."""
    listed = _listed(name, values, f"a list, each of them {rule}")
    if not listed:
        raise InputError(f"{name} is empty; expected a list, each of them {rule}")
    return tuple(check(f"{name}[{i}]", scalar(value), rule) for i, value in enumerate(listed))


def check_texts(name: str, texts: Any) -> tuple[str, ...]:
    """A list of texts."""
    listed = _listed(name, texts, "a list of texts")
    for text in listed:
        if not isinstance(text, str):
            raise InputError(f"{name} holds {printable_name(shown(text))}; expected texts")
    return listed


def _listed(name: str, values: Any, expected: str) -> tuple[Any, ...]:
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InputError(f"{name} is {shown(values)}; expected {expected}")
    return tuple(values)
