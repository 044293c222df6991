"""Strict, lazy reading of safetensors directories: everything is checked at the door, tensors are read one at a time."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from sysout_jax.checkpoints.formats.foreign import ForeignSource, Held
from sysout_jax.checks import shown
from sysout_jax.config import ModelConfig
from sysout_jax.errors import InputError, RunError
from sysout_jax.families import LAYOUTS
from sysout_jax.printable import printable, printable_name, some
from sysout_jax.storage.files import check_readable
from sysout_jax.storage.serialise import read_json_object

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CHUNK = 2**22  # numbers that are compared at once
AGAIN = "copy or download it again"

#: Of a header, which names the tensors of one file, and of an index: each tensor costs time. The largest public index has 9 MiB.
MOST_HEADER_BYTES, MOST_INDEX_BYTES = 16 << 20, 32 << 20

#: numpy's names for the format's.
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class _Lies(NamedTuple):
    """Where a tensor lies, and what its file says about it."""

    file: Path
    held: Held


def _same(x: np.ndarray, y: np.ndarray) -> bool:
    """Bits first, which is fast, then numbers, which may be stored in two formats."""
    if x.dtype == y.dtype and np.array_equal(x.view(np.uint8), y.view(np.uint8)):
        return True
    return np.array_equal(x.astype(np.float64), y.astype(np.float64), equal_nan=True)


class SafetensorsSource(ForeignSource):
    """Weights of one model in a directory of safetensors files.

    `read` opens a file, copies one tensor after another and closes it again, so that no mapped page stays resident.
    """

    def __init__(self, directory: Path, layout: str, config: ModelConfig):
        self._lies = _tensors(directory)
        held = {name: lies.held for name, lies in self._lies.items()}
        there = LAYOUTS[layout]
        self._head = there.names["lm_head/kernel"].name
        files = {lies.file for lies in self._lies.values()}
        super().__init__(directory, there.names, config, held, there.base_prefix, files)

    def has_other_head(self) -> bool:
        """Whether a head is stored that differs from the embedding. Both are read where both are there, up to the first difference."""
        embed, head = self._stored["embed/embedding"].name, self._head
        return head in self._lies and not self._equal(embed, head)

    def _equal(self, name: str, other: str) -> bool:
        """Whether two tensors hold the same numbers."""
        shape = self._lies[name].held.shape
        if self._lies[other].held.shape != shape:
            return False
        step = max(1, CHUNK // math.prod(shape[1:]))
        ends = [(row, min(row + step, shape[0])) for row in range(0, shape[0], step)]
        with self._opened(name) as a, self._opened(other) as b:
            x, y = a.get_slice(name), b.get_slice(other)
            return all(_same(x[start:end], y[start:end]) for start, end in ends)

    def _tensor(self, name: str) -> np.ndarray:
        with self._opened(name) as file:
            return file.get_tensor(name)

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[Any]:
        """The file of a tensor."""
        path = self._lies[name].file
        try:
            with safe_open(path, framework="numpy") as file:
                yield file
        except (SafetensorError, OSError) as error:  # it could be read when the model was opened
            raise RunError(
                f"{path}: can no longer be read ({printable(str(error))}); {AGAIN}"
            ) from None


def _tensors(directory: Path) -> dict[str, _Lies]:
    """Every tensor of the directory: of its one file, or in the file that the index names for it. Where there are both, transformers reads the one file."""
    single = directory / SINGLE
    if not single.is_file() and os.path.lexists(directory / INDEX):
        named = _read_index(directory)
        tensors = _headers(dict.fromkeys(named.values()))
        absent = sorted(set(named) - set(tensors))
        if absent:
            raise InputError(
                f"{directory / INDEX}: names tensors that no file holds: {some(absent)}; download the files again"
            )
        elsewhere = [
            f"{printable_name(name)} in {path.name}"
            for name, path in sorted(named.items())
            if tensors[name].file != path
        ]
        if elsewhere:
            raise InputError(
                f"{directory / INDEX}: names tensors in files that do not hold them: {some(elsewhere)}; "
                "download the files again"
            )
        return tensors
    if not single.is_file():
        inside = some(sorted(p.name for p in directory.iterdir())) or "nothing"
        raise InputError(
            f"{directory}: no {SINGLE} and no {INDEX} (found: {inside}); save the model as safetensors "
            "(save_pretrained does), pickled .bin weights are not read"
        )
    return _headers([single])


def _read_index(directory: Path) -> dict[str, Path]:
    """The file of each tensor that the index names; all of them lie in this directory."""
    index = check_readable(directory / INDEX, AGAIN, MOST_INDEX_BYTES)
    weight_map = read_json_object(index, "download it again").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(
            f"{index}: weight_map is {shown(weight_map)}; expected tensor names and their files, download it again"
        )
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(
                f"{index}: weight_map names {shown(name)}; expected files in the same directory, download it again"
            )
    missing = sorted({name for name in weight_map.values() if not os.path.isfile(directory / name)})
    if missing:
        raise InputError(
            f"{index}: names {len(missing)} file(s) that are not there: {some(missing)}; finish the download"
        )
    return {name: directory / file for name, file in weight_map.items()}


def _headers(paths: Iterable[Path]) -> dict[str, _Lies]:
    """The tensors of these files; InputError when one is damaged, or two hold the same tensor."""
    lies: dict[str, _Lies] = {}
    for path in paths:
        check_readable(path, AGAIN)
        with open(path, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
        if MOST_HEADER_BYTES < length < path.stat().st_size:
            raise InputError(
                f"{path}: a header of {length:,} bytes, expected at most {MOST_HEADER_BYTES:,}; {AGAIN}"
            )
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118  safe_open is no mapping
                    if name in lies:
                        raise InputError(
                            f"{path}: holds {printable_name(name)}, and so does {lies[name].file.name}; "
                            "expected every tensor once, download the files again"
                        )
                    header = file.get_slice(name)
                    dtype = header.get_dtype()
                    lies[name] = _Lies(
                        path, Held(tuple(header.get_shape()), DTYPES.get(dtype, dtype))
                    )
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path}: not a whole safetensors file ({printable(str(error))}); {AGAIN}"
            ) from None
    return lies
