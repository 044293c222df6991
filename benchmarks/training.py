"""A training step of GPT-2 beside the same model in PyTorch: forward, loss, backward, clipping, AdamW.

    pip install -e '.[parity]' && python benchmarks/training.py --shape tiny      # or 124m; on a GPU too

Both train in float32 on a CPU and in bfloat16 on a GPU, on the same random tokens, with nanoGPT's settings (no biases, exact GELU, tied
head, decay on matrices, clip 1). PyTorch uses its own fused attention, eagerly and through torch.compile. `--monitor` also times
the outlier monitor. Seconds are medians per step after a warm-up, contestants take turns, ratios are medians over rounds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import tyro
from contest import median, ratio, take_turns, time_calls

#: batch, length, layers, heads, width, vocabulary
SHAPES = {"tiny": (16, 256, 4, 4, 128, 2048), "124m": (1, 1024, 12, 12, 768, 50304)}
GPU_BATCH = 16  # sequences per step of the 124M model on a GPU


@dataclass(frozen=True)
class Args:
    """Compare contestants, or (with --child) be one of them."""

    shape: Literal["tiny", "124m"] = "tiny"
    rounds: int = 3
    repeat: int = 5
    attention: str = "default"
    child: str | None = None


def main() -> None:
    args = tyro.cli(Args)
    if args.child:
        print(json.dumps(CONTESTANTS[args.child](args)))
        return
    flags = ("--shape", args.shape, "--repeat", args.repeat, "--attention", args.attention)
    found = take_turns(__file__, list(CONTESTANTS), flags, args.rounds)
    print(f"{'':<22}{'ms a step':>11}{'tokens/s':>11}")
    for name in found:
        seconds = median(found, name, "seconds")
        print(f"{name:<22}{1e3 * seconds:>11.1f}{found[name][0]['tokens'] / seconds:>11,.0f}")
    for peer, target in (("torch, eager", 1.2), ("torch, compiled", 1.0)):
        speed = ratio(found, peer, "sysout_jax", "seconds")
        print(f"against {peer}: {speed:.2f}x as fast (target {target})")
    share = median(found, "sysout_jax", "monitor_share")
    print(f"outlier monitor at its default interval: {share:.2%} of a step (target 2%)")


class OurStep(NamedTuple):
    """A training step of ours, ready to be timed: `step()` returns its loss, `look()` runs the outlier monitor."""

    step: Callable[[], float]
    look: Callable[[], object]
    tokens: int
    monitor_every: int


def our_step(shape: str, attention: str) -> OurStep:
    """Build the model of a shape with a variant of attention; every one trains on the same random tokens."""
    import jax
    import numpy as np

    from sysout_jax.families.gpt2 import Gpt2Config
    from sysout_jax.sharding import make_mesh
    from sysout_jax.training.config import TrainConfig
    from sysout_jax.training.host_memory import keep_freed_memory
    from sysout_jax.training.monitor import Monitor
    from sysout_jax.training.step import make_program

    keep_freed_memory()  # as python -m train does
    gpu = jax.default_backend() == "gpu"
    B, T, L, H, D, V = SHAPES[shape]
    B = GPU_BATCH if gpu and shape == "124m" else B
    model = Gpt2Config(
        num_layers=L,
        num_heads=H,
        d_model=D,
        d_ff=4 * D,
        vocab_size=V,
        context_length=T,
        bias=False,
        activation="gelu",
        attention=attention,  # type: ignore[arg-type]
    )
    config = TrainConfig(
        model=model,
        data=Path(),
        steps=1000,
        batch_size=B,
        seq_len=T,
        dtype="bfloat16" if gpu else "float32",
    )
    mesh = make_mesh()
    tokens = np.random.default_rng(0).integers(0, V, (1, B, T + 1)).astype(np.int32)
    with jax.set_mesh(mesh):
        program = make_program(config, mesh)
        held = {"state": program.init(jax.random.key(0))}
        batch = jax.device_put(tokens, program.batch_sharding)
    monitor = Monitor(model, config.dtype)
    probe = jax.numpy.asarray(np.resize(tokens[0, :, :-1], (config.monitor_sequences, T)))

    def step() -> float:
        with jax.set_mesh(mesh):
            held["state"], seen = program.train(held["state"], batch)
            return float(seen["loss"])

    def look() -> object:
        with jax.set_mesh(mesh):
            return monitor(held["state"]["params"], probe)

    return OurStep(step, look, B * T, config.monitor_every)


def ours(args: Args) -> dict:
    """Our training step and monitor."""
    ready = our_step(args.shape, args.attention)
    seconds = time_calls(ready.step, args.repeat)
    share = time_calls(ready.look, args.repeat) / (seconds * ready.monitor_every)
    return {"seconds": seconds, "tokens": ready.tokens, "monitor_share": share}


def torch_step(args: Args, compiled: bool) -> dict:
    """The same model and step, written plainly."""
    import numpy as np
    import torch
    from torch import nn
    from torch.nn import functional as F

    device = "cuda" if torch.cuda.is_available() else "cpu"
    B, T, L, H, D, V = SHAPES[args.shape]
    B = GPU_BATCH if device == "cuda" and args.shape == "124m" else B

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList(nn.LayerNorm(D, bias=False) for _ in range(2))
            self.qkv, self.out = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
            self.up, self.down = nn.Linear(D, 4 * D, bias=False), nn.Linear(4 * D, D, bias=False)

        def forward(self, x):
            q, k, v = self.qkv(self.norms[0](x)).view(B, T, 3, H, D // H).unbind(2)
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(B, T, D))
            return x + self.down(F.gelu(self.up(self.norms[1](x))))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.positions = nn.Embedding(V, D), nn.Embedding(T, D)
            self.blocks = nn.ModuleList(Block() for _ in range(L))
            self.norm = nn.LayerNorm(D, bias=False)

        def forward(self, tokens, targets):
            x = self.embed(tokens) + self.positions.weight
            for block in self.blocks:
                x = block(x)
            logits = self.norm(x) @ self.embed.weight.T
            return F.cross_entropy(logits.view(-1, V).float(), targets.reshape(-1))

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    model = Model().to(device)
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.02) if weight.ndim > 1 else None
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=True)
    run = torch.compile(model) if compiled else model
    ids = torch.tensor(np.random.default_rng(0).integers(0, V, (B, T + 1)), device=device)

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = run(ids[:, :-1], ids[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss)

    return {"seconds": time_calls(step, args.repeat), "tokens": B * T}


CONTESTANTS = {
    "sysout_jax": ours,
    "torch, eager": lambda args: torch_step(args, compiled=False),
    "torch, compiled": lambda args: torch_step(args, compiled=True),
}


if __name__ == "__main__":
    main()
