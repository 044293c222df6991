"""Strict, lazy reading of safetensors directories: everything is checked at the door, tensors are read one at a time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from sysout_jax.config import ModelConfig
from sysout_jax.convert.foreign import ForeignSource, Held, some
from sysout_jax.convert.names import BASE_PREFIX
from sysout_jax.errors import InputError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

#: numpy's names for the format's.
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class SafetensorsSource(ForeignSource):
    """Weights of one model in a directory of safetensors files.

    `read` opens a file, copies one tensor after another and closes it again, so that no mapped page stays resident.
    """

    def __init__(self, directory: Path, layout: str, config: ModelConfig):
        self._files = _tensor_files(directory)
        super().__init__(directory, layout, config, _headers(self._files), BASE_PREFIX[layout])

    def _tensor(self, name: str) -> np.ndarray:
        with safe_open(self._files[name], framework="numpy") as file:
            return file.get_tensor(name)


def _tensor_files(directory: Path) -> dict[str, Path]:
    """Which file holds each tensor."""
    index = directory / INDEX
    if index.exists():
        try:
            weight_map = json.loads(index.read_text())["weight_map"]
            if not all(isinstance(name, str) for name in weight_map.values()):
                raise TypeError("weight_map holds something other than file names")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{index}: not a safetensors index ({error!r}); download it again"
            ) from None
        missing = sorted({name for name in weight_map.values() if not (directory / name).is_file()})
        if missing:
            raise InputError(
                f"{index}: names {len(missing)} file(s) that are not there: {', '.join(missing)}; finish the download"
            )
        files = {name: directory / name for name in weight_map.values()}
    else:
        files = {SINGLE: directory / SINGLE}
        if not files[SINGLE].is_file():
            found = ", ".join(sorted(p.name for p in directory.iterdir())) or "nothing"
            raise InputError(
                f"{directory}: no {SINGLE} and no {INDEX} (found: {found}); save the model as safetensors "
                "(save_pretrained does), pickled .bin weights are not read"
            )
        weight_map = {}
    held: dict[str, Path] = {}
    for path in files.values():
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118  safe_open is no mapping
                    held[name] = path
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path}: not a whole safetensors file ({error}); copy or download it again"
            ) from None
    absent = sorted(set(weight_map) - set(held))
    if absent:
        raise InputError(
            f"{index}: names tensors that no file holds: {some(absent)}; download the files again"
        )
    return held


def _headers(files: dict[str, Path]) -> dict[str, Held]:
    held = {}
    for path in set(files.values()):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  safe_open is no mapping
                header = file.get_slice(name)
                dtype = header.get_dtype()
                held[name] = Held(tuple(header.get_shape()), DTYPES.get(dtype, dtype))
    return held
