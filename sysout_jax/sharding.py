"""Devices: one mesh of data × fsdp × tensor, and ONE table that says how arrays lie on it. Models never mention devices.

`data` copies the parameters and splits the batch; `fsdp` splits the batch and stores every parameter in parts; `tensor` splits
heads, MLP channels and the vocabulary. Attention and the loss run per device (`per_device`), because their loops over blocks must not be
cut by the compiler; everything else is partitioned by the compiler from the table.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sysout_jax.checks import Whole, check_fields
from sysout_jax.config import ModelConfig
from sysout_jax.errors import InputError
from sysout_jax.processes import all_devices

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
BATCH = P(BATCH_AXES)  # leading axis of tokens and activations

#: Parameter path → how its dims are split; the first match with as many dims holds.
RULES: tuple[tuple[str, P], ...] = (
    (r"embed/embedding", P("tensor", "fsdp")),  # (V, D)
    (r"positions/embedding", P(None, "fsdp")),  # (context, D)
    (r"lm_head/kernel", P("fsdp", "tensor")),  # (D, V)
    (r"/(q|k|v|qkv|gate|up)_proj/kernel", P("fsdp", "tensor")),  # (D, heads or channels)
    (r"(q|k|v|qkv|gate|up)_proj/bias", P("tensor")),
    (r"qkv_proj/kernel", P("fsdp", None, "tensor")),  # (D, 3, heads), see `lay`
    (r"qkv_proj/bias", P(None, "tensor")),  # (3, heads)
    (r"(o|down)_proj/kernel", P("tensor", "fsdp")),  # (heads or channels, D)
    (r"(scale|out_gate)_proj/kernel", P("fsdp", "tensor")),  # (D, H), or (D, heads)
    (r"scale_proj/bias", P("tensor")),
    (r"(k|v)_extra", P("tensor", None)),  # (H, Dh)
    (r"(k|v)_extra", P(None, "tensor", None)),  # (M, K, Dh)
    (r"attn/sink", P("tensor")),  # (H,)
)
#: What every device holds whole.
COPIED = (
    r"(attn_|mlp_|final_|q_|k_|post_)norm/(scale|bias)",
    r"lm_head/bias",
    r"(o|down)_proj/bias",
    r"_proj/input_(kept|scale)",  # of quantised inputs
    r"mlp/(router|router_bias|shared_gate)",
)
FUSED = ("qkv_proj", 3)  # the one linear layer whose outputs are several equal parts side by side


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many ways the devices split the batch (data, fsdp), the parameters (fsdp) and the heads (tensor)."""

    data: int = -1
    """-1: all devices that the others leave."""
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        check_fields(self, {axis: Whole(-1) for axis in AXES}, "mesh.")


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh over `devices` (default: all of all processes). One axis may be -1: what the others leave.

    Raises InputError when the axes do not multiply to the number of devices.
    """
    available = list(all_devices() if devices is None else devices)
    sizes = [data, fsdp, tensor]
    given = f"mesh data={data} fsdp={fsdp} tensor={tensor}"
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise InputError(f"{given}: expected positive sizes, at most one of them -1")
    rest = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        if len(available) % rest:
            raise InputError(f"{given}: {len(available)} devices do not divide by {rest}")
        sizes[sizes.index(-1)] = len(available) // rest
    if math.prod(sizes) > len(available):
        raise InputError(
            f"{given}: needs {math.prod(sizes)} devices, there are {len(available)}; make the mesh smaller"
        )
    if math.prod(sizes) < len(available):
        raise InputError(
            f"{given}: uses {math.prod(sizes)} of {len(available)} devices; set one axis to -1 to use all"
        )
    kinds = (jax.sharding.AxisType.Auto,) * len(AXES)
    try:
        return jax.make_mesh(tuple(sizes), AXES, kinds, devices=available)
    except NotImplementedError:  # an axis of the mesh is only a part of one of the slice's
        laid = create_device_mesh(tuple(sizes), available, allow_split_physical_axes=True)
        return Mesh(laid, AXES, axis_types=kinds)


def check_divisible(config: ModelConfig, batch_size: int, mesh: Mesh) -> None:
    """InputError when the batch, heads, channels or vocabulary cannot be cut as the mesh asks."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % shards:
        raise InputError(
            f"batch of {batch_size} sequences does not divide by data × fsdp = {shards}; "
            f"make it a multiple of {shards}"
        )
    tensor = mesh.shape["tensor"]
    for field in ("num_heads", "num_kv_heads", "d_ff", "vocab_size"):
        if getattr(config, field) % tensor:
            raise InputError(
                f"{field} {getattr(config, field)} does not divide by tensor = {tensor}; choose a tensor "
                "size that divides it"
            )


