"""Checkpoints of a run: written in the background, whole or not at all, the last few and the best by validation kept.

Each is a directory `checkpoints/<step>` whose parameters lie group by group as in a converted model, so that every analysis reads it. Beside
them lie the optimiser's state, a record (step, config, position in the data, what the data is, validation loss, checksums of all values), and
a seal.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from sysout_jax.checkpoints import run_checkpoints as on_disk
from sysout_jax.checkpoints.noise import quiet_orbax
from sysout_jax.checkpoints.run_checkpoints import RECORD, RUN
from sysout_jax.errors import RunError
from sysout_jax.notices import warn
from sysout_jax.provenance import versions_and_device
from sysout_jax.storage.fingerprint import fingerprints
from sysout_jax.storage.held import PlainDirectory
from sysout_jax.storage.seal import Damaged
from sysout_jax.training.stored_state import (
    STEP,
    Parts,
    SealingHandler,
    compare,
    items,
    read_back,
    read_state,
    values_by_path,
)
from sysout_jax.training.verdict import attempt, reason

_LEFT_BY_A_KILL = re.compile(
    rf"[0-9]+({re.escape(on_disk.REMOVED)}|{re.escape(ocp.utils.TMP_DIR_SUFFIX)}.*)"
)


class Restored(NamedTuple):
    """State, position in the data, and what the data and the run's config were: empty in checkpoints older than that record."""

    state: dict
    position: dict
    data: dict
    config: dict


