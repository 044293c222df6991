"""The `tokenizers` library under guard: whatever goes wrong in it is an InputError, and nothing in it grows without bound."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import tokenizers

from sysout_jax.errors import InputError
from sysout_jax.printable import printable

PROBE = "The cat, 1."
MOST_GROWTH = 256  # characters that normalising may make of one
MOST_IDS = 1 << 24  # the library goes through all ids up to the largest when it writes itself out
T = TypeVar("T")


def open_backend(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a file, after it has encoded a few words; padding and truncation, which some files ask for, are off.

    Raises InputError for what cannot be read or cannot encode.
    """
    todo = "download it again"
    with _silent():
        backend = guarded(
            # the library opens no path that is not valid text
            lambda: tokenizers.Tokenizer.from_buffer(path.read_bytes()),
            f"{path}: not a readable tokenizer.json",
            todo,
        )
        backend.no_truncation()
        backend.no_padding()
        growth = _growth(_spec(backend.normalizer))
        if growth > MOST_GROWTH:
            raise InputError(
                f"{path}: its normaliser makes up to {growth:.3g} characters of one; expected at most {MOST_GROWTH}"
            )
        if backend.get_vocab_size() == 0:
            raise InputError(f"{path}: a tokenizer without a single token; {todo}")
        largest = max(backend.get_vocab().values())
        if largest >= MOST_IDS:
            raise InputError(
                f"{path}: a token has the id {largest:,}; expected one below {MOST_IDS:,}; {todo}"
            )
        guarded(lambda: backend.encode(PROBE), f"{path}: this tokenizer cannot encode", todo)
    return backend


def encode(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    """Token ids without special tokens; InputError when the tokenizer fails on this text."""
    with _silent():
        return guarded(
            lambda: backend.encode(text, add_special_tokens=False).ids,
            "the tokenizer cannot encode this text",
            "expected valid characters and the model's own tokenizer",
        )


def added_first(backend: tokenizers.Tokenizer) -> int | None:
    """The special token that the tokenizer puts before a text when asked for all of its own; None where it puts none."""
    plain = encode(backend, PROBE)
    with _silent():
        whole = guarded(
            lambda: backend.encode(PROBE).ids, "the tokenizer cannot encode", "bring another"
        )
    return whole[0] if len(whole) > len(plain) and whole[:1] != plain[:1] else None


def guarded(call: Callable[[], T], failed: str, todo: str) -> T:
    """`call()`; InputError `<failed> (<the library's reason>); <todo>` for whatever the library raises."""
    try:
        return call()
    except BaseException as error:
        # bare Exception for every kind of damage, and for a panic of the Rust code one that is none
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{failed} ({printable(str(error))}); {todo}") from None


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what a panic writes to stderr before it becomes an exception."""
    try:
        kept = os.dup(2)
    except OSError:  # stderr is closed
        yield
        return
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 2)
        os.close(nothing)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _spec(part: Any) -> dict[str, Any]:
    """What tokenizer.json says of a part of the tokenizer."""
    return {} if part is None else json.loads(part.__getstate__())


def _growth(normalizer: dict[str, Any]) -> float:
    """How many characters a normaliser can make of one: replacements of replacements multiply."""
    growth = 1.0
    for each in normalizer.get("normalizers", ()):
        growth *= _growth(each)
    if normalizer.get("type") == "Replace":
        pattern, length = normalizer["pattern"], len(normalizer["content"])
        if "String" in pattern:
            growth *= max(1.0, length / max(len(pattern["String"]), 1))
        else:  # an expression may match nothing, and then adds
            growth *= length + 1
    return growth
