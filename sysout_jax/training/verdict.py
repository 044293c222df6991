"""Why a checkpoint was not read: because it is damaged, which its own files must prove, or for any other reason, which says nothing about it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from sysout_jax.checkpoints.run_checkpoints import check_whole
from sysout_jax.errors import RunError
from sysout_jax.printable import printable
from sysout_jax.storage.seal import Damaged

T = TypeVar("T")
FINE, DAMAGED, NOT_READ = range(3)


def attempt(path: Path, read: Callable[[], T]) -> tuple[T | None, Damaged | RunError | None]:
    """What `read` returns of the checkpoint at `path`, or why it does not. All processes come to the same verdict, the worst of theirs."""
    result, problem = None, None
    try:
        result = read()
    except Exception as error:
        problem = _explain(path, error)
    problem = _worst(path, problem)
    return (None if problem else result), problem


def reason(error: Exception) -> str:
    """What went wrong, short: the operating system's words where it was asked."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if by_tensorstore := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(by_tensorstore[1]))
    return printable(f"{type(error).__name__}: {error}", 300)


def _explain(path: Path, error: Exception) -> Damaged | RunError:
    if isinstance(error, RunError):
        return error
    damage = error if isinstance(error, Damaged) else None
    if damage is None:
        try:
            check_whole(path, contents=True)
        except Damaged as proven:
            damage = proven
        except OSError as other:
            error = other
    if damage is not None and os.path.lexists(path):
        return damage
    return RunError(
        f"{path}: cannot be read ({reason(error)}), and not because its files are damaged; nothing "
        "was changed: see to memory, permissions, disk and versions, or move it away to go on from the checkpoint before it"
    )


def _worst(path: Path, problem: Damaged | RunError | None) -> Damaged | RunError | None:
    if jax.process_count() == 1:
        return problem
    mine = FINE if problem is None else DAMAGED if isinstance(problem, Damaged) else NOT_READ
    worst = int(np.max(process_allgather(np.asarray(mine, np.int32))))
    if worst == mine:
        return problem
    if worst == DAMAGED:
        return Damaged("another process of the run found it damaged")
    return RunError(f"{path}: another process of the run cannot read it; nothing was changed")