class Checkpoints:
    """The checkpoints below `workdir`. All processes of a run call each method alike."""

    def __init__(self, workdir: Path, keep: int):
        self._directory = Path(workdir).absolute() / RUN
        self._keep = keep
        quiet_orbax()
        self._handler = SealingHandler()
        self._checkpointer = ocp.AsyncCheckpointer(self._handler)

    def save(
        self,
        step: int,
        state: dict,
        position: dict,
        val_loss: float,
        data: Mapping | None = None,
        config: Mapping | None = None,
    ) -> None:
        """Start to write the state after `step` steps; RunError when this or an earlier write failed.

        `position` is that of the data, `data` says what the data is, `config` is the run's. The checksums of all values are computed before this returns.
        """
        record = {
            "step": step,
            "config": dict(config or {}),
            "position": position,
            "data": dict(data or {}),
            "val_loss": val_loss,
            "fingerprints": fingerprints(values_by_path(state)),
            "versions": versions_and_device()["versions"],
        }
        args: dict[str, Any] = {n: ocp.args.StandardSave(tree) for n, tree in items(state).items()}
        args[RECORD] = ocp.args.JsonSave(record)
        try:
            self._checkpointer.wait_until_finished()
            self._tidy()
            self._checkpointer.save(self._seen_by_orbax(step), args=Parts(**args))
        except Exception as error:
            raise self._failed(error) from None

    def wait(self) -> None:
        """Until nothing is being written; RunError when a write failed."""
        try:
            self._checkpointer.wait_until_finished()
            self._tidy()
        except Exception as error:
            raise self._failed(error) from None

    def confirm(self, step: int) -> None:
        """Read a checkpoint that was written from disk; RunError when it is not what was written."""
        path = self._directory / str(step)

        def read() -> None:
            on_disk.check_whole(path)
            read_back(self._seen_by_orbax(step), on_disk.read_record(path)["fingerprints"])

        _, problem = attempt(path, read)
        if problem:
            raise RunError(
                f"{path}: was written and cannot be read back ({problem}); check the disk and run the same command again "
                "to go on from the checkpoint before it"
            )

    def steps(self) -> list[int]:
        """Whole checkpoints, oldest first; none where they cannot be looked at."""
        try:
            return on_disk.whole_steps(self._directory)
        except OSError:
            return []

    def restore(self, shapes: dict) -> Restored | None:
        """The latest checkpoint that is not damaged; None without any.

        `shapes` is the state as jax.ShapeDtypeStruct with shardings. Damaged checkpoints behind the one restored are moved aside, each with
        a warning. RunError, and nothing is touched, when a checkpoint cannot be read for another reason than damage, and when all are damaged.
        """
        damaged: dict[int, Damaged] = {}
        for step in reversed(self._all_steps()):
            path = self._directory / str(step)
            restored, problem = attempt(path, partial(self._read, step, shapes))
            if restored:
                _, problem = attempt(path, partial(_verify, *restored))
            if isinstance(problem, Damaged):
                damaged[step] = problem
            elif problem:
                raise problem
            else:
                assert restored is not None
                self._move_aside(damaged, step)
                state, record = restored
                state[STEP] = jax.device_put(np.asarray(step, np.int32), shapes[STEP].sharding)
                return Restored(
                    state, record["position"], record.get("data", {}), record.get("config", {})
                )
        if damaged:
            latest = max(damaged)
            others = f", and so are {len(damaged) - 1} before it" if len(damaged) > 1 else ""
            raise RunError(
                f"{self._directory}: holds no checkpoint that can be read: {latest} is damaged ({damaged[latest]}){others}; nothing "
                "was changed: bring one back, or name a new directory to start again"
            )
        return None

    def should_stop(self, step: int) -> bool:
        """Whether the cluster is about to take this machine; all processes of a run get the same answer at the same step."""
        return ocp.utils.reached_preemption(step)

    def close(self) -> None:
        with suppress(
            Exception
        ):  # of a write that failed: `wait` told, or the run ends for another reason
            self._checkpointer.close()

    @cached_property
    def _home(self) -> PlainDirectory:
        return PlainDirectory(self._directory.parent)

    def _seen_by_orbax(self, step: int) -> epath.Path:
        return epath.Path(self._home.path / RUN / str(step))

    def _all_steps(self) -> list[int]:
        try:
            return on_disk.steps(self._directory)
        except OSError as error:
            raise RunError(
                f"{self._directory}: cannot be read ({error.strerror}); nothing was changed: see to permissions and disk"
            ) from None

    def _read(self, step: int, shapes: dict) -> tuple[dict, dict]:
        path = self._directory / str(step)
        on_disk.check_whole(path)
        record = on_disk.read_record(path)
        wanted = values_by_path(shapes)
        if other := set(record.get("fingerprints", wanted)) ^ set(wanted):
            raise RunError(
                f"{path}: holds other values than this version trains, first {min(other)}; go on with the versions that wrote it: "
                f"{record['versions']}"
            )
        return read_state(self._handler, self._seen_by_orbax(step), shapes), record

    def _move_aside(self, damaged: Mapping[int, Damaged], restored: int) -> None:
        if jax.process_index():
            return
        for step, damage in sorted(damaged.items()):
            aside = on_disk.move_aside(self._directory / str(step))
            line = (
                f"{self._directory}: the checkpoint of step {step} is damaged ({damage}) and was moved aside, to {aside.name}; "
                f"going on from step {restored}"
            )
            warn(line)

    def _tidy(self) -> None:
        """Remove what a killed run left half-written or half-removed, and whole checkpoints that are neither late nor best."""
        if jax.process_index():
            return
        for path in self._directory.iterdir():
            if _LEFT_BY_A_KILL.fullmatch(path.name) and not path.is_symlink():
                shutil.rmtree(path)
        whole = self.steps()
        records = {step: on_disk.read_record(self._directory / str(step)) for step in whole}
        judged = [step for step in whole if "val_loss" in records[step]]
        best = min(judged, key=lambda step: records[step]["val_loss"], default=None)
        for step in whole[: -self._keep]:
            if step != best:
                on_disk.remove(self._directory / str(step))

    def _failed(self, error: Exception) -> RunError:
        whole = self.steps()
        kept = f"checkpoints are whole up to step {whole[-1]}" if whole else "none is whole yet"
        return RunError(
            f"{self._directory}: a checkpoint could not be written ({reason(error)}); {kept}. See to the disk, free "
            "some space and run the same command again to go on from there"
        )


def _verify(state: dict, record: dict) -> None:
    """Damaged when values are others than those that were saved."""
    if "fingerprints" in record:
        compare(fingerprints(values_by_path(state)), record["fingerprints"])
