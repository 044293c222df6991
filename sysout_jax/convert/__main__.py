"""python -m sysout_jax.convert: any checkpoint that loads, as an Orbax directory of ours or as a Hugging Face directory."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from sysout_jax import loading
from sysout_jax.checkpoints import checkpoint
from sysout_jax.checkpoints.formats.hf_export import check_exportable, save_hugging_face
from sysout_jax.commands.arguments import parse
from sysout_jax.commands.cli import run, say
from sysout_jax.convert.verify import Verified, check_verifiable, verify
from sysout_jax.errors import InputError
from sysout_jax.printable import escaped
from sysout_jax.processes import all_devices
from sysout_jax.reports.terminal import fit
from sysout_jax.storage import staging
from sysout_jax.weights import expected_shapes, groups


@dataclass(frozen=True)
class Args:
    """Convert a checkpoint to an Orbax directory or to a Hugging Face one. Config, BOS id and tokenizer go along."""

    src: str
    """Hugging Face directory or hub id, GGUF file, nanoGPT ckpt.pt, llama2.c .bin, converted or trained checkpoint, or demo: a pretrained
    SmolLM2 that is fetched once."""
    out: Path
    """Directory to write; must be new or empty."""
    format: Literal["orbax", "hf"] = "orbax"
    """orbax opens everywhere in this library; hf opens in transformers (families that it has a class for, with default attention)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the written weights; auto keeps the one they are stored in, and writes quantised ones in float32."""
    verify: bool = False
    """Compare logits and h of every layer with what transformers computes from the source; needs torch and transformers (extra parity)."""
    accept_setting: tuple[str, ...] = ()
    """Settings of its config that are unknown here and that you know to change nothing; the new checkpoint records them."""


def main() -> None:
    args = parse(Args, "python -m sysout_jax.convert")
    _check_out(args)
    all_devices()  # Orbax asks for them when it writes
    path = loading.find(args.src, lambda line: say(fit(line)))
    if args.format == "orbax" and os.path.isdir(path) and checkpoint.is_converted(path):
        raise InputError(f"--src {args.src}: is converted already; it opens as it is")
    if args.verify:
        try:
            check_verifiable(path)
        except InputError as error:
            raise InputError(f"--verify: {error}") from None
    opened = loading.open_checkpoint(path, args.accept_setting)
    config, source, tokenizer = opened.config, opened.source, opened.tokenizer
    if args.format == "hf":
        try:
            check_exportable(config)
        except InputError as error:
            raise InputError(f"--src {args.src}: {error}") from None
    dtype = source.stored_dtype if args.dtype == "auto" else args.dtype

    quiet = not sys.stderr.isatty()
    with tqdm(total=len(groups(config)), unit="group", leave=False, disable=quiet) as bar:
        what = args.out, config, source, dtype, tokenizer, opened.bos_id, bar.update
        if args.format == "orbax":
            checkpoint.save(*what, opened.accepted)
        else:
            save_hugging_face(*what)

    count = sum(math.prod(shape) for shape in expected_shapes(config).values())
    say(
        f"{escaped(str(args.out))}: {config.family}, {config.num_layers} layers, {count:,} parameters in {dtype}, "
        f"{'with' if tokenizer else 'without a'} tokenizer"
    )
    for note in opened.notes:
        say(fit(note))
    if args.verify:
        _say_verified(verify(loading.load(args.out), path))


def _say_verified(verified: Verified) -> None:
    B, T = verified.tokens
    say(
        f"largest differences from transformers {verified.version} in float32, {B} × {T} random tokens:"
    )
    say(f"  logits    {verified.logits}")
    for l, difference in enumerate(verified.h):
        say(f"  h {l + 1:>4}    {difference}")


def _check_out(args: Args) -> None:
    """Refuse what cannot be written before anything is read."""
    src = os.path.expanduser(args.src)  # as `loading.find` finds it
    try:
        staging.check_out(args.out, new=True, apart=(Path(src),) if os.path.isdir(src) else ())
    except InputError as error:
        raise InputError(f"--out {error}") from None


if __name__ == "__main__":
    run(main)
