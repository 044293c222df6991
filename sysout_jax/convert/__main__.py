"""python -m sysout_jax.convert: a Hugging Face model as a checkpoint directory that opens without its original library."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from tqdm import tqdm

from sysout_jax import checkpoint, loading
from sysout_jax.cli import run
from sysout_jax.convert.safetensors import SafetensorsSource
from sysout_jax.data import tokenizers
from sysout_jax.errors import InputError
from sysout_jax.weights import expected_shapes, groups


@dataclass(frozen=True)
class Args:
    """Convert a Hugging Face model to an Orbax checkpoint directory. Config, BOS id and tokenizer.json go along."""

    src: str
    """Hugging Face directory or hub id."""
    out: Path
    """Directory to write; must be new or empty."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the written weights; auto keeps the one they are stored in."""


def main() -> None:
    args = tyro.cli(Args, prog="python -m sysout_jax.convert")
    _check_out(args.out)
    directory = loading.find(args.src)
    if (directory / checkpoint.CONFIG).is_file():
        raise InputError(f"--src {args.src}: is converted already; it opens as it is")
    lm = loading.load(directory)
    assert isinstance(lm.source, SafetensorsSource)
    dtype = lm.source.stored_dtype if args.dtype == "auto" else args.dtype

    extra = {tokenizers.FILE: directory / tokenizers.FILE} if lm.tokenizer else {}
    bos_id = loading.read_bos_id(directory)
    quiet = not sys.stderr.isatty()
    try:
        with tqdm(total=len(groups(lm.config)), unit="group", leave=False, disable=quiet) as bar:
            checkpoint.save(args.out, lm.config, lm.source, dtype, extra, bos_id, bar.update)
    except OSError as error:
        raise InputError(
            f"--out {args.out}: not written ({error}); name a directory that can be written to"
        ) from None

    count = sum(math.prod(shape) for shape in expected_shapes(lm.config).values())
    print(
        f"{args.out}: {lm.config.family}, {lm.num_layers} layers, {count:,} parameters in {dtype}, "
        f"{'with' if extra else 'without a'} tokenizer"
    )


def _check_out(out: Path) -> None:
    """Refuse what cannot be written before anything is read."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        kind = "is a directory with files in it" if out.is_dir() else "is a file"
        raise InputError(f"--out {out}: {kind}; name a new directory")
    parent = out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"--out {out}: {parent} is not a directory that can be written to")


if __name__ == "__main__":
    run(main)
