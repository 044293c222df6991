"""Streaming safetensors: sizes are known beforehand, arrays come one at a time and are never held together."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from sysout_jax.checkpoints.formats.safetensors import DTYPES, INDEX, SINGLE
from sysout_jax.families.forms import Shape


class Announced(NamedTuple):
    """A tensor that will be written."""

    name: str
    shape: Shape


def write_safetensors(
    directory: Path,
    tensors: list[Announced],
    arrays: Iterable[np.ndarray],
    dtype: np.dtype,
    shard_bytes: int,
) -> None:
    """Write the announced tensors, whose `arrays` come in the same order, to one file or to several with an index.

    No file exceeds `shard_bytes` unless a single tensor does.
    """
    shards = _shards(tensors, dtype, shard_bytes)
    count = len(shards)
    names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    files = dict(zip(names if count > 1 else [SINGLE], shards, strict=True))
    coming = iter(arrays)
    for name, shard in files.items():
        with open(directory / name, "wb") as file:
            _write_header(file, shard, dtype)
            for tensor in shard:
                array = next(coming)
                assert array.shape == tensor.shape and array.dtype == dtype, tensor
                # unlike tofile, this says why when it fails
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    if count > 1:
        index = {
            "metadata": {"total_size": sum(_nbytes(tensor, dtype) for tensor in tensors)},
            "weight_map": {tensor.name: name for name, shard in files.items() for tensor in shard},
        }
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _nbytes(tensor: Announced, dtype: np.dtype) -> int:
    return math.prod(tensor.shape) * dtype.itemsize


def _shards(tensors: list[Announced], dtype: np.dtype, limit: int) -> list[list[Announced]]:
    shards: list[list[Announced]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + _nbytes(tensor, dtype) > limit:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += _nbytes(tensor, dtype)
    return shards


def _write_header(file: IO[bytes], tensors: list[Announced], dtype: np.dtype) -> None:
    """The length of the header, then the header: JSON, padded to eight bytes."""
    kind = next(theirs for theirs, ours in DTYPES.items() if ours == dtype.name)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers insists on it
    start = 0
    for tensor in tensors:
        end = start + _nbytes(tensor, dtype)
        header[tensor.name] = {"dtype": kind, "shape": tensor.shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
