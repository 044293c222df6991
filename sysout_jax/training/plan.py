"""What a training step would need on a TPU slice that is not there: compiled ahead of time by libtpu on a CPU host.

The program is the real one, Pallas kernels included; memory and collectives are those of its executable.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from sysout_jax.attention import resolve_kernel
from sysout_jax.errors import InputError
from sysout_jax.platform import compiling_for
from sysout_jax.sharding import make_mesh
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.forward import parameter_count
from sysout_jax.training.metrics import flops_per_token
from sysout_jax.training.step import Program, make_program

GIB = 2**30
#: Memory of a chip in bytes, from Google's data sheets, by the first part of a topology's name.
CHIP_MEMORY = {"v4": 32 * GIB, "v5e": 16 * GIB, "v5p": 95 * GIB, "v6e": 32 * GIB}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "pred": 1}


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind in the program text; those inside a loop are counted once."""

    kind: str
    count: int
    bytes: int  # of results, per chip


@dataclass(frozen=True)
class Plan:
    """One compiled step. Bytes and FLOPs are per chip."""

    topology: str
    chips: int
    device_kind: str
    mesh: dict[str, int]
    kernel: str
    arguments: int  # parameters, optimiser state, batch
    temporaries: int
    code: int
    capacity: int
    program_flops: (
        float  # matrix products of the traced program, spread evenly over chips; loops in full
    )
    model_flops: float  # 6 N + 12 L D T per token, with causal attention counted in full
    bytes_accessed: float  # XLA's estimate; bodies of loops once
    collectives: tuple[Collective, ...]
    quadratic: tuple[str, ...]  # types of buffers whose last two dims both span the sequence

    @property
    def memory(self) -> int:
        return self.arguments + self.temporaries + self.code

    @property
    def fits(self) -> bool:
        return self.memory <= self.capacity


def plan(config: TrainConfig, topology: str) -> Plan:
    """Compile the sharded train step of `config` for a slice such as `v5e:16x16`. Needs libtpu (extra `tpu`) and no TPU.

    Raises InputError when libtpu is missing, the topology is unknown, or the config does not divide on it.
    """
    devices = _devices(topology)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices)
    with compiling_for("tpu"), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        program = make_program(config, mesh)
        batch = _batch(config, program)
        traced = program.train.trace(program.shapes, batch)  # type: ignore[attr-defined]
        flops = count_products(traced.jaxpr)
        compiled = traced.lower().compile()
        kernel = resolve_kernel(config.kernel, config.dtype, variant=config.model.attention)
    memory, text = compiled.memory_analysis(), compiled.as_text()
    weights = parameter_count(program.shapes["params"], positions=False)
    tokens = config.tokens_per_step
    return Plan(
        topology=topology,
        chips=len(devices),
        device_kind=devices[0].device_kind,
        mesh=dict(mesh.shape),
        kernel=kernel,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        capacity=CHIP_MEMORY[topology.split(":")[0]],
        program_flops=flops / len(devices),
        model_flops=flops_per_token(config.model, weights, config.seq_len) * tokens / len(devices),
        bytes_accessed=float(compiled.cost_analysis().get("bytes accessed", math.nan)),
        collectives=find_collectives(text),
        quadratic=find_quadratic(text, config),
    )


def _devices(topology: str) -> list:
    family = topology.split(":")[0]
    if family not in CHIP_MEMORY or not re.fullmatch(r"\w+:\d+(x\d+)+", topology):
        raise InputError(
            f"--topology {topology}: expected one of {', '.join(CHIP_MEMORY)} and its shape, for example v5e:16x16"
        )
    # libtpu asks the machine for these when it starts; any valid value will do, the topology is named below
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault(
        "ALLOW_MULTIPLE_LIBTPU_LOAD", "1"
    )  # nothing is driven, so two may be open
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"--topology {topology}: not available ({reason}); pip install 'sysout_jax[tpu]' and check the shape"
        ) from None
    return list(found.devices)


def _batch(config: TrainConfig, program: Program) -> jax.ShapeDtypeStruct:
    shape = (config.accumulate, config.batch_size // config.accumulate, config.seq_len + 1)
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=program.batch_sharding)


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
    found = []
    for kind in COLLECTIVES:
        types = re.findall(rf"= (\(?[^=\n]*?) {kind}(?:-start)?\(", text)
        if types:
            found.append(Collective(kind, len(types), sum(map(_bytes_of, types))))
    return tuple(found)


def _bytes_of(types: str) -> int:
    return sum(
        BYTES.get(name, 4) * math.prod(int(d) for d in dims.split(",") if d)
        for name, dims in re.findall(r"(\w+)\[([\d,]*)\]", types)
    )


def find_quadratic(text: str, config: TrainConfig) -> tuple[str, ...]:
    """Buffer types whose last two dims are both the sequence (or one more, for an extra key), padded to tiles or not."""
    lengths = {config.seq_len + extra for extra in (0, 1)}
    lengths |= {-(-length // tile) * tile for length in tuple(lengths) for tile in (128, 256, 512)}
    own = {config.model.d_model, config.model.d_ff, config.model.vocab_size}
    found = {
        f"{name}[{dims}]"
        for name, dims in re.findall(r"(\w+)\[([\d,]+)\]", text)
        if len(sizes := [int(d) for d in dims.split(",")]) >= 2
        and all(size in lengths - own for size in sizes[-2:])
    }
    return tuple(sorted(found))
