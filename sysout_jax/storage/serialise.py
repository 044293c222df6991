"""Reports as plain JSON-ready values, and JSON files that somebody else may have written."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.errors import InputError
from sysout_jax.printable import printable

MOST_JSON_BYTES = 1 << 28  # the largest index of a public checkpoint has a few MiB
MOST_DIGITS = 300  # of a whole number: more do not fit into a float


def plain(value: Any) -> Any:
    """Dataclasses, arrays and tuples to dicts, lists and numbers; NaN and inf become None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text that somebody else may have written. ValueError for what is none and for whole numbers that are no float."""
    return json.loads(text, parse_int=_whole_number)


def _whole_number(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits, at most {MOST_DIGITS} are read")
    return int(digits)


def read_json_object(path: Path, todo: str) -> dict[str, Any]:
    """The JSON object in a file, whoever wrote it.

    Raises InputError, one line that ends in `todo`, for a file that is missing, no regular file, larger than `MOST_JSON_BYTES`, not
    UTF-8, not JSON, nested too deeply, or another kind of value.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise ValueError("no such file" if not path.exists() else "not a file")
        if path.stat().st_size > MOST_JSON_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes, at most {MOST_JSON_BYTES:,} are read")
        fields = parse_json(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise InputError(f"{path}: not readable JSON (nested too deeply); {todo}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable JSON ({printable(str(error))}); {todo}") from None
    if not isinstance(fields, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(fields).__name__}; {todo}")
    return fields
