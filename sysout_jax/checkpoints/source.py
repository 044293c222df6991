"""Weights that lie in Orbax checkpoints, held against what was written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from sysout_jax.checkpoints.groups import read_group, reason, stored_tree
from sysout_jax.config import ModelConfig
from sysout_jax.errors import InputError
from sysout_jax.printable import printable
from sysout_jax.storage.fingerprint import fingerprints
from sysout_jax.storage.held import Held, PlainDirectory
from sysout_jax.weights import expected_shapes, groups

FLOATS = ("float32", "bfloat16", "float16", "float64")
TODO = "copy the directory again, or convert the model again"


def file_sizes(directory: Path) -> dict[str, int]:
    """Bytes of every file below a directory, under its path from there."""
    return {
        os.path.relpath(os.path.join(folder, file), directory): os.stat(
            os.path.join(folder, file)
        ).st_size
        for folder, _, files in os.walk(directory)
        for file in sorted(files)
    }


class OrbaxSource:
    """Weights that lie in one Orbax directory per group below `params`. Strict like the safetensors reader.

    `written` are checksums of all parameters under their paths: what is read for the first time is held against them, as it is
    stored. `files` are the sizes of all files below `params`, which are looked at now. `held` lives as long as this does.
    Raises InputError, here and in `read`, for what is not there, cannot be read or is not what was written.
    """

    def __init__(
        self,
        params: Path,
        config: ModelConfig,
        written: Mapping[str, int] | None = None,
        held: Held | None = None,
        files: Mapping[str, int] | None = None,
    ):
        self._path, self._written, self._held = Path(params).absolute(), written, held
        self._checked: set[str] = set()
        if not self._path.is_dir():
            raise InputError(f"{self._path}: no such directory; {TODO}")
        if files is not None:
            _check_files(self._path, files)
        layers = sum(1 for path in self._path.iterdir() if path.name.startswith("layer_"))
        if layers < config.num_layers:  # before anything is built for a million layers
            raise InputError(
                f"{self._path}: holds {layers} layers, the config says {config.num_layers}; {TODO}"
            )
        self._plain = PlainDirectory(self._path)
        self._trees = {group: self._metadata(group) for group in groups(config)}
        self._check_shapes(config)

    @property
    def stored_dtype(self) -> str:
        """The dtype that the embedding, and with it practically everything else, is stored in."""
        return jax.tree.leaves(self._tree("embed"))[0].dtype.name

    def read(self, group: str, dtype: Any) -> dict:
        stored = self._restore(group)
        if self._written is not None and group not in self._checked:
            self._check(group, stored)
            self._checked.add(group)
        return _cast(stored, dtype)

    def _tree(self, group: str) -> dict:
        """Shape and dtype of what is stored of a group."""
        return self._trees[group]

    def _metadata(self, group: str) -> dict:
        try:
            return stored_tree(self._plain.path / group)
        except MemoryError:
            raise
        except Exception as error:  # dozens of types: to the user all mean that it cannot be read
            raise self._unreadable(group, error) from None

    def _restore(self, group: str) -> dict:
        try:
            return read_group(self._plain.path / group, self._tree(group))
        except MemoryError:
            raise
        except Exception as error:
            raise self._unreadable(group, error) from None

    def _unreadable(self, group: str, error: Exception) -> InputError:
        return InputError(
            f"{self._path}: {group} cannot be read ({reason(error, self._plain.path, self._path)}); {TODO}"
        )

    def _check_shapes(self, config: ModelConfig) -> None:
        try:
            held = {
                f"{group}/{name}": (tuple(leaf.shape), leaf.dtype.name)
                for group in groups(config)
                for name, leaf in flatten_dict(self._tree(group), sep="/").items()
            }
        except (AttributeError, TypeError) as error:
            raise self._unreadable("what its metadata says", error) from None
        want = expected_shapes(config)
        shapes = {name: shape for name, (shape, _) in held.items()}
        if shapes != want:
            wrong = sorted(set(shapes.items()) ^ set(want.items()))
            raise InputError(
                f"{self._path}: {len(wrong)} parameters differ from what the config implies, first "
                f"{wrong[0][0]} {wrong[0][1]}; {TODO}"
            )
        for name, (_, dtype) in held.items():
            if dtype not in FLOATS:
                raise InputError(
                    f"{self._path}: {name} is stored as {dtype}, expected one of {', '.join(FLOATS)}; {TODO}"
                )

    def _check(self, group: str, stored: dict) -> None:
        assert self._written is not None
        wrong = [
            path
            for path, mark in fingerprints(stored).items()
            if mark != self._written.get(f"{group}/{path}")
        ]
        if wrong:
            raise InputError(
                f"{self._path}: {group}/{wrong[0]} does not hold the numbers that were written "
                f"({len(wrong)} of its group); {TODO}"
            )


def _check_files(params: Path, files: Mapping[str, int]) -> None:
    """Hold what lies below `params` against the sizes that were written."""
    try:
        there = file_sizes(params)
    except OSError as error:
        raise InputError(f"{params}: cannot be read ({error.strerror}); {TODO}") from None
    if there == files:
        return
    problems = []
    missing = sorted(set(files) - set(there))
    added = sorted(set(there) - set(files))
    resized = sorted(name for name in files if name in there and files[name] != there[name])
    if missing:
        problems.append(f"{len(missing)} files are missing, first {missing[0]}")
    if resized:
        name = resized[0]
        problems.append(
            f"{len(resized)} files have another size, first {name} of {there[name]:,} bytes, written were {files[name]:,}"
        )
    if added:
        problems.append(f"{len(added)} files were added, first {added[0]}: remove them")
    raise InputError(f"{params}: {printable('; '.join(problems))}; {TODO}")


def _cast(tree: dict, dtype: Any) -> dict:
    """The tree in `dtype`, leaf by leaf in place: never the whole of it twice."""
    for name, value in tree.items():
        tree[name] = (
            _cast(value, dtype) if isinstance(value, dict) else value.astype(dtype, copy=False)
        )
    return tree
