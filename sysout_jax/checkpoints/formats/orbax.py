"""Directories that we wrote: converted checkpoints and runs of training."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from sysout_jax.checkpoints import checkpoint
from sysout_jax.checkpoints.formats.format import Format, Opened, tokenizer_beside


def open_orbax(path: Path, accept: Collection[str]) -> Opened:
    place = checkpoint.locate(path)
    assert place is not None
    held, written = None, None
    if place.is_of_run:
        place, held, written = checkpoint.open_run(path)
    config, bos_id = checkpoint.read_config(place.home)
    if place.is_of_run:
        source = checkpoint.OrbaxSource(place.params, config, written, held)
    else:
        source = checkpoint.open_converted(place.home, config)
    accepted = checkpoint.read_accepted(place.home)
    return Opened(config, source, bos_id, tokenizer_beside(place.home, bos_id), accepted)


FORMAT = Format(
    f"a directory that python -m sysout_jax.convert or python -m train wrote ({checkpoint.CONFIG})",
    lambda path: path.is_dir() and checkpoint.locate(path) is not None,
    open_orbax,
)
