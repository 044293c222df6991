"""How parameters lie in foreign checkpoints: one small value per convention, readable in both directions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from sysout_jax.config import ModelConfig

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """A convention of storing an array.

    `shapes` gives the shapes that our shape may have there, the usual one first; `ours` turns a stored array into our
    layout (a view where possible), `theirs` ours into the stored one. Where that is only a part of a stored array, `slot` is the part
    as a view, of the shape that takes what `theirs` gives after reshaping. With an `axis` ours is made of several stored arrays, those of
    experts, side by side along it; shapes and turning are those of one.
    """

    shapes: Callable[[Shape, ModelConfig], tuple[Shape, ...]]
    ours: Callable[[np.ndarray, ModelConfig], np.ndarray]
    theirs: Callable[[np.ndarray, ModelConfig], np.ndarray]
    slot: Callable[[np.ndarray, ModelConfig], np.ndarray] | None = None
    axis: int | None = None


def _same(x: np.ndarray, config: ModelConfig) -> np.ndarray:
    return x


def _transpose(x: np.ndarray, config: ModelConfig) -> np.ndarray:
    return x.T


def _head_dim(config: ModelConfig) -> int:
    return config.layer(0).heads.head_dim


def _halves_from_pairs(x_KDhxD: np.ndarray, config: ModelConfig) -> np.ndarray:
    D, Dh = x_KDhxD.shape[1], _head_dim(config)
    if _turning(config) < Dh:
        return x_KDhxD.reshape(-1, Dh, D)[:, _dims_of_halves(config)].reshape(-1, D).T
    return x_KDhxD.reshape(-1, Dh // 2, 2, D).transpose(3, 0, 2, 1).reshape(D, -1)


def _dims_of_halves(config: ModelConfig) -> np.ndarray:
    """(Dh,) which dim of a head in neighbouring pairs is each dim of one in halves; the last ones may not turn."""
    turning = _turning(config)
    still = np.arange(turning, _head_dim(config))
    return np.concatenate([np.arange(0, turning, 2), np.arange(1, turning, 2), still])


def _halves_from_pairs_1d(x_KDh: np.ndarray, config: ModelConfig) -> np.ndarray:
    return _halves_from_pairs(x_KDh[:, None], config)[0]


def _pairs_from_halves_1d(x_KDh: np.ndarray, config: ModelConfig) -> np.ndarray:
    return _pairs_from_halves(x_KDh[None], config)[:, 0]


def _pairs_from_halves(x_DxKDh: np.ndarray, config: ModelConfig) -> np.ndarray:
    D, half = x_DxKDh.shape[0], _head_dim(config) // 2
    if _turning(config) < _head_dim(config):
        heads_KxDhxD = x_DxKDh.T.reshape(-1, 2 * half, D)
        paired = np.empty_like(heads_KxDhxD)
        paired[:, _dims_of_halves(config)] = heads_KxDhxD
        return paired.reshape(-1, D)
    return x_DxKDh.reshape(D, -1, 2, half).transpose(1, 3, 2, 0).reshape(-1, D)


def _turning(config: ModelConfig) -> int:
    rotary = config.layer(0).rotary
    return _head_dim(config) if rotary is None else rotary.dims


#: The very same array.
SAME = Form(lambda shape, config: (shape,), _same, _same)

#: torch.nn.Linear: (out, in); our kernels are (in, out).
LINEAR = Form(lambda shape, config: (shape[::-1],), _transpose, _transpose)

#: A Linear whose outputs are rotated in neighbouring pairs (2i, 2i + 1), as Meta's code does; ours turns (i, i + Dh/2).
PAIRED_LINEAR = Form(lambda shape, config: (shape[::-1],), _halves_from_pairs, _pairs_from_halves)

#: The bias of such a Linear.
PAIRED = Form(lambda shape, config: (shape,), _halves_from_pairs_1d, _pairs_from_halves_1d)

#: One vector per head, (H, Dh): the paper's code holds it as (1, H, 1, Dh), or flat with the heads side by side.
PER_HEAD = Form(
    lambda shape, config: ((1, shape[0], 1, shape[1]), (shape[0] * shape[1],), shape),
    lambda x, config: x.reshape(config.num_heads, -1),
    lambda x, config: x[None, :, None, :],
)


#: A norm's scale that is stored with the 1 that the model adds (GGUF files of Gemma).
WITH_ONE = Form(lambda shape, config: (shape,), lambda x, config: x - 1, lambda x, config: x + 1)


def fused_qkv(part: str, grouped: bool) -> Form:
    """The rows of q, k or v in one Linear, weight or bias.

    They lie as all of q, all of k, all of v; or `grouped`, for each key head its query heads, its key and its value.
    """

    def shapes(shape: Shape, config: ModelConfig) -> tuple[Shape, ...]:
        heads = config.layer(0).heads
        rows = (heads.heads + 2 * heads.kv_heads) * heads.head_dim
        return ((rows, *shape[:-1]),)

    def slot(x: np.ndarray, config: ModelConfig) -> np.ndarray:
        heads = config.layer(0).heads
        H, K, Dh = heads.heads, heads.kv_heads, heads.head_dim
        groups, count = (K, H // K) if grouped else (1, H)
        keys = K // groups
        first = {"q": 0, "k": count, "v": count + keys}[part]
        width = count if part == "q" else keys
        rows = x.reshape(groups, count + 2 * keys, Dh, *x.shape[1:])
        return rows[:, first : first + width]

    def ours(x: np.ndarray, config: ModelConfig) -> np.ndarray:
        return slot(x, config).reshape(-1, *x.shape[1:]).T

    return Form(shapes, ours, _transpose, slot)


def part_of_linear(part: int, parts: int) -> Form:
    """One of equal parts side by side along the outputs of a Linear."""

    def slot(x: np.ndarray, config: ModelConfig) -> np.ndarray:
        width = len(x) // parts
        return x[part * width : (part + 1) * width]

    def ours(x: np.ndarray, config: ModelConfig) -> np.ndarray:
        return slot(x, config).T

    def shapes(shape: Shape, config: ModelConfig) -> tuple[Shape, ...]:
        return ((parts * shape[-1], *shape[:-1]),)

    return Form(shapes, ours, _transpose, slot)


#: The Linears of experts, one after the other: into them (D, E·F), out of them (E·F, D).
INTO_EXPERTS = Form(LINEAR.shapes, _transpose, _transpose, axis=1)
OUT_OF_EXPERTS = Form(LINEAR.shapes, _transpose, _transpose, axis=0)


def alternating(part: int) -> Form:
    """Every second output of all experts, from the `part`-th on, stored as (E, D, 2F), biases as (E, 2F)."""

    def slot(x: np.ndarray, config: ModelConfig) -> np.ndarray:
        return x[..., part::2]

    def ours(x: np.ndarray, config: ModelConfig) -> np.ndarray:
        half = slot(x, config)
        return half.reshape(-1) if x.ndim == 2 else half.transpose(1, 0, 2).reshape(x.shape[1], -1)

    def theirs(x: np.ndarray, config: ModelConfig) -> np.ndarray:
        return x if x.ndim == 1 else _apart(x, config).transpose(1, 0, 2)

    def shapes(shape: Shape, config: ModelConfig) -> tuple[Shape, ...]:
        count = _expert_count(config)
        return ((count, *shape[:-1], 2 * shape[-1] // count),)

    return Form(shapes, ours, theirs, slot)


def _apart(x_DxEF: np.ndarray, config: ModelConfig) -> np.ndarray:
    return x_DxEF.reshape(len(x_DxEF), _expert_count(config), -1)


def _expert_count(config: ModelConfig) -> int:
    """Without shared ones, which lie apart."""
    experts = config.layer(0).mlp.experts
    return 1 if experts is None else experts.count


#: The Linears of all experts as one array, as GGUF has them: into them (E, F, D), out of them (E, D, F).
STACKED_INTO = Form(
    lambda shape, config: ((_expert_count(config), shape[1] // _expert_count(config), shape[0]),),
    lambda x, config: x.reshape(-1, x.shape[-1]).T,
    lambda x, config: x.T.reshape(_expert_count(config), -1, len(x)),
    axis=1,
)
STACKED_OUT_OF = Form(
    lambda shape, config: ((_expert_count(config), shape[1], shape[0] // _expert_count(config)),),
    lambda x, config: x.swapaxes(1, 2).reshape(-1, x.shape[1]),
    lambda x, config: x.reshape(_expert_count(config), -1, x.shape[-1]).swapaxes(1, 2),
    axis=0,
)

#: The biases of all experts as one array, (E, F); ours lie side by side.
STACKED_BIASES = Form(
    lambda shape, config: ((_expert_count(config), shape[0] // _expert_count(config)),),
    lambda x, config: x.reshape(-1),
    lambda x, config: x.reshape(_expert_count(config), -1),
)

#: A Linear with one output, (1, D), or its only row, (D,).
ONE_OUTPUT = Form(
    lambda shape, config: (shape[::-1], shape[:1]),
    lambda x, config: x.reshape(-1, 1),
    _transpose,
)

#: What goes out of all experts, stored as (E, F, D).
STACKED = Form(
    lambda shape, config: ((_expert_count(config), shape[0] // _expert_count(config), shape[1]),),
    lambda x, config: x.reshape(-1, x.shape[-1]),
    lambda x, config: x.reshape(_expert_count(config), -1, x.shape[-1]),
)


@dataclass(frozen=True)
class Stored:
    """Where a parameter lies in a foreign checkpoint and in which form; `otherwise` is where in files that have no `name`.

    `{e}` in the name of something that is stored apart for every expert stands for its number; `shared` is the name of the expert that all
    tokens go through, a Linear of its own.
    """

    name: str
    form: Form = SAME
    otherwise: Stored | None = None
    shared: str = ""

    def renamed(self, change: Callable[[str], str]) -> Stored:
        """The same under changed names."""
        otherwise = self.otherwise.renamed(change) if self.otherwise else None
        return replace(
            self, name=change(self.name), otherwise=otherwise, shared=change(self.shared)
        )

    def parts(self, shape: Shape, config: ModelConfig) -> dict[str, Shape]:
        """The tensors that make it up, and our shape of each; `shape` is that of the whole."""
        axis, experts = self.form.axis, config.layer(0).mlp.experts
        if axis is None or experts is None:
            return {self.name: shape}
        if "{e}" in self.name:
            names = {self.name.replace("{e}", str(e)): 1 for e in range(experts.count)}
        else:
            names = {self.name: experts.count}
        if experts.shared:
            names[self.shared] = experts.shared
        each = shape[axis] // experts.total
        return {
            name: (*shape[:axis], count * each, *shape[axis + 1 :]) for name, count in names.items()
        }

    def form_of(self, name: str) -> Form:
        """Of one of the tensors that make it up."""
        return LINEAR if self.shared and name == self.shared else self.form


def linear(name: str) -> Stored:
    """A torch.nn.Linear's weight."""
    return Stored(name, LINEAR)


def biased(ours: str, theirs: str) -> dict[str, Stored]:
    """A Linear with its bias, by the paths of both."""
    return {f"{ours}/kernel": linear(f"{theirs}.weight"), f"{ours}/bias": Stored(f"{theirs}.bias")}


def layer_norm(ours: str, theirs: str, otherwise: str = "") -> dict[str, Stored]:
    """Scale and bias of a norm; `otherwise` is its name in files that have none of that name."""
    parts = {"scale": "weight", "bias": "bias"}
    return {
        f"{ours}/{name}": Stored(
            f"{theirs}.{part}", SAME, Stored(f"{otherwise}.{part}") if otherwise else None
        )
        for name, part in parts.items()
    }


def fused(ours: str, theirs: str, grouped: bool) -> dict[str, Stored]:
    """q, k and v, with biases where there are any, in one Linear; see `fused_qkv`."""
    return {
        f"{ours}/{part}_proj/{name}": Stored(f"{theirs}.{stored}", fused_qkv(part, grouped))
        for part in "qkv"
        for name, stored in (("kernel", "weight"), ("bias", "bias"))
    }
