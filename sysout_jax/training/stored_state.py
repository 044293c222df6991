"""The state of a run as values on disk: how they are named, read, and compared with what was written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from sysout_jax.storage.fingerprint import fingerprint
from sysout_jax.storage.seal import Damaged, write_seal

OPTIMIZER, STEP = "optimizer", "step"
BATCH_BYTES = 1 << 28  # of host memory while a checkpoint is read back


class SealingHandler(ocp.CompositeCheckpointHandler):
    """Seals a checkpoint when all of its files are there, before it gets its name."""

    def finalize(self, directory: epath.Path) -> None:
        super().finalize(directory)
        write_seal(Path(directory))


@ocp.args.register_with_handler(SealingHandler, for_save=True, for_restore=True)
class Parts(ocp.args.Composite):
    """What a `SealingHandler` saves or restores, by name."""


def items(state: Mapping[str, Any]) -> dict[str, Any]:
    """What is stored apart: parameter groups by name, and the optimiser's state."""
    return dict(state["params"]) | {OPTIMIZER: state[OPTIMIZER]}


def values_by_path(state: Mapping[str, Any]) -> dict[str, Any]:
    """Every array under its path: `layer_0/mlp/up_proj/kernel`, `optimizer/1/0/mu/…`."""
    return _by_path(items(state))


def read_state(handler: ocp.CompositeCheckpointHandler, checkpoint: Path, shapes: dict) -> dict:
    """Parameters and optimiser of a checkpoint, laid out as `shapes` says. Raises whatever Orbax does."""
    wanted = {name: ocp.args.StandardRestore(tree) for name, tree in items(shapes).items()}
    stored = handler.restore(epath.Path(checkpoint), args=Parts(**wanted))
    params = {name: stored[name] for name in shapes["params"]}
    return {"params": params, OPTIMIZER: stored[OPTIMIZER]}


def compare(checksums: Mapping[str, int], written: Mapping[str, int]) -> None:
    """Damaged when a checksum differs from the one that was written with the values."""
    wrong = sorted(name for name in checksums if checksums[name] != written[name])
    if wrong:
        others = f" and {len(wrong) - 1} others" if wrong[1:] else ""
        raise Damaged(f"{wrong[0]}{others} has other values than were written")


def read_back(checkpoint: Path, written: Mapping[str, int]) -> None:
    """Read every value from disk, some at a time, and compare; processes share the work. Damaged for other values."""
    for item in sorted({name.split("/")[0] for name in written}):
        for batch in _batches(epath.Path(checkpoint) / item, item):
            compare({name: fingerprint(value) for name, value in batch.items()}, written)


def _batches(directory: epath.Path, item: str) -> Iterator[dict[str, np.ndarray]]:
    """This process's share of an item's values, under their paths."""
    handler = ocp.PyTreeCheckpointHandler()
    tree = handler.metadata(directory).tree
    leaves = _by_path({item: tree})
    share = list(leaves)[jax.process_index() :: jax.process_count()]
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    while share:
        names: list[str] = []
        size = 0
        while share and (not names or size < BATCH_BYTES):
            names.append(share.pop())
            size += leaves[names[-1]].dtype.itemsize * int(np.prod(leaves[names[-1]].shape))
        chosen = set(names)
        wanted = jax.tree_util.tree_map_with_path(
            lambda path, leaf, chosen=chosen: (
                leaf if f"{item}/{_name(path)}" in chosen else ocp.PLACEHOLDER
            ),
            tree,
        )
        array = handler.restore(
            directory, args=ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy)
        )
        everything = _by_path({item: array})
        yield {name: everything[name] for name in names}


def _by_path(trees: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{item}/{_name(path)}": leaf
        for item, tree in trees.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