def parameter_specs(shapes: dict, mesh: Mesh) -> dict:
    """The same nested dict with a PartitionSpec per leaf. An axis is dropped where it does not divide the dim.

    Raises KeyError for a parameter that neither `RULES` nor `COPIED` knows.
    """

    def spec(path: str, shape: tuple[int, ...]) -> P:
        for pattern, rule in RULES:
            if len(rule) == len(shape) and re.search(pattern + "$", path):
                fits = [
                    axis if axis is None or size % mesh.shape[axis] == 0 else None
                    for axis, size in zip(rule, shape, strict=True)
                ]
                return P(*fits)
        if any(re.search(pattern + "$", path) for pattern in COPIED):
            return P()
        raise KeyError(f"{path} {shape}: no sharding rule; add one, or list it as copied")

    flat = flatten_dict(shapes, sep="/")
    return unflatten_dict({path: spec(path, leaf.shape) for path, leaf in flat.items()}, sep="/")


def lay(tree: Any, mesh: Mesh | None) -> Any:
    """Parameters, or whatever holds arrays by their paths, as they lie on a mesh: where `tensor` cuts heads, a fused (D, 3F) is (D, 3, F).

    Cut as (D, 3F), the parts of a device would be no heads of its q, k and v, and every layer would send all of them around. Leaves are
    arrays or shapes; files keep (D, 3F).
    """
    if mesh is None or mesh.shape["tensor"] == 1:
        return tree
    name, parts = FUSED

    def placed(path: tuple, leaf: Any) -> Any:
        keys = [getattr(key, "key", None) for key in path[-2:]]
        if keys not in ([name, "kernel"], [name, "bias"]):
            return leaf
        shape = (*leaf.shape[:-1], parts, leaf.shape[-1] // parts)
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(shape, leaf.dtype)
        return leaf.reshape(shape)

    return jax.tree_util.tree_map_with_path(placed, tree)


@cache
def _reshaper(shape: tuple[int, ...], sharding: Any) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda array: array.reshape(shape), out_shardings=sharding)


def relaid(tree: Any, shapes: Any) -> Any:
    """Arrays on a mesh brought to the shapes and shardings of `shapes`; what has its shape already is not copied."""

    def laid(array: jax.Array, want: jax.ShapeDtypeStruct) -> jax.Array:
        if array.shape == want.shape:
            return array
        return _reshaper(want.shape, want.sharding)(array)

    return jax.tree.map(laid, tree, shapes)


def place(specs: Any, mesh: Mesh) -> Any:
    """PartitionSpecs to shardings on a mesh."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda leaf: isinstance(leaf, P)
    )


def put(params: dict, mesh: Mesh) -> dict:
    """Parameters that every process holds in whole, laid on the mesh by `RULES`; top-level names as in a model."""
    shardings = place(parameter_specs(params, mesh), mesh)

    def cut(leaf: Any, sharding: NamedSharding) -> jax.Array:
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(cut, params, shardings)


def current_mesh() -> Any:
    """The mesh set by `jax.set_mesh` if it spreads over several devices, else None; also None within `per_device`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or not set(AXES) <= set(mesh.axis_names):
        return None
    return None if jax.sharding.AxisType.Manual in mesh.axis_types else mesh


def batch_shards() -> int:
    """Parts that the leading axis of a batch is cut into on the current mesh."""
    mesh = current_mesh()
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


def constrain(x: jax.Array, spec: P) -> jax.Array:
    """Tell the compiler how an activation lies; nothing without a mesh."""
    return x if current_mesh() is None else jax.lax.with_sharding_constraint(x, spec)


def whole_rows(tables: dict) -> dict:
    """Embedding tables laid so that rows are looked up in whole: one cut along D would make the compiler copy the whole batch of rows."""
    specs = {"embed": P("tensor", None), "positions": P()}
    return {
        name: jax.tree.map(lambda table, name=name: constrain(table, specs[name]), tables[name])
        for name in tables
    }


def per_device(function: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """Run `function` on each device's own part of its arguments; the function itself without a mesh."""
    mesh = current_mesh()
    if mesh is None:
        return function
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
