"""Row 3 of the analysis targets: `so.collect` on a checkpoint of LLaMA-2-7B's shapes that is read from disk, in little memory.

    pip install -e . && python benchmarks/large.py           # writes 13.5 GB to --directory; some ten minutes on two cores
    python benchmarks/large.py --layers 4                    # the same layers, fewer of them

The model is random, stored in bfloat16 as safetensors in several files, and analysed in float32 on one sequence. Memory is the peak
resident size of the whole process, Python, jax and compilation included. Beside it, in a process of its own: the matrix products
that no causal forward pass through these layers can do without, on arrays that are already there.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from contest import median, ratio, take_turns
from tqdm import tqdm

import sysout_jax as so
from sysout_jax.checkpoints.formats.hf_export import save_hugging_face
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.families.sizes import MODEL_SIZES
from sysout_jax.models import parameter_shapes
from sysout_jax.weights import groups

GIB = 2**30


@dataclass(frozen=True)
class Args:
    """Write the model and let the contestants take turns, or (with --child) be one of them."""

    layers: int = 32
    length: int = 2048
    rounds: int = 1
    directory: Path = Path(tempfile.gettempdir())
    """Where the model is written, in a folder that is removed afterwards."""
    child: str | None = None
    model: Path | None = None


def shape(layers: int) -> LlamaConfig:
    llama = MODEL_SIZES["llama-2-7b"]
    assert isinstance(llama, LlamaConfig)
    return dataclasses.replace(llama, num_layers=layers)


class Drawn:
    """Weights that are drawn when they are read: normal with standard deviation 0.02, norm scales 1."""

    def __init__(self, config: LlamaConfig):
        self._shapes = parameter_shapes(config)
        self._rng = np.random.default_rng(0)

    def read(self, group: str, dtype: Any) -> dict:
        def draw(leaf) -> np.ndarray:
            if len(leaf.shape) == 1:
                return np.ones(leaf.shape, dtype)
            return (0.02 * self._rng.standard_normal(leaf.shape, np.float32)).astype(dtype)

        return jax.tree.map(draw, self._shapes[group])


def main() -> None:
    args = tyro.cli(Args)
    if args.child:
        print(json.dumps(CONTESTANTS[args.child](args)))
        return
    config = shape(args.layers)
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        model = Path(directory) / "model"
        with tqdm(total=len(groups(config)), unit="group", desc="writing") as bar:
            save_hugging_face(model, config, Drawn(config), jnp.bfloat16, on_group=bar.update)
        size = sum(file.stat().st_size for file in model.iterdir())
        flags = ("--model", model, "--layers", args.layers, "--length", args.length)
        found = take_turns(__file__, list(CONTESTANTS), flags, args.rounds)
    peak = median(found, "collect", "peak_gib")
    print(f"{args.layers} layers of LLaMA-2-7B, {size / GIB:.1f} GiB on disk, {args.length} tokens")
    for name in found:
        print(f"{name:<32}{median(found, name, 'seconds'):>9.1f} s")
    over = ratio(found, "collect", "matrix products alone", "seconds")
    print(f"collect takes {over:.2f}x its matrix products (target 2)")
    print(f"peak resident size {peak:.2f} GiB (target 4)")


def collect(args: Args) -> dict[str, float]:
    """From opening the files to the statistics of all layers, compilation included."""
    assert args.model is not None
    start = time.perf_counter()
    lm = so.load(args.model)
    tokens = np.random.default_rng(0).integers(0, lm.config.vocab_size, (1, args.length))
    so.collect(lm, tokens)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB,
    }


def matrix_products(args: Args) -> dict[str, float]:
    """Those of one layer, half of T × T for attention, times the number of layers; the fastest of three."""
    config = shape(args.layers)
    T, D, F, H = args.length, config.d_model, config.d_ff, config.num_heads
    square, wide, narrow = (jnp.ones(s, jnp.float32) for s in ((D, D), (D, F), (F, D)))
    q, k = jnp.ones((H, T // 2, D // H)), jnp.ones((H, D // H, T))
    v = jnp.ones((H, T, D // H))

    @jax.jit
    def layer(x):
        for _ in range(4):
            x = x @ square
        return ((x @ wide) * (x @ wide)) @ narrow, jnp.matmul(jnp.matmul(q, k), v)

    x = jnp.ones((T, D), jnp.float32)
    jax.block_until_ready(layer(x))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(layer(x))
        times.append(time.perf_counter() - start)
    return {"seconds": min(times) * args.layers}


CONTESTANTS: dict[str, Callable[[Args], dict[str, float]]] = {
    "collect": collect,
    "matrix products alone": matrix_products,
}


if __name__ == "__main__":
    main()
