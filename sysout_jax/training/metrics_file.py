"""metrics.jsonl: the numbers of a run, one record `{"step": …, name: number or list over layers}` a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sysout_jax.errors import InputError, RunError
from sysout_jax.notices import warn, warn_once
from sysout_jax.storage.serialise import parse_json
from sysout_jax.storage.staging import write_file
from sysout_jax.words import plural

METRICS = "metrics.jsonl"
UNREADABLE = ".unreadable"  # of lines that were moved aside


class JsonLines:
    """metrics.jsonl, one record a line. Lines behind `step` are dropped first: a resumed run writes them again.

    Lines that cannot be read, as a loss of power leaves them, are moved to a file beside it. Raises RunError when it cannot be written.
    """

    def __init__(self, workdir: Path, step: int):
        self._path = Path(workdir) / METRICS
        if step and not self._path.exists():
            warn(
                f"{self._path}: is missing; what the steps up to {step:,} recorded is lost, their weights are not"
            )
        with self._guarded():
            records, unreadable = _lines(self._path)
            kept = [line for line, record in records if record["step"] <= step]
            if unreadable:
                aside = self._path.with_name(METRICS + UNREADABLE)
                with aside.open("ab") as file:
                    file.writelines(unreadable)
                lines = plural(len(unreadable), "line")
                moved = "was" if len(unreadable) == 1 else "were"
                warn(f"{self._path}: {lines} cannot be read and {moved} moved to {aside.name}")
            write_file(self._path, b"".join(kept))
            self._file = self._path.open("ab", buffering=0)

    def write(self, record: dict[str, Any]) -> None:
        line = memoryview(json.dumps(record).encode() + b"\n")
        with self._guarded():
            while line:
                line = line[self._file.write(line) :]

    def close(self) -> None:
        self._file.close()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self._path}: cannot be written ({error.strerror}); free some space and run the same command again to go on from "
                "the last checkpoint"
            ) from None


def _lines(path: Path) -> tuple[list[tuple[bytes, dict[str, Any]]], list[bytes]]:
    """The lines that are records, with what they say, and the others but for the half line that a killed run leaves at the end."""
    good: list[tuple[bytes, dict[str, Any]]] = []
    bad: list[bytes] = []
    if not path.exists():
        return good, bad
    with path.open("rb") as file:
        for line in file:
            record = _record(line)
            if record is not None:
                good.append((line, record))
            elif line.endswith(b"\n"):
                bad.append(line)
    return good, bad


def _record(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = parse_json(line)
    except (ValueError, RecursionError):
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return record if isinstance(step, int) and not isinstance(step, bool) else None


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """All records of a run, in order; lines that cannot be read are left out with a warning. InputError when the file cannot be."""
    path = Path(workdir) / METRICS
    try:
        records, unreadable = _lines(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected a readable file") from None
    if unreadable:
        warn_once(
            f"{path}: {plural(len(unreadable), 'line')} cannot be read and {'is' if len(unreadable) == 1 else 'are'} left out"
        )
    return [record for _, record in records]
