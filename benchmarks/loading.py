"""The row on GGUF of the targets: a pass of `so.collect` over a GGUF file beside the same weights as float32 safetensors.

    pip install -e . && python benchmarks/loading.py                   # the demo's model, fetched once (98 MB)
    python benchmarks/loading.py --model other.gguf --length 2048

Every contestant opens its file in a process of its own, goes through the model once so that everything is compiled, and then
opens it again for the pass that is timed. Memory is the peak resident size of the whole process.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from contest import median, ratio, take_turns

import sysout_jax as so
from sysout_jax.checkpoints.formats.hf_export import save_hugging_face
from sysout_jax.data.demo_checkpoint import demo_checkpoint

MIB = 2**20
CONTESTANTS = ("gguf", "safetensors")


@dataclass(frozen=True)
class Args:
    """Write the safetensors and let the contestants take turns, or (with --child) be one of them."""

    model: Path | None = None
    """A GGUF file; None: the demo's."""
    num_seqs: int = 2
    length: int = 1024
    rounds: int = 3
    child: str | None = None
    opened: Path | None = None


def main() -> None:
    args = tyro.cli(Args)
    if args.child:
        print(json.dumps(contestant(args)))
        return
    model = args.model or demo_checkpoint(lambda line: print(line, file=sys.stderr))
    lm = so.load(model)
    with tempfile.TemporaryDirectory() as directory:
        copied = Path(directory) / "safetensors"
        save_hugging_face(copied, lm.config, lm.source, np.float32)
        found: dict[str, list[dict]] = {name: [] for name in CONTESTANTS}
        for _ in range(args.rounds):
            for name, opened in zip(CONTESTANTS, (model, copied), strict=True):
                flags = ("--opened", opened, "--num-seqs", args.num_seqs, "--length", args.length)
                found[name] += take_turns(__file__, [name], flags, 1)[name]
    for name in CONTESTANTS:
        seconds, peak = (median(found, name, field) for field in ("seconds", "peak_mib"))
        print(f"{name:<12}{seconds:>7.2f} s {peak:>7.0f} MiB at the peak")
    over, memory = (ratio(found, *CONTESTANTS, field) for field in ("seconds", "peak_mib"))
    print(f"a pass from GGUF takes {over:.2f}x the time (target 1.3), {memory:.2f}x the memory")


def contestant(args: Args) -> dict[str, float]:
    """One pass over random tokens, from opening the file to the statistics of all layers."""
    assert args.opened is not None

    def one_pass() -> float:
        start = time.perf_counter()
        lm = so.load(args.opened)
        shape = (args.num_seqs, args.length)
        so.collect(lm, np.random.default_rng(0).integers(0, lm.config.vocab_size, shape))
        return time.perf_counter() - start

    one_pass()
    seconds = one_pass()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB
    return {"seconds": seconds, "peak_mib": peak}


if __name__ == "__main__":
    main()
