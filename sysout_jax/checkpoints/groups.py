"""One parameter group as an Orbax checkpoint: written, and read as it is stored, with one error where Orbax prints many."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from sysout_jax.checkpoints.noise import quiet_orbax
from sysout_jax.printable import printable
from sysout_jax.storage.fingerprint import fingerprints
from sysout_jax.storage.held import DESCRIPTORS, Held, PlainDirectory

_interrupted: list[
    Held
] = []  # numbers that must not become other directories' while threads use them


def write_group(params: Path, group: str, tree: dict) -> dict[str, int]:
    """Write one group below the existing directory `params`; returns its checksums, their paths beginning with the group.

    OSError when it cannot be written; by then nothing is being written any more.
    """
    quiet_orbax()
    marks = {f"{group}/{path}": mark for path, mark in fingerprints(tree).items()}
    handler = _Arrays(deepcopy_host_arrays=False)
    # By descriptor: an interrupt leaves threads that go on writing, and under its name they would make the removed directory again.
    held = Held(os.open(params, os.O_RDONLY | os.O_DIRECTORY))
    path = DESCRIPTORS / str(held.descriptor)
    if not path.is_dir():
        path = PlainDirectory(params).path
    try:
        with ocp.Checkpointer(_tree_handler(handler)) as checkpointer:
            checkpointer.save(path / group, jax.tree.map(np.asarray, tree))
    except MemoryError:
        raise
    except Exception as error:  # dozens of types: to the user all mean that it was not written
        handler.wait()
        raise OSError(f"{group}: {reason(error, path, params)}") from None
    except BaseException:
        _interrupted.append(held)
        raise
    return marks


def stored_tree(path: Path) -> dict:
    """Shape and dtype of what is stored of the group at `path`. Whatever Orbax raises."""
    quiet_orbax()
    return _tree_handler().metadata(epath.Path(path)).tree


def read_group(path: Path, tree: dict) -> dict:
    """The arrays of the group at `path`, as they are stored; `tree` is that of `stored_tree`. Whatever Orbax raises."""
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    with ocp.Checkpointer(_tree_handler()) as checkpointer:
        return checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=arguments))


def reason(error: Exception, path: Path, shown: Path) -> str:
    """What a library said about a file below `path`, `shown` in its place and without the specification that TensorStore repeats."""
    said = str(error).split(" [tensorstore_spec")[0]
    return printable(said.replace(str(path), str(shown)), 300)


async def _all(calls: Iterable[Awaitable[Sequence[Any]]]) -> list[Any]:
    """What calls for one array each return, when the last of them has ended. Orbax leaves after the first error and closes the loop
    of the others, whose threads then print tracebacks, or go on writing into what is being removed."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [
        value for result in results if not isinstance(result, BaseException) for value in result
    ]


class _Separately:
    """A handler of arrays that takes each by itself."""

    async def metadata(self, infos: Any) -> Any:
        read = super().metadata  # type: ignore[misc]
        return await _all(read([info]) for info in infos)

    async def deserialize(self, infos: Any, args: Any = None) -> Any:
        read = super().deserialize  # type: ignore[misc]
        args = args or [ocp.RestoreArgs()] * len(infos)
        return await _all(read([info], [arg]) for info, arg in zip(infos, args, strict=True))


class _Arrays(_Separately, ocp.type_handlers.NumpyHandler):
    """And remembers what it has begun to write."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self._begun: list[Any] = []

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> Any:
        args = args or [ocp.SaveArgs()] * len(values)
        for value, info, arg in zip(values, infos, args, strict=True):
            self._begun += await super().serialize([value], [info], [arg])
        return self._begun

    def wait(self) -> None:
        """Until none of the writes goes on."""
        for write in self._begun:
            with suppress(Exception):
                write.result()


class _DeviceArrays(_Separately, ocp.type_handlers.ArrayHandler):
    """As which a training run stored what is read here."""


def _tree_handler(arrays: _Arrays | None = None) -> ocp.PyTreeCheckpointHandler:
    registry = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, arrays or _Arrays()), (jax.Array, _DeviceArrays())
    )
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
