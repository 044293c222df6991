"""Rows 1 and 2 of the analysis targets: `collect` beside transformers with hooks, and beside our own plain forward pass.

    pip install -e '.[parity]' && python benchmarks/analysis.py

Every contestant runs in a process of its own on the same random LLaMA (8 layers, D 512, H 8, F 1376, V 32000, T 2048, float32).
The peer is kept as light as it can be: no output head, hooks that only copy h, x_down and the attention maps. A second figure
for it adds the same statistics computed from those copies. Time is the median of the repetitions after one warm-up; added
memory is the peak resident size from the loaded model on, first call and compilation included. The contestants take turns,
and the ratios printed are medians over the rounds.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from contest import median, ratio, take_turns, time_calls

SHAPE = {
    "vocab_size": 32000,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
}


@dataclass(frozen=True)
class Args:
    """Compare contestants, or (with --child) be one of them."""

    rounds: int = 3
    repeat: int = 5
    length: int = 2048
    profile: bool = False
    """Instead of comparing, show where the time of `collect` goes."""
    child: str | None = None
    model: Path | None = None


def main() -> None:
    args = tyro.cli(Args)
    if args.child:
        assert args.model is not None
        print(json.dumps(measure(*CONTESTANTS[args.child](args.model, args.length), args.repeat)))
        return
    with tempfile.TemporaryDirectory() as directory:
        make_model(Path(directory))
        if args.profile:
            profile(Path(directory), args)
            return
        flags = ("--model", directory, "--repeat", args.repeat, "--length", args.length)
        found = take_turns(__file__, list(CONTESTANTS), flags, args.rounds)
    report(found)


def make_model(directory: Path) -> None:
    """A random LLaMA as transformers initialises it, saved as a Hugging Face directory."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(directory)


def tokens(length: int):
    import numpy as np

    return np.random.default_rng(0).integers(0, SHAPE["vocab_size"], (1, length))


def ours(model: Path, length: int):
    """`so.collect`."""
    import sysout_jax as so

    lm, ids = so.load(model), tokens(length)
    _ = lm.params
    return lambda: so.collect(lm, ids)


def plain(model: Path, length: int):
    """Our own forward pass through all layers, nothing observed."""
    import jax

    import sysout_jax as so
    from sysout_jax.engine import Stream

    lm, ids = so.load(model), tokens(length)
    _ = lm.params

    def run():
        stream = Stream(lm, ids)
        for _ in stream.layers(_nothing):
            pass
        jax.block_until_ready(stream.hidden)

    return run


def _nothing(x_in, taps, extra):
    return {}


