"""Checkpoints of a run: written in the background, whole or not at all, the last few and the best by validation kept.

Each is a directory `checkpoints/<step>` whose parameters lie group by group as in a converted model, so that every analysis reads it.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from sysout_jax.checkpoint import RUN
from sysout_jax.errors import RunError

OPTIMIZER, DATA, STEP = "optimizer", "data", "step"
LOSS = "val_loss"

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints below `workdir`. Items of each: one per parameter group, the optimiser's state, the data's position."""

    def __init__(self, workdir: Path, keep: int):
        self._directory = Path(workdir).absolute() / RUN
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                cleanup_tmp_directories=True,
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(keep),
                        policies.BestN(
                            get_metric_fn=lambda metrics: metrics[LOSS],
                            reverse=True,
                            n=1,
                            keep_checkpoints_without_metrics=False,
                        ),
                    ]
                ),
            ),
        )

    def save(self, step: int, state: dict, data: dict, val_loss: float) -> None:
        """Start to write the state after `step` steps; RunError when this or an earlier write failed."""
        trees = dict(state["params"]) | {OPTIMIZER: state["optimizer"]}
        items: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        items[DATA] = ocp.args.JsonSave(data)
        try:
            self._manager.save(
                step, args=ocp.args.Composite(**items), metrics={LOSS: val_loss}, force=True
            )
        except Exception as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Until nothing is being written; RunError when a write failed."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failed(error) from error

    def steps(self) -> list[int]:
        """Whole checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def restore(self, shapes: dict) -> tuple[dict, dict] | None:
        """State and data position of the latest checkpoint that can be read, None without any.

        `shapes` is the state as jax.ShapeDtypeStruct with shardings. An unreadable checkpoint is removed with a warning.
        """
        for step in reversed(self.steps()):
            try:
                return self._read(step, shapes)
            except Exception as error:
                log.warning(
                    "%s: checkpoint of step %d cannot be read (%s); falling back to the one before it",
                    self._directory,
                    step,
                    " ".join(str(error).split())[:200],
                )
                self._manager.delete(step)
        return None

    def _read(self, step: int, shapes: dict) -> tuple[dict, dict]:
        trees = dict(shapes["params"]) | {OPTIMIZER: shapes["optimizer"]}
        items: dict[str, Any] = {
            name: ocp.args.StandardRestore(tree) for name, tree in trees.items()
        }
        items[DATA] = ocp.args.JsonRestore()
        found = self._manager.restore(step, args=ocp.args.Composite(**items))
        counter = jax.device_put(jax.numpy.asarray(step, "int32"), shapes[STEP].sharding)
        state = {
            "params": {name: found[name] for name in shapes["params"]},
            OPTIMIZER: found[OPTIMIZER],
            STEP: counter,
        }
        return state, found[DATA]

    def should_stop(self, step: int) -> bool:
        """Whether the cluster is about to take this machine; all processes of a run get the same answer at the same step."""
        return self._manager.reached_preemption(step)

    def close(self) -> None:
        self._manager.close()

    def _failed(self, error: Exception) -> RunError:
        whole = self.steps()
        kept = f"whole up to step {whole[-1]}" if whole else "none is whole yet"
        reason = " ".join(str(error).split())[:300]
        return RunError(
            f"{self._directory}: a checkpoint could not be written ({reason}); checkpoints are {kept}. Free some space "
            "and run the same command again to go on from there"
        )
