"""The row on `analyze.lifecycle` of the targets: the whole command beside a short torch script that looks at much less.

    pip install -e '.[parity]' && python benchmarks/lifecycle.py --text wikitext2-test.txt

Both read the demo's weights as a Hugging Face directory in float32 and the same windows. The script opens them with transformers, in eager attention, and takes
the largest |h| and the attention on the first token of every layer in one pass. The command finds births, deaths, waves, causes and
heads, tries edits and draws figures. Every run is a process of its own, from its start to its end; memory is its peak resident size. The command's first run finds no
compiled program; the others find those of the run before.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from contest import whole_process

import sysout_jax as so
from sysout_jax.checkpoints.formats.hf_export import save_hugging_face
from sysout_jax.data.demo import demo_text
from sysout_jax.data.demo_checkpoint import demo_checkpoint
from sysout_jax.data.text import read_text, text_windows

MIB = 2**20


@dataclass(frozen=True)
class Args:
    """Let both take turns, or (with --child) be the script."""

    text: Path | None = None
    """A text file; None: the text that comes with the package."""
    num_seqs: int = 4
    length: int = 512
    rounds: int = 3
    child: Path | None = None
    windows: Path | None = None


def main() -> None:
    args = tyro.cli(Args)
    if args.child is not None:
        print(json.dumps(script(args)))
        return
    lm = so.load(demo_checkpoint(lambda line: print(line, file=sys.stderr)))
    assert lm.tokenizer is not None
    with tempfile.TemporaryDirectory() as directory:
        model, windows = Path(directory) / "model", Path(directory) / "windows.npy"
        save_hugging_face(model, lm.config, lm.source, np.float32, lm.tokenizer)
        text = read_text(args.text) if args.text else demo_text()
        np.save(windows, text_windows(lm.tokenizer, text, args.num_seqs, args.length, bos=False))
        del lm
        os.environ["SYSOUT_CACHE"] = str(Path(directory) / "cache")
        ours = [sys.executable, "-m", "analyze.lifecycle", "--ckpt", str(model)]
        ours += ["--num-seqs", str(args.num_seqs), "--seq-len", str(args.length)]
        ours += ["--text", str(args.text)] if args.text else []
        theirs = [sys.executable, __file__, "--child", str(model), "--windows", str(windows)]
        runs = []
        for number in range(args.rounds):
            found = whole_process([*ours, "--out", str(Path(directory) / f"out{number}")])
            runs.append((*found, *whole_process(theirs)))
            seconds, peak, other, most = runs[-1]
            print(f"command {seconds:.1f} s, {peak / MIB:.0f} MiB", end="; ", file=sys.stderr)
            print(f"script {other:.1f} s, {most / MIB:.0f} MiB", file=sys.stderr)
    first, *later = ((seconds / other, peak / most) for seconds, peak, other, most in runs)
    print(f"the first run takes {first[0]:.2f}x the script's time, {first[1]:.2f}x its memory")
    if later:
        time, memory = (statistics.median(row[i] for row in later) for i in (0, 1))
        print(f"later ones {time:.2f}x (target 0.8) and {memory:.2f}x (target 0.3)")


def script(args: Args) -> dict[str, list[float]]:
    """Largest |h| and mean attention on the first token of every layer, as somebody would write it in a notebook."""
    import torch
    from transformers import AutoModelForCausalLM

    assert args.child is not None and args.windows is not None
    model = AutoModelForCausalLM.from_pretrained(args.child, attn_implementation="eager").eval()
    tokens = torch.from_numpy(np.load(args.windows).astype(np.int64))
    with torch.no_grad():
        out = model(tokens, output_hidden_states=True, output_attentions=True, use_cache=False)
    return {
        "largest": [float(h.abs().max()) for h in out.hidden_states[1:]],
        "first": [float(a[..., 0].mean()) for a in out.attentions],
    }


if __name__ == "__main__":
    main()
