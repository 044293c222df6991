"""The checkpoints of a training run as they lie on disk: which are whole, what is written beside the values, and how a reader keeps one from being removed.

`<run>/checkpoints/<step>/` holds one Orbax directory per parameter group and for the optimiser, a record, and a seal (`sysout_jax.storage.seal`).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from sysout_jax.checks import shown
from sysout_jax.storage import seal
from sysout_jax.storage.held import Held
from sysout_jax.storage.seal import Damaged, check_seal

RUN = "checkpoints"
RECORD = "record"  # JSON, see `sysout_jax.training.checkpoints`
_RECORD_FILE = f"{RECORD}/metadata"  # as Orbax calls it
REMOVED = ".removed"  # what a killed run was removing
UNREADABLE = ".unreadable"  # damaged, and moved aside
_UNSEALED = "data/metadata"  # checkpoints had this and no seal before there were checksums
_STEP = re.compile(r"0|[1-9][0-9]*")


def steps(checkpoints: Path) -> list[int]:
    """Everything that is named like a checkpoint, whole or not, oldest first."""
    try:
        names = os.listdir(checkpoints)
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if _STEP.fullmatch(name))


def check_whole(checkpoint: Path, contents: bool = False) -> None:
    """Damaged when parts of a checkpoint are missing or are not what was written, or when its name is that of another step.

    Large files are read with `contents` only.
    """
    if _is_unsealed(checkpoint):
        return
    check_seal(checkpoint, contents, always=[_RECORD_FILE])
    step = read_record(checkpoint).get("step")  # older ones do not tell
    if step is not None and _STEP.fullmatch(checkpoint.name) and checkpoint.name != str(step):
        raise Damaged(f"it is that of step {shown(step)}")


def whole_steps(checkpoints: Path) -> list[int]:
    """Steps of the checkpoints that are whole and may be read, oldest first."""
    return [step for step in steps(checkpoints) if _is_whole(checkpoints / str(step))]


def latest_whole(checkpoints: Path) -> tuple[Path | None, list[str]]:
    """The latest whole checkpoint, and what is wrong with those behind it, a line each."""
    wrong: list[str] = []
    for step in reversed(steps(checkpoints)):
        checkpoint = checkpoints / str(step)
        try:
            check_whole(checkpoint)
            return checkpoint, wrong
        except Damaged as damage:
            if not os.path.lexists(checkpoint):  # the run removed it, and has another
                return latest_whole(checkpoints)
            wrong.append(f"{checkpoint}: is not whole ({damage})")
    return None, wrong


def read_record(checkpoint: Path) -> dict[str, Any]:
    """What was written beside the values of a whole checkpoint; only its `position` where it is older than checksums."""
    if _is_unsealed(checkpoint):
        return {"position": json.loads((checkpoint / _UNSEALED).read_bytes())}
    return json.loads((checkpoint / _RECORD_FILE).read_bytes())


def hold(checkpoint: Path) -> Held | None:
    """As long as the result lives, the run removes the checkpoint not. None where nothing can be locked.

    Raises FileNotFoundError when the checkpoint is not there, or is being removed.
    """
    if _is_unsealed(checkpoint):
        return None
    held = Held(os.open(checkpoint / seal.FILE, os.O_RDONLY))
    try:
        fcntl.flock(held.descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FileNotFoundError(f"{checkpoint}: is being removed") from None
    except OSError:  # a file system without locks
        return None
    there, locked = os.stat(checkpoint / seal.FILE), os.fstat(held.descriptor)
    if not os.path.samestat(there, locked):
        raise FileNotFoundError(f"{checkpoint}: was removed")
    return held


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint that no other process holds. It vanishes in one step."""
    gone = checkpoint.with_name(checkpoint.name + REMOVED)
    if _is_unsealed(checkpoint):
        checkpoint.rename(gone)
    else:
        lock = Held(os.open(checkpoint / seal.FILE, os.O_RDWR))
        try:
            fcntl.flock(lock.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:  # a file system without locks
            pass
        checkpoint.rename(gone)
    shutil.rmtree(gone)


def move_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint to a name that nothing reads; what has that name already stays."""
    aside = checkpoint.with_name(checkpoint.name + UNREADABLE)
    number = 1
    while os.path.lexists(aside):
        number += 1
        aside = checkpoint.with_name(f"{checkpoint.name}{UNREADABLE}.{number}")
    checkpoint.rename(aside)
    return aside


def _is_whole(checkpoint: Path) -> bool:
    try:
        check_whole(checkpoint)
    except (Damaged, OSError):
        return False
    return True


def _is_unsealed(checkpoint: Path) -> bool:
    """Whether it was written before checkpoints were sealed: nothing can be said about it."""
    return not (checkpoint / seal.FILE).exists() and (checkpoint / _UNSEALED).is_file()
