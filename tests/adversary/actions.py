"""What cases run, in the process of a worker: every command of the project, and two Python calls written as commands."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ANALYSES = ("lifecycle", "positions", "consistency", "existence", "length", "variants", "intervene", "compression", "absorb", "all", "census", "compare")  # fmt: skip
MODULES = {f"analyze.{name}": f"analyze.{name}" for name in ANALYSES} | {
    "convert": "sysout_jax.convert.__main__",
    "train": "train.__main__",
    "train.plan": "train.plan",
    "train.prepare": "train.prepare",
    "train.sweep": "train.sweep",
}


def main_of(name: str) -> Callable[[], None]:
    """The `main` of a command, which reads sys.argv."""
    if name in HERE:
        return HERE[name]
    return importlib.import_module(MODULES[name]).main


def load() -> None:
    """`so.load`, all weights, and the tokenizer on a text and on every id."""
    lm = _opened()
    if lm.tokenizer is not None:
        lm.check_tokens(np.array([lm.tokenizer.encode("Summer is warm. Winter is cold.\n")[:16]]))
        for token in (0, 10, lm.config.vocab_size - 1, 2**31 - 1):
            lm.tokenizer.token(token)


def collect() -> None:
    """`so.load` and `so.collect` on a few tokens."""
    import sysout_jax as so

    lm = _opened()
    length = min(12, lm.config.context_length)
    so.collect(lm, np.arange(length)[None] % lm.config.vocab_size)


def _opened() -> Any:
    import sysout_jax as so

    lm = so.load(sys.argv[1])
    print(weights_of(lm))
    return lm


HERE = {"load": load, "collect": collect}


def weights_of(lm: Any) -> str:
    """A hash of all weights, bit for bit, in float32."""
    from flax.traverse_util import flatten_dict

    from sysout_jax.weights import groups

    digest = hashlib.sha256()
    for group in groups(lm.config):
        for path, leaf in sorted(flatten_dict(lm.source.read(group, "float32"), sep="/").items()):
            digest.update(f"{group}/{path}".encode() + np.asarray(leaf).tobytes())
    return f"weights {digest.hexdigest()}"


def values_after(command: list[str]) -> str | None:
    """What a command that ended well made: the weights at its --out or --workdir, or a printed line of them."""
    import sysout_jax as so

    target = {"convert": "--out", "train": "--workdir"}.get(command[0])
    if target is None or command.count(target) != 1:
        return None
    return weights_of(so.load(Path(command[command.index(target) + 1])))


def make_fast() -> None:
    """What costs most and is no reading of input is done once, or not: compiled training programs are kept, figures are drawn but not rendered."""
    from sysout_jax.figures import drawing, saving
    from sysout_jax.training import loop

    def draw(figure: Any, stem: Path, *_: Any) -> None:
        for suffix in saving.SUFFIXES:
            stem.with_name(f"{stem.name}.{suffix}").write_bytes(b"figure")

    drawing.draw = draw
    make_program = loop.make_program
    kept = functools.lru_cache(8)(lambda config, mesh: make_program(config, mesh))

    def program(config: Any, mesh: Any) -> Any:
        same = {"data": Path(), "steps": 1, "tokens": None, "save_every": 1, "log_every": 1, "eval_every": 1, "keep": 1}  # fmt: skip
        return kept(dataclasses.replace(config, **same), mesh)

    loop.make_program = program
