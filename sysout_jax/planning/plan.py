"""What a training or analysis step would need on a TPU slice that is not there: compiled ahead of time by libtpu on a CPU host.

The program is the real one, Pallas kernels included; memory and collectives are those of its executable.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh

from sysout_jax.attention import attention_spec, resolve_kernel
from sysout_jax.engine import STEP_TOKENS, block_step
from sysout_jax.errors import InputError
from sysout_jax.models import build, parameter_count, parameter_shapes
from sysout_jax.planning.costs import Collective, count_products, find_collectives, find_quadratic
from sysout_jax.platform import compiling_for
from sysout_jax.sharding import BATCH, batch_shards, lay, make_mesh, parameter_specs, place
from sysout_jax.statistics.collect import ObserveStatistics
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.metrics import flops_per_token
from sysout_jax.training.step import make_program

GIB = 2**30
#: Memory of a chip in bytes, from Google's data sheets, by the first part of a topology's name.
CHIP_MEMORY = {"v4": 32 * GIB, "v5e": 16 * GIB, "v5p": 95 * GIB, "v6e": 32 * GIB}
MEGACORE = ("v4", "v5p")


@dataclass(frozen=True)
class Plan:
    """One compiled step. Bytes and FLOPs are per chip."""

    step: str  # what was compiled
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
    model_flops: (
        float  # `flops_per_token`, of which forward is a third; causal attention counted in full
    )
    bytes_accessed: float  # XLA's estimate; bodies of loops once
    collectives: tuple[Collective, ...]
    quadratic: tuple[str, ...]  # types of buffers whose last two dims both span the sequence

    @property
    def memory(self) -> int:
        return self.arguments + self.temporaries + self.code

    @property
    def fits(self) -> bool:
        return self.memory <= self.capacity


def plan_training(config: TrainConfig, topology: str) -> Plan:
    """Compile the sharded train step of `config` for a slice such as `v5e:16x16`. Needs libtpu (extra `tpu`) and no TPU.

    Raises InputError when libtpu is missing, the topology is unknown, or the config does not divide on it.
    """
    with _compiling_for(config, topology) as (devices, mesh):
        kernel = resolve_kernel(
            config.kernel,
            config.dtype,
            spec=attention_spec(config.model, config.model.layer(0).attention, config.seq_len),
        )
        program = make_program(config, mesh)
        shape = (config.accumulate, config.batch_size // config.accumulate, config.seq_len + 1)
        batch = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=program.batch_sharding)
        traced = program.train.trace(program.shapes, batch)  # type: ignore[attr-defined]
        weights = parameter_count(program.shapes["params"], positions=False)
        flops = flops_per_token(config.model, weights, config.seq_len) * config.tokens_per_step
        return _plan("training step", config, topology, devices, mesh, kernel, traced, flops)


def plan_analysis(config: TrainConfig, topology: str) -> Plan:
    """The same for what `so.collect` does to the model's sequences in one layer, in float32: the step of the layer-wise engine.

    Arguments are one layer of weights, the next one on its way, and the hidden states of as many sequences as one step takes.
    """
    with (
        _compiling_for(config, topology) as (devices, mesh),
        jax.default_matmul_precision("highest"),
    ):
        block = build(config.model, "float32", kernel="blockwise").block(0)
        layer = lay({"layer_0": parameter_shapes(config.model)["layer_0"]}, mesh)
        params = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=sharding),
            layer,
            place(parameter_specs(layer, mesh), mesh),
        )["layer_0"]
        shards, length = batch_shards(), config.seq_len
        sequences = shards * max(STEP_TOKENS // length, 1)
        x_BxTxD = jax.ShapeDtypeStruct(
            (sequences, length, config.model.d_model), jnp.float32, sharding=place(BATCH, mesh)
        )
        traced = block_step.trace(block, ObserveStatistics(block.spec), None, params, x_BxTxD, None)
        weights = parameter_count(layer)
        one_layer = dataclasses.replace(config.model, num_layers=1)
        flops = flops_per_token(one_layer, weights, length) / 3  # forward only
        step = f"analysis of one layer, {sequences} sequences at once"
        flops *= sequences * length
        of_layer = _plan(step, config, topology, devices, mesh, block.kernel, traced, flops)
    coming = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(params)
    )
    return dataclasses.replace(of_layer, arguments=of_layer.arguments + coming)


@contextmanager
def _compiling_for(config: TrainConfig, topology: str) -> Iterator[tuple[list, Mesh]]:
    devices = _devices(topology)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices)
    with compiling_for("tpu"), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield devices, mesh


def _plan(
    step: str,
    config: TrainConfig,
    topology: str,
    devices: list,
    mesh: Mesh,
    kernel: str,
    traced: Any,
    model_flops: float,
) -> Plan:
    compiled = traced.lower().compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    return Plan(
        step=step,
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
        program_flops=count_products(traced.jaxpr) / len(devices),
        model_flops=model_flops / len(devices),
        bytes_accessed=float(compiled.cost_analysis().get("bytes accessed", math.nan)),
        collectives=find_collectives(text),
        quadratic=find_quadratic(text, config.model, config.seq_len),
    )


def _devices(topology: str) -> list:
    family = topology.split(":")[0]
    if family not in CHIP_MEMORY or not re.fullmatch(r"\w+:\d+(x\d+)+", topology):
        raise InputError(
            f"topology {topology}: expected one of {', '.join(CHIP_MEMORY)} and its shape, for example v5e:16x16"
        )
    # libtpu asks the machine for these when it starts; any valid value will do, the topology is named below
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault(
        "ALLOW_MULTIPLE_LIBTPU_LOAD", "1"
    )  # nothing is driven, so two may be open
    try:
        description = topologies.get_topology_desc(
            platform="tpu",
            topology_name=topology,
            # two cores of a chip that programs see as one device
            chip_config_name="megacore" if family in MEGACORE else "default",
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"topology {topology}: not available ({reason}); pip install 'sysout_jax[tpu]' and check the shape"
        ) from None
    return list(description.devices)
