"""The strict driver behind every foreign format: hold what a file says against what the config implies, then read by the table."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy, in which half of all checkpoints are stored
import numpy as np

from sysout_jax.checkpoints.formats.layout import joined, laid_out
from sysout_jax.checkpoints.formats.names import BUFFERS, stored_names
from sysout_jax.config import ModelConfig
from sysout_jax.errors import InputError, RunError
from sysout_jax.families.forms import Shape, Stored
from sysout_jax.printable import some
from sysout_jax.storage.files import mark_of
from sysout_jax.weights import expected_shapes, nest

#: Number formats that are plain weights, and the dtype to keep them in.
KEPT_AS = {
    "float64": "float32",
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
}


class Held(NamedTuple):
    """What a file says about one tensor."""

    shape: Shape
    dtype: str


class ForeignSource:
    """Weights in somebody else's names and forms; subclasses say how one tensor is read.

    `names` are our parameter paths and their tensors. On construction the headers are compared with what the config implies; missing, unexpected, misshapen and quantised
    tensors are listed in one InputError. `read` copies one tensor after another; RunError when one of `files` (default: `path`) has changed
    since or cannot be read, so that no two layers are of different models.
    """

    def __init__(
        self,
        path: Path,
        names: Mapping[str, Stored],
        config: ModelConfig,
        held: Mapping[str, Held],
        base_prefix: str = "",
        files: Iterable[Path] | None = None,
    ):
        self._marks = {file: mark_of(file) for file in files or [path]}
        if config.num_layers > len(held):  # before anything is built for a million layers
            raise InputError(
                f"{path}: the config implies {config.num_layers} layers, the file holds {len(held)} tensors in all; "
                "was it saved from another model?"
            )
        self.path, self._config = path, config
        self._shapes = shapes = expected_shapes(config)
        self._stored = stored_names(names, shapes)
        if base_prefix and held and not any(name.startswith(base_prefix) for name in held):
            # a base model saved without its language-model class lacks the prefix
            self._stored = {
                ours: stored.renamed(lambda name: name.removeprefix(base_prefix))
                for ours, stored in self._stored.items()
            }
        self._stored = {
            ours: stored.otherwise
            if stored.name not in held
            and stored.otherwise
            and stored.otherwise.name.replace("{e}", "0") in held
            else stored
            for ours, stored in self._stored.items()
        }
        head = names.get("lm_head/kernel")
        spare = {head.name} if head and config.tied_embeddings else set()
        _compare(path, config, self._stored, shapes, held, spare)
        self._embedding_dtype = held[self._stored["embed/embedding"].name].dtype

    @property
    def stored_dtype(self) -> str:
        """The dtype that the embedding, and with it practically everything else, is stored in."""
        return KEPT_AS[self._embedding_dtype]

    def read(self, group: str, dtype: Any) -> dict:
        prefix = group + "/"
        try:
            tensors = {
                # cast and transposition in one copy: at most one tensor is held beyond what is returned
                ours.removeprefix(prefix): self._laid_out(ours, stored, dtype)
                for ours, stored in self._stored.items()
                if ours.startswith(prefix)
            }
        except OSError as error:
            raise RunError(
                f"{self.path}: can no longer be read ({error.strerror}); bring it back and run the command again"
            ) from None
        for file, mark in self._marks.items():
            if mark_of(file) != mark:
                raise RunError(f"{file}: has changed since it was opened; run the command again")
        return nest(tensors)

    def _laid_out(self, ours: str, stored: Stored, dtype: Any) -> np.ndarray:
        names = stored.parts(self._shapes[ours], self._config)
        parts = (stored.form_of(name).ours(self._tensor(name), self._config) for name in names)
        if stored.form.axis is None:
            return laid_out(next(parts), dtype)
        return joined(parts, self._shapes[ours], stored.form.axis, dtype)

    def _tensor(self, name: str) -> np.ndarray:
        """The stored array of that name, as it lies there."""
        raise NotImplementedError


def _compare(
    path: Path,
    config: ModelConfig,
    stored: Mapping[str, Stored],
    shapes: Mapping[str, Shape],
    held: Mapping[str, Held],
    spare: Collection[str],
) -> None:
    """Hold the headers against the config, both ways. What is `spare` may be there or not."""
    packed = sorted(
        f"{name} is {tensor.dtype}"
        for name, tensor in held.items()
        if tensor.dtype not in KEPT_AS and not BUFFERS.search(name)
    )
    if packed:
        raise InputError(
            f"{path}: not stored as {', '.join(KEPT_AS)}: {some(packed)}; "
            "quantised weights are not read, use the original model"
        )
    wanted = {name for ours, s in stored.items() for name in s.parts(shapes[ours], config)}
    unexpected = [
        name
        for name in sorted(set(held) - wanted)
        if not BUFFERS.search(name) and name not in spare
    ]
    misshapen = []
    for ours, shape in shapes.items():
        for name, part in stored[ours].parts(shape, config).items():
            allowed = stored[ours].form_of(name).shapes(part, config)
            if name in held and held[name].shape not in allowed:
                want = " or ".join(map(str, dict.fromkeys(allowed)))
                misshapen.append(f"{name} is {held[name].shape}, the config implies {want}")
    problems = [
        f"{title}: {some(names)}"
        for title, names in (
            ("missing tensors", sorted(wanted - set(held))),
            ("unexpected tensors", unexpected),
            ("wrong shapes", misshapen),
        )
        if names
    ]
    if problems:
        raise InputError(f"{path}: {'; '.join(problems)}; was it saved from another model?")
