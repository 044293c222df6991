"""What a program costs, read off its trace (matrix products) and its compiled text (collectives, buffers)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sysout_jax.config import ModelConfig

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "pred": 1}


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind in the program text; those inside a loop are counted once."""

    kind: str
    count: int
    bytes: int  # of results, per chip


def count_products(jaxpr: Any) -> float:
    """FLOPs of all matrix products of a traced program, loops in full; Pallas kernels by their own estimate."""
    total = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * math.prod(shape[d] for d in contracted)
        elif name == "pallas_call":
            estimate = params.get("cost_estimate")
            total += float(estimate.flops) if estimate is not None else 0.0
        else:
            inner = sum(count_products(sub) for sub in _inner(params))
            times = params.get("length", 1) if name == "scan" else 1
            if name == "shard_map":  # traced for one device
                times = math.prod(params["mesh"].shape.values())
            total += inner * times
    return total


def _inner(params: dict) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(item, "eqns") or hasattr(getattr(item, "jaxpr", None), "eqns"):
                yield item


def find_collectives(text: str) -> tuple[Collective, ...]:
    """Kinds, numbers and result bytes of the collectives in a compiled program's text."""
    collectives = []
    for kind in COLLECTIVES:
        types = re.findall(rf"= (\(?[^=\n]*?) {kind}(?:-start)?\(", text)
        if types:
            collectives.append(Collective(kind, len(types), sum(map(_bytes_of, types))))
    return tuple(collectives)


def _bytes_of(types: str) -> int:
    return sum(
        BYTES.get(name, 4) * math.prod(int(d) for d in dims.split(",") if d)
        for name, dims in re.findall(r"(\w+)\[([\d,]*)\]", types)
    )


def find_quadratic(text: str, model: ModelConfig, length: int) -> tuple[str, ...]:
    """Buffer types whose last two dims are both the sequence (or one more, for an extra key), padded to tiles or not."""
    lengths = {length + extra for extra in (0, 1)}
    lengths |= {-(-length // tile) * tile for length in tuple(lengths) for tile in (128, 256, 512)}
    own = {model.d_model, model.d_ff, model.vocab_size}
    buffers = {
        f"{name}[{dims}]"
        for name, dims in re.findall(r"(\w+)\[([\d,]+)\]", text)
        if len(sizes := [int(d) for d in dims.split(",")]) >= 2
        and all(size in lengths - own for size in sizes[-2:])
    }
    return tuple(sorted(buffers))
