"""Compression methods as values in one dict, and the model under one of them.

Compressed are the kernels of all linear layers of all blocks: q, k, v (one matrix where they are stored as one), o, gate, up, down, and
`scale_proj` of context-aware scaling. Embedding and head stay as they are unless asked for. Biases and norms always do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sysout_jax.checks import Flag, Real, Rule, Whole, check_fields
from sysout_jax.compress.block_formats import BlockFormat, block_weights
from sysout_jax.compress.cache import CacheSets, QuantisedCache
from sysout_jax.compress.inputs import Calibration, QuantisedInputs
from sysout_jax.compress.prune import count_ties, find_threshold, prune, prune_matrix, pruned_count
from sysout_jax.compress.quantise import Granularity, absmax_scale, absmax_weights
from sysout_jax.compress.smooth import smooth
from sysout_jax.language_model import LanguageModel
from sysout_jax.models.spec import Matrix
from sysout_jax.weights import groups


@dataclass(frozen=True)
class Method:
    """How weights and inputs of linear layers are compressed; the parts that are None or 0 are left out."""

    label: str
    bits: int = 0  # of weights, on a grid of integers; 0: left as they are, unless they have a `block_format`
    granularity: Granularity = "tensor"
    inputs: str = ""  # "static": one calibrated scale per tensor; "token": one per token
    smooth: str = (
        ""  # SmoothQuant into the "norms", or into the norms and "up" before the down projection
    )
    prune: str = ""  # smallest weights of each "matrix" or of the whole "model"
    block_format: BlockFormat | None = None  # four-bit floats, in place of a grid
    left_out: str = ""  # of the calibration of static inputs: a name of LEFT_OUT
    kept_weights: str = ""  # outlier weights in full precision: "out of scale" or "in scale"
    cache_bits: int = 0  # of keys and values; 0: in full precision
    cache_sets: CacheSets = "tensor"
    cache_kept: int = 0  # first tokens whose keys and values stay in full precision


INPUT_BITS = 8
#: Tokens of the calibration text that enter no static scale; where a text holds them, their inputs are clipped to it.
LEFT_OUT = {
    "first": "the first token of every window, which is BOS where there is one",
    "outliers": "all tokens that hold an activation outlier in some layer",
}


def _cache_methods() -> dict[str, Method]:
    """Keys and values at 8, 4 and 2 bits, all of them or all but those of the first token."""
    sets: dict[CacheSets, str] = {"tensor": "per tensor", "channel": "keys per channel"}
    return {
        f"kv{bits}_{name}{'_first' if kept else ''}": Method(
            f"KV{bits} {words}{', first kept' if kept else ''}",
            cache_bits=bits,
            cache_sets=name,
            cache_kept=kept,
        )
        for bits in (8, 4, 2)
        for name, words in sets.items()
        for kept in (0, 1)
    }


METHODS: dict[str, Method] = {
    "w8_tensor": Method("W8 per tensor", 8),
    "w8_channel": Method("W8 per channel", 8, "channel"),
    "w8_group": Method("W8 per group", 8, "group"),
    "w4_tensor": Method("W4 per tensor", 4),
    "w4_channel": Method("W4 per channel", 4, "channel"),
    "w4_group": Method("W4 per group", 4, "group"),
    "w4_group_kept": Method(
        "W4 per group, outlier weights kept", 4, "group", kept_weights="out of scale"
    ),
    "w4_group_kept_in_scale": Method(
        "W4 per group, kept but in the scale", 4, "group", kept_weights="in scale"
    ),
    "mxfp4": Method("MXFP4", block_format="mxfp4"),
    "nvfp4": Method("NVFP4", block_format="nvfp4"),
    "w8a8_static": Method("W8A8 static", 8, "channel", "static"),
    "w8a8_tensor": Method("W8A8 static per tensor", 8, "tensor", "static"),
    "w8a8_first": Method(
        "W8A8 static per tensor, first left out", 8, "tensor", "static", left_out="first"
    ),
    "w8a8_outliers": Method(
        "W8A8 static per tensor, outliers left out", 8, "tensor", "static", left_out="outliers"
    ),
    "w8a8_token": Method("W8A8 per token", 8, "channel", "token"),
    "smooth_static": Method("SmoothQuant static", 8, "channel", "static", "norms"),
    "smooth_token": Method("SmoothQuant per token", 8, "channel", "token", "norms"),
    "smooth_down": Method("SmoothQuant + down, static", 8, "channel", "static", "up"),
    "prune_matrix": Method("pruned per matrix", prune="matrix"),
    "prune_model": Method("pruned globally", prune="model"),
    **_cache_methods(),
}
#: Run where no others are named: one row or two for every question, as each is a pass through the model.
USUAL_METHODS = (
    "w8_tensor",
    "w8_channel",
    "w4_group",
    "w4_group_kept",
    "mxfp4",
    "nvfp4",
    "w8a8_static",
    "w8a8_tensor",
    "w8a8_outliers",
    "w8a8_token",
    "smooth_static",
    "prune_matrix",
    "kv4_channel",
    "kv4_channel_first",
)


SHARE = Real(0, 1)


@dataclass(frozen=True)
class Settings:
    """Numbers that methods need."""

    group_size: int = 64
    alpha: float = 0.5
    sparsity: float = 0.5
    embeddings: bool = (
        False  # compress embedding, positions and head as well; their rows are channels
    )

    def __post_init__(self) -> None:
        rules: dict[str, Rule] = {
            "group_size": Whole(),
            "alpha": SHARE,
            "sparsity": SHARE,
            "embeddings": Flag(),
        }
        check_fields(self, rules)


@dataclass(frozen=True)
class Kept:
    """Part of one linear layer that stays in full precision: input channels, output channels, single weights (inputs × outputs)."""

    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    block: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    def mask(self, shape: tuple[int, int]) -> np.ndarray:
        """(I, O) bool."""
        kept = np.zeros(shape, bool)
        kept[list(self.inputs)] = True
        kept[:, list(self.outputs)] = True
        kept[np.ix_(*map(list, self.block))] = True
        return kept


#: (layer, path of a linear layer in its block) → what is kept of it
Keep = Mapping[tuple[int, str], Kept]


@dataclass(frozen=True, eq=False)
class Compressor:
    """Makes compressed models of one model. `calibration` is needed by methods with static inputs and SmoothQuant."""

    lm: LanguageModel
    settings: Settings = field(default_factory=Settings)
    calibration: Calibration | None = None

    def model(
        self, method: Method, layers: tuple[int, ...] | None = None, keep: Keep | None = None
    ) -> LanguageModel:
        """The model under `method`, in all or only some layers, with parts kept in full precision.

        ValueError where the calibration is missing, or something is to be kept while pruning.
        """
        if (method.inputs == "static" or method.smooth) and self.calibration is None:
            raise ValueError(f"{method.label} needs a calibration")
        if method.prune and keep:
            raise ValueError("parts are kept when quantising, not when pruning")
        chosen = range(self.lm.num_layers) if layers is None else layers
        edits: dict[str, Callable[[dict], dict]]
        if method.prune:
            names = [f"layer_{layer}" for layer in chosen]
            edits = self._pruning(method, names + (self._ends() if layers is None else []))
        else:
            edits = {
                f"layer_{layer}": partial(self._quantise_layer, method, layer, keep or {})
                for layer in chosen
            }
            if layers is None:
                edits |= {name: partial(self._quantise_end, method) for name in self._ends()}
        edited = self.lm.with_edits(edits)
        if method.inputs:
            edited = edited.wrapped(partial(QuantisedInputs, bits=INPUT_BITS))
        if method.cache_bits:
            cache = partial(
                QuantisedCache,
                bits=method.cache_bits,
                sets=method.cache_sets,
                kept=method.cache_kept,
            )
            edited = edited.wrapped(cache)
        return edited

    def _ends(self) -> list[str]:
        """Groups with matrices outside the blocks, where they are to be compressed."""
        if not self.settings.embeddings:
            return []
        return [n for n in groups(self.lm.config) if n in ("embed", "positions", "lm_head")]

    def _quantise_layer(self, method: Method, layer: int, keep: Keep, params: dict) -> dict:
        maxima = self.calibration[layer] if self.calibration else {}
        if method.smooth:
            params, maxima = smooth(
                self.lm.config.layer(layer),
                params,
                maxima,
                self.settings.alpha,
                method.smooth == "up",
            )
        flat = flatten_dict(params, sep="/")
        matrices = {matrix.path: matrix for matrix in self.lm.config.layer(layer).matrices}
        for name in linear_layers(params):
            kept = keep.get((layer, name), Kept())
            kernel = flat[f"{name}/kernel"]
            flat[f"{name}/kernel"] = self._rounded(method, kernel, kept, matrices.get(name))
            if method.inputs:
                free = ~np.isin(np.arange(len(kernel)), kept.inputs)
                flat[f"{name}/input_kept"] = ~free
                if method.inputs == "static":
                    largest = np.max(maxima[name], where=free, initial=0.0)
                    flat[f"{name}/input_scale"] = absmax_scale(jnp.float32(largest), INPUT_BITS)
        return unflatten_dict(flat, sep="/")

    def _rounded(self, method: Method, kernel, kept: Kept, matrix: Matrix | None = None):
        """Every expert's matrix by itself; as it is where a method leaves weights alone."""
        if not method.bits and method.block_format is None:
            return kernel
        count, axis = (1, 0) if matrix is None else (matrix.experts, matrix.expert_axis)
        mask = kept.mask(kernel.shape) if kept != Kept() else None
        masks = [None] * count if mask is None else np.split(mask, count, axis)

        def rounded_part(part, mask):
            mask = None if mask is None else jnp.asarray(mask)
            if method.block_format is not None:
                return block_weights(part, mask, kind=method.block_format)
            return absmax_weights(
                part,
                mask,
                bits=method.bits,
                granularity=method.granularity,
                group_size=self.settings.group_size,
                kept_in_scale=method.kept_weights == "in scale",
            )

        parts = jnp.split(jnp.asarray(kernel), count, axis)
        rounded = [rounded_part(part, mask) for part, mask in zip(parts, masks, strict=True)]
        return rounded[0] if count == 1 else jnp.concatenate(rounded, axis)

    def _quantise_end(self, method: Method, params: dict) -> dict:
        return {
            key: self._rounded(method, value, Kept())
            if key == "kernel"
            else self._rounded(method, value.T, Kept()).T  # a table of rows: each is a channel
            for key, value in params.items()
        }

    def _pruning(self, method: Method, names: list[str]) -> dict[str, Callable[[dict], dict]]:
        sparsity = self.settings.sparsity
        if method.prune == "matrix":

            def cut_own(path: str, weights: np.ndarray) -> np.ndarray:
                return prune_matrix(weights, sparsity)

            return {name: partial(_edit_matrices, cut_own) for name in names}

        def matrices() -> Iterator[tuple[tuple[str, str], np.ndarray]]:
            for name in names:
                flat = flatten_dict(self.lm.read(name), sep="/")
                yield from (((name, path), np.asarray(flat[path])) for path in matrix_paths(flat))

        count = pruned_count(sum(w.size for _, w in matrices()), sparsity)
        threshold = find_threshold(lambda: (w for _, w in matrices()), count)
        before, seen = {}, 0
        for place, weights in matrices():
            before[place] = seen
            seen += count_ties(weights, threshold)

        def cut(name: str, path: str, weights: np.ndarray) -> np.ndarray:
            return prune(weights, threshold, before[name, path])

        return {name: partial(_edit_matrices, partial(cut, name)) for name in names}


def linear_layers(params: dict) -> list[str]:
    """Paths of the linear layers of a block."""
    return [
        k.removesuffix("/kernel") for k in flatten_dict(params, sep="/") if k.endswith("/kernel")
    ]


def matrix_paths(flat: dict) -> list[str]:
    """Paths of the matrices among those of a group: kernels, or a table of embeddings."""
    return sorted(k for k in flat if k.split("/")[-1] in ("kernel", "embedding"))


def _edit_matrices(edit: Callable[[str, np.ndarray], np.ndarray], params: dict) -> dict:
    flat = flatten_dict(params, sep="/")
    edited = {path: edit(path, np.asarray(flat[path])) for path in matrix_paths(flat)}
    return unflatten_dict(flat | edited, sep="/")


def named(method: Method, settings: Settings) -> str:
    """A method's label with the numbers it was run with, and whether embeddings and head are compressed too."""
    label = method.label
    if method.prune:
        label = f"{100 * settings.sparsity:g}% {label}"
    elif method.granularity == "group":
        label = label.replace("per group", f"per group of {settings.group_size}")
    weights = method.bits or method.prune or method.block_format
    return f"{label}, with embeddings" if settings.embeddings and weights else label
