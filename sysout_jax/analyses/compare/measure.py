"""What two finished lifecycles say, read from their JSON: nothing is computed anew, no model is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.errors import InputError
from sysout_jax.figures.select import short_names
from sysout_jax.storage.serialise import read_json_object

REPORT = "lifecycle.json"
_TODO = "give a directory that analyze.lifecycle has written"


@dataclass(frozen=True)
class Told:
    """What a comparison reads of one lifecycle. Layers are counted from 0; None stands for what the report does not know."""

    name: str
    text: str  # what was read
    tau: float
    num_layers: int
    sequences: int
    length: int
    found: bool
    ratio: float  # the largest |h| over its mean
    value: float
    peak: int  # its layer
    dim: str
    births: tuple[int, ...]  # layers
    dims: tuple[int, ...]
    channels: tuple[str, ...]  # of the first birth
    heads: int  # sink heads
    last_alive: int | None  # last layer with outliers
    perplexity: float | None
    perplexity_without: float | None  # with the birth weights at zero
    birth_weights: float | None  # how many these are
    h_ratio: np.ndarray  # (L,)
    x_down_ratio: np.ndarray  # (L,)
    mass: np.ndarray  # (L, H) attention on outlier tokens
    first_token: np.ndarray  # (L, H) attention on the first token

    @property
    def attention(self) -> np.ndarray:
        """(L, H) attention on outlier tokens, without any on the first token."""
        return self.mass if self.found else self.first_token


@dataclass(frozen=True)
class Comparison:
    """Two lifecycles, under names that differ."""

    first: Told
    second: Told

    @property
    def both(self) -> tuple[Told, Told]:
        return self.first, self.second


def compare(first: Path, second: Path) -> Comparison:
    """Read two directories that `analyze.lifecycle` has written, or the JSON files in them. Raises InputError for anything else."""
    paths = [Path(path) / REPORT if os.path.isdir(path) else Path(path) for path in (first, second)]
    read = [_Reader(path, read_json_object(path, _TODO)) for path in paths]
    names = short_names([reader.text("model") for reader in read])
    if names[0] == names[1]:
        places = [path.parent.name or path.name for path in paths]
        told_apart = places if places[0] != places[1] else ("1", "2")
        names = [f"{name} ({which})" for name, which in zip(names, told_apart, strict=True)]
    return Comparison(*(reader.told(name) for reader, name in zip(read, names, strict=True)))


class _Reader:
    """Fields of a report that somebody else may have written, by their paths."""

    def __init__(self, path: Path, fields: dict[str, Any]):
        self.path, self.fields = path, fields

    def told(self, name: str) -> Told:
        layers = int(self.number("num_layers"))
        cause = self.fields.get("cause") is not None
        events = self._at("birth.events", list)
        last = self.perhaps("death.last_alive")
        return Told(
            name=name,
            text=self._what_was_read(),
            tau=self.number("tau"),
            num_layers=layers,
            sequences=int(self.number("num_sequences")),
            length=int(self.number("length")),
            found=self._at("found", bool),
            ratio=self.number("largest_h.ratio"),
            value=self.number("largest_h.value"),
            peak=int(self.number("largest_h.layer")),
            dim=self.text("largest_h.label"),
            births=self.whole_numbers("birth.layers"),
            dims=self.whole_numbers("birth.dims"),
            channels=self._channels(events),
            heads=len(self._at("spread.heads", list)),
            last_alive=None if last is None else int(last),
            perplexity=self.perhaps("cause.baseline.perplexity") if cause else None,
            perplexity_without=self.perhaps("cause.edits.element.effect.perplexity")
            if cause
            else None,
            birth_weights=self.perhaps("cause.edits.element.weights") if cause else None,
            h_ratio=self.array("statistics.h.ratio", (layers,)),
            x_down_ratio=self.array("statistics.x_down.ratio", (layers,)),
            mass=self.array("spread.mass", (layers, None)),
            first_token=self.array("statistics.attention.first_token_share", (layers, None)),
        )

    def _at(self, path: str, kind: type | tuple[type, ...]) -> Any:
        value: Any = self.fields
        for name in path.split("."):
            if not isinstance(value, dict) or name not in value:
                raise self._refused(path)
            value = value[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self._refused(path)
        return value

    def _refused(self, path: str) -> InputError:
        return InputError(f"{self.path}: is no report of a lifecycle ({path} is missing or of another kind); {_TODO}")  # fmt: skip

    def number(self, path: str) -> float:
        return float(self._at(path, (int, float)))

    def perhaps(self, path: str) -> float | None:
        """A number that is null where it was not finite."""
        value = self._at(path, (int, float, type(None)))
        return None if value is None else float(value)

    def text(self, path: str) -> str:
        return str(self._at(path, str))

    def whole_numbers(self, path: str) -> tuple[int, ...]:
        values = self._at(path, list)
        if not all(isinstance(value, int) for value in values):
            raise self._refused(path)
        return tuple(values)

    def array(self, path: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """Numbers of that shape, None for any size; null becomes NaN."""
        try:
            values = np.array(self._at(path, list), float)
        except (TypeError, ValueError):
            raise self._refused(path) from None
        if values.ndim != len(shape) or any(
            want is not None and want != size for want, size in zip(shape, values.shape, strict=True)
        ):  # fmt: skip
            raise self._refused(path)
        return values

    def _channels(self, events: list[Any]) -> tuple[str, ...]:
        try:
            return tuple(str(channel["label"]) for channel in events[0]["channels"]) if events else ()  # fmt: skip
        except (TypeError, KeyError):
            raise self._refused("birth.events") from None

    def _what_was_read(self) -> str:
        flags = self._at("settings.flags", dict)
        if flags.get("prompt") is not None:
            return "a prompt"
        return "the package's text" if flags.get("text") is None else Path(str(flags["text"])).name
