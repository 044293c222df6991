"""The directory of a run: whose it is, who works in it, and what makes it a checkpoint for every analysis."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import jax

from sysout_jax.checkpoints.checkpoint import write_config
from sysout_jax.checkpoints.run_checkpoints import RUN, steps
from sysout_jax.data import tokenizers
from sysout_jax.data.token_files import read_meta
from sysout_jax.errors import AtWork, InputError, RunError
from sysout_jax.storage.held import check_name
from sysout_jax.storage.serialise import read_json_object
from sysout_jax.storage.staging import write_file
from sysout_jax.storage.workspaces import is_workspace
from sysout_jax.training.config import TrainConfig, differences, from_dict, to_dict
from sysout_jax.training.metrics_file import METRICS, read_metrics

CONFIG = "train.json"
LOCK = ".lock"


def check(config: TrainConfig, workdir: Path) -> None:
    """InputError when the workdir is another config's, or no run's, or holds something else under the name of one of a run's parts.

    Nothing is written.
    """
    check_name(workdir)
    if os.path.lexists(workdir) and not os.path.isdir(workdir):
        raise InputError(f"{workdir}: is not a directory; name a new one")
    for name in (CONFIG, METRICS, LOCK):
        if os.path.lexists(workdir / name) and not (workdir / name).is_file():
            raise InputError(f"{workdir / name}: is not a file; move it away")
    if os.path.lexists(workdir / RUN) and not (workdir / RUN).is_dir():
        raise InputError(f"{workdir / RUN}: is not a directory; move it away")
    try:
        names = set(os.listdir(workdir)) if os.path.isdir(workdir) else set()
    except OSError as error:
        raise InputError(f"{workdir}: {error.strerror}; name another directory") from None
    if CONFIG in names:
        begun = read_config(workdir)
        changed = differences(begun, config)
        if changed:
            raise InputError(
                f"{workdir}: holds a run of another config ({'; '.join(changed)}); name a new workdir or "
                "take the differences back"
            )
        if METRICS in names and RUN not in names:
            raise InputError(
                f"{workdir / RUN}: is missing, though the run has begun; bring it back, or name a new directory"
            )
        if METRICS in names:
            _check_not_lost(workdir, begun.save_every)
        _check_tokenizer(config.data / tokenizers.FILE, workdir / tokenizers.FILE)
    elif any(name != LOCK and not is_workspace(workdir / name) for name in names):
        raise InputError(f"{workdir}: exists and is no training run; name a new workdir")


def _check_tokenizer(of_data: Path, of_run: Path) -> None:
    """InputError where the data's tokenizer is not the one that the run began with: the weights know only that."""
    if not (of_data.is_file() and of_run.is_file()):
        return
    try:
        same = of_data.read_bytes() == of_run.read_bytes()
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; make it readable") from None
    if not same:
        raise InputError(
            f"{of_data}: is another tokenizer than {of_run}, with which the run began; bring that back, or name a new workdir"
        )


def check_not_beyond(config: TrainConfig, step: int, workdir: Path) -> None:
    """InputError where a run stands beyond the step at which `config` ends: what is there is not what is asked for."""
    if step > config.last_step:
        raise InputError(
            f"{workdir}: is at step {step} and the run would end at step {config.last_step}; ask for at least {step} steps, or name a new workdir"
        )


def check_checkpoint(config: TrainConfig, stored: Mapping[str, Any], checkpoint: Path) -> None:
    """InputError when a checkpoint, with whose values the config `stored` was written, is of a run with another one."""
    if not stored:  # older than that record
        return
    changed = differences(from_dict(dict(stored)), config)
    if changed:
        raise InputError(
            f"{checkpoint}: is of a run with another config ({'; '.join(changed)}); move it away"
        )


@contextmanager
def alone_in(workdir: Path) -> Iterator[None]:
    """No other training works in `workdir` during this block. It is made, and removed again when the block ends without having filled it.

    Raises AtWork when another process is at work there, InputError when it cannot be made.
    """
    if jax.process_index():  # the first process of a run locks for all
        yield
        return
    made = [path for path in (workdir, *workdir.parents) if not os.path.exists(path)]
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / LOCK).open("ab")
    except OSError as error:
        raise InputError(f"{workdir}: {error.strerror}; name another directory") from None
    with lock:  # ends with the process, however it ends
        if not _locked(lock, workdir / LOCK):
            raise AtWork(
                f"{workdir}: another training is at work in it; wait for it or name a new directory"
            )
        try:
            yield
        finally:
            with suppress(OSError):  # somebody else has filled or removed it
                if os.listdir(workdir) == [LOCK]:
                    (workdir / LOCK).unlink()
                    for path in made:
                        path.rmdir()


def _locked(lock: IO, path: Path) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    try:
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    except FileNotFoundError:  # the other training was refused just now, and has removed it
        return False


def claim(config: TrainConfig, workdir: Path) -> None:
    """Make the workdir this config's; InputError as `check` raises it, RunError when it cannot be written."""
    check(config, workdir)
    if jax.process_index():
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # first, so that a run killed between these files is still this config's
        write_file(workdir / CONFIG, (json.dumps(to_dict(config), indent=2) + "\n").encode())
        (workdir / RUN).mkdir(exist_ok=True)
        meta = read_meta(config.data)
        write_config(workdir, config.model, meta.windows.bos_id if meta and meta.windows else None)
        tokenizer = config.data / tokenizers.FILE
        if tokenizer.is_file():
            write_file(workdir / tokenizers.FILE, tokenizer.read_bytes())
    except OSError as error:
        raise RunError(
            f"{workdir}: cannot be written ({error.strerror}); free some space or name another directory"
        ) from None


def _check_not_lost(workdir: Path, save_every: int) -> None:
    """InputError where checkpoints have been there and none is, as where they lay on a mount that is gone: a run from the start would empty the metrics.

    A run writes its second checkpoint when the first one is whole, so beyond that step there is one.
    """
    try:
        if steps(workdir / RUN):
            return
    except OSError:  # whoever reads the checkpoints tells
        return
    last = max((record["step"] for record in read_metrics(workdir)), default=0)
    if last > 2 * save_every:
        raise InputError(
            f"{workdir / RUN}: holds no checkpoint, though the run got to step {last} and saves every {save_every} steps; bring them back, "
            "or name a new directory"
        )


def read_config(workdir: Path) -> TrainConfig:
    """What a run was begun with. InputError when that is not there or cannot be read."""
    path, todo = workdir / CONFIG, "name a new directory"
    fields = read_json_object(path, todo)
    try:
        return from_dict(fields)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{path}: not a readable training config ({error}); {todo}") from None
