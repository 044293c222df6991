"""Strict, lazy reading of safetensors directories: everything is checked at the door, tensors are read one at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy, in which half of all checkpoints are stored
import numpy as np
from safetensors import SafetensorError, safe_open

from sysout_jax.config import ModelConfig
from sysout_jax.convert.names import BASE_PREFIX, BUFFERS, Stored, stored_names
from sysout_jax.errors import InputError
from sysout_jax.weights import expected_shapes, nest

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

#: Stored number formats that are plain weights, and the dtype to keep them in.
DTYPES = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class SafetensorsSource:
    """Weights of one model in a directory of safetensors files.

    On construction the headers of all files are compared with what the config implies; missing, unexpected and misshapen
    tensors are listed in one InputError. `read` opens a file, copies one tensor after another and closes it again, so that
    no mapped page stays resident.
    """

    def __init__(self, directory: Path, layout: str, config: ModelConfig):
        self._files = _tensor_files(directory)
        self._stored = stored_names(layout, config, list(expected_shapes(config)))
        shapes = _header_shapes(self._files)
        prefix = BASE_PREFIX[layout]
        if shapes and not any(name.startswith(prefix) for name in shapes):
            # a base model saved without its language-model class lacks the prefix
            self._stored = {
                ours: Stored(stored.name.removeprefix(prefix), stored.transposed)
                for ours, stored in self._stored.items()
            }
        _compare(directory, config, self._stored, shapes)

    @property
    def stored_dtype(self) -> str:
        """The dtype that the embedding, and with it practically everything else, is stored in."""
        name = self._stored["embed/embedding"].name
        with safe_open(self._files[name], framework="numpy") as file:
            return DTYPES[file.get_slice(name).get_dtype()]

    def read(self, group: str, dtype: Any) -> dict:
        prefix = group + "/"
        return nest(
            {
                ours.removeprefix(prefix): self._tensor(stored, dtype)
                for ours, stored in self._stored.items()
                if ours.startswith(prefix)
            }
        )

    def _tensor(self, stored: Stored, dtype: Any) -> np.ndarray:
        with safe_open(self._files[stored.name], framework="numpy") as file:
            tensor = file.get_tensor(stored.name)
        # cast and transposition in one copy: at most one tensor is held beyond what is returned
        return (tensor.T if stored.transposed else tensor).astype(dtype, "C", copy=False)


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
            f"{index}: names tensors that no file holds: {_some(absent)}; download the files again"
        )
    return held


def _header_shapes(files: dict[str, Path]) -> dict[str, tuple[int, ...]]:
    shapes, packed = {}, []
    for path in set(files.values()):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  safe_open is no mapping
                header = file.get_slice(name)
                shapes[name] = tuple(header.get_shape())
                if header.get_dtype() not in DTYPES and not BUFFERS.search(name):
                    packed.append(f"{name} is {header.get_dtype()}")
    if packed:
        raise InputError(
            f"{path.parent}: not stored as {', '.join(DTYPES)}: {_some(sorted(packed))}; "
            "quantised weights are not read, use the original model"
        )
    return shapes


def _compare(directory: Path, config: ModelConfig, stored: dict[str, Stored], shapes: dict) -> None:
    """Hold the headers against the config, both ways."""
    wanted = {s.name for s in stored.values()}
    missing = sorted(wanted - set(shapes))
    unexpected = [
        name
        for name in sorted(set(shapes) - wanted)
        if not BUFFERS.search(name) and not (config.tied_embeddings and name == "lm_head.weight")
    ]
    misshapen = []
    for ours, shape in expected_shapes(config).items():
        name, transposed = stored[ours].name, stored[ours].transposed
        want = shape[::-1] if transposed else shape
        if name in shapes and shapes[name] != want:
            misshapen.append(f"{name} is {shapes[name]}, the config implies {want}")
    problems = [
        f"{title}: {_some(names)}"
        for title, names in (
            ("missing tensors", missing),
            ("unexpected tensors", unexpected),
            ("wrong shapes", misshapen),
        )
        if names
    ]
    if problems:
        raise InputError(f"{directory}: {'; '.join(problems)}; was it saved from another model?")


def _some(names: list[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
