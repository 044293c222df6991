"""Seconds and peak memory of every analysis command, beside what one full set of attention maps would take.

    pip install -e . && python benchmarks/commands.py

Each command runs as a process of its own on the same random LLaMA on disk (8 layers, D 512, H 8, F 1376, V 32000, float32; a
byte tokenizer) and 2 sequences of 2048 tokens of the text that comes with the package. Memory is the peak resident size of the
process, less that of a process that only imports the command; compilation and drawing the figures are included, in time as well.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro
from contest import whole_process

from sysout_jax.checkpoints.checkpoint import save
from sysout_jax.data.demo import byte_tokenizer
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.models import parameter_shapes
from sysout_jax.weights import InMemory

#: What is added to a command's flags: one seed where every seed costs a pass through the model.
COMMANDS: dict[str, tuple[str, ...]] = {
    "lifecycle": (),
    "positions": (),
    "consistency": (),
    "existence": (),
    "length": (),
    "variants": (),
    "intervene": ("--seeds", "1"),
    "compression": ("--seeds", "1"),
}
SHAPE = LlamaConfig(
    num_layers=8,
    d_model=512,
    d_ff=1376,
    num_heads=8,
    num_kv_heads=8,
    head_dim=64,
    vocab_size=32000,
    context_length=2049,  # analyze.length reads BOS before 2048 tokens
)
MIB = 2**20


@dataclass(frozen=True)
class Args:
    """Measure the commands one after the other."""

    commands: tuple[str, ...] = tuple(COMMANDS)
    num_seqs: int = 2
    seq_len: int = 2048


def main() -> None:
    args = tyro.cli(Args)
    maps = SHAPE.num_layers * args.num_seqs * SHAPE.num_heads * args.seq_len**2 * 4
    flags = ["--num-seqs", str(args.num_seqs), "--seq-len", str(args.seq_len)]
    print("| command | seconds | added memory (MiB) | of all attention maps |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        ckpt = Path(directory) / "model"
        save(ckpt, SHAPE, InMemory(random_params()), "float32", byte_tokenizer())
        for name in args.commands:
            out = str(Path(directory) / name)
            command = [sys.executable, "-m", f"analyze.{name}"]
            _, bare = whole_process([*command, "--help"])
            seconds, peak = whole_process(
                [*command, "--ckpt", str(ckpt), *flags, *COMMANDS[name], "--out", out]
            )
            added = peak - bare
            row = (f"`{name}`", f"{seconds:.0f}", f"{added / MIB:.0f}", f"{added / maps:.2f}")
            print(f"| {' | '.join(row)} |", flush=True)
    print(f"\nOne full set of attention maps: {maps / MIB:.0f} MiB.")


def random_params() -> dict:
    """Normal weights of standard deviation 0.02, norm scales 1."""
    rng = np.random.default_rng(0)

    def draw(shape) -> np.ndarray:
        if len(shape.shape) == 1:
            return np.ones(shape.shape, np.float32)
        return (0.02 * rng.standard_normal(shape.shape)).astype(np.float32)

    return jax.tree.map(draw, parameter_shapes(SHAPE))


if __name__ == "__main__":
    main()