def _matrix_products(length: int):
    """The products that a causal forward pass cannot do without, as bare jitted calls: a lower bound for any forward pass."""
    import jax
    import jax.numpy as jnp

    D, F, H = (SHAPE[k] for k in ("hidden_size", "intermediate_size", "num_attention_heads"))
    x, wide, narrow = jnp.ones((length, D)), jnp.ones((D, F)), jnp.ones((F, D))
    square, heads = jnp.ones((D, D)), jnp.ones((H, length // 2, D // H))

    @jax.jit
    def layer(x):
        for _ in range(4):
            x = x @ square
        half = jnp.matmul(heads, jnp.ones((H, D // H, length)))  # half of T x T: causal
        mixed = jnp.matmul(half, jnp.ones((H, length, D // H)))
        return ((x @ wide) * (x @ wide)) @ narrow, mixed

    def run():
        for _ in range(SHAPE["num_hidden_layers"]):
            jax.block_until_ready(layer(x))

    return run


def profile(model: Path, args: Args) -> None:
    """Seconds of the bare products, the forward pass, and of each reduction on top of it."""
    import jax

    import sysout_jax as so
    from sysout_jax.engine import Stream
    from sysout_jax.statistics.activations import reduce_activations
    from sysout_jax.statistics.collect import TOP
    from sysout_jax.statistics.weights import reduce_weights

    lm, ids = so.load(model), tokens(args.length)
    _ = lm.params

    def forward(observe):
        def run():
            stream = Stream(lm, ids)
            for _ in stream.layers(observe):
                pass
            jax.block_until_ready(stream.hidden)

        return run

    def weights():
        for l in range(lm.num_layers):
            jax.device_get(reduce_weights(lm.config, lm.params[f"layer_{l}"]))

    pieces = {
        "matrix products alone": _matrix_products(args.length),
        "plain forward": forward(_nothing),
        "+ attention column sums": forward(lambda _x, taps, _e: taps["attn_sums"]),
        "+ statistics of h": forward(lambda _x, taps, _e: reduce_activations(taps["h"], TOP)),
        "+ statistics of x_down": forward(
            lambda _x, taps, _e: reduce_activations(taps["x_down"], TOP)
        ),
        "statistics of weights": weights,
        "collect": lambda: so.collect(lm, ids),
    }
    times: dict[str, list[float]] = {name: [] for name in pieces}
    for turn in range(args.rounds * args.repeat + 1):
        for name, run in pieces.items():
            start = time.perf_counter()
            run()
            if turn:  # the first call compiles
                times[name].append(time.perf_counter() - start)
    plain_seconds = statistics.median(times["plain forward"])
    print(f"{'':<28}{'seconds':>9}{'of forward':>12}")
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"{name:<28}{middle:>9.3f}{middle / plain_seconds:>11.2f}x")


def _peer(model: Path, length: int, statistics_too: bool):
    import torch
    from transformers import LlamaModel

    lm = LlamaModel.from_pretrained(model, attn_implementation="eager", dtype=torch.float32).eval()
    ids = torch.tensor(tokens(length))
    kept: dict[str, list] = {"h": [], "x_down": [], "map": []}
    for layer in lm.layers:
        layer.register_forward_hook(
            lambda _m, _i, out: kept["h"].append(
                (out[0] if isinstance(out, tuple) else out).clone()
            )
        )
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda _m, i: kept["x_down"].append(i[0].clone())
        )
        layer.self_attn.register_forward_hook(
            lambda _m, _i, out: kept["map"].append(out[1].clone())
        )

    def reduce():
        for name in ("h", "x_down"):
            for x in kept[name]:
                a = x.abs()
                flat = a.flatten()
                mean, middle = a.mean(), flat.median()
                flat.topk(16), a.amax(2), a.amax(1), (x * x).sum(1)
                centred = (x - x.mean()) ** 2
                centred.mean(), (centred**2).mean()
                [(a > tau * mean).sum() for tau in (100, 300, 1000, 3000)]
                ((a > 100) & (a > 1000 * middle)).sum()
        for attention in kept["map"]:
            attention.sum(2)

    @torch.no_grad()
    def run():
        for values in kept.values():
            values.clear()
        lm(ids, use_cache=False)
        assert len(kept["map"]) == SHAPE["num_hidden_layers"]
        if statistics_too:
            reduce()

    return run


def transformers_hooks(model: Path, length: int):
    """Eager attention, hooks that copy; nothing computed from the copies."""
    return _peer(model, length, statistics_too=False)


def transformers_statistics(model: Path, length: int):
    """The same, then the statistics that `collect` gives, from the copies."""
    return _peer(model, length, statistics_too=True)


CONTESTANTS = {
    "collect": lambda model, length: (ours(model, length),),
    "plain forward": lambda model, length: (plain(model, length),),
    "transformers, hooks": lambda model, length: (transformers_hooks(model, length),),
    "transformers, hooks + statistics": lambda model, length: (
        transformers_statistics(model, length),
    ),
}


def measure(run, repeat: int) -> dict:
    """Median seconds and peak added memory in MiB of calling `run`."""
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    seconds = time_calls(run, repeat)
    return {"seconds": seconds, "added_mib": _memory("VmHWM") - before}


def _memory(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def report(found: dict[str, list[dict]]) -> None:
    print(f"{'':<36}{'seconds':>9}{'added MiB':>11}")
    for name in found:
        seconds, added = median(found, name, "seconds"), median(found, name, "added_mib")
        print(f"{name:<36}{seconds:>9.2f}{added:>11.0f}")
    for peer in ("transformers, hooks", "transformers, hooks + statistics"):
        speed = ratio(found, peer, "collect", "seconds")
        memory = ratio(found, "collect", peer, "added_mib")
        print(
            f"collect against {peer}: {speed:.2f}x faster (target 4), {memory:.2f} of the added memory (target 0.25)"
        )
    cost = ratio(found, "collect", "plain forward", "seconds")
    print(f"all reductions cost {cost:.2f}x a plain forward (target 1.25)")


if __name__ == "__main__":
    main()
