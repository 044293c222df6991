"""A prefix absorbed into a model: its keys and values, taken once from the model itself, become constants of every layer.

Attention over [prefix, text] is softmax over the prefix's keys and the text's. So a model of the variant attention_bias that has the prefix's m keys
as `extra_keys` computes on the text alone what the original computes on [prefix, text]: exactly, by algebra. What the prefix's
tokens carried through the residual stream, outliers above all, is no longer computed. Related: StreamingLLM (Xiao et al. 2023), CushionCache
(Son et al. 2024), PrefixQuant (Chen et al. 2024).

The text begins at position 0 again. Rotary keys are therefore turned back by m positions, and a table of learned positions loses its first m rows;
ALiBi's distances and windows count the extra keys at −m … −1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

from sysout_jax.config import ModelConfig
from sysout_jax.engine import Stream
from sysout_jax.errors import InputError
from sysout_jax.language_model import LanguageModel
from sysout_jax.models.layers import rotary_frequencies
from sysout_jax.models.spec import Rotary


@dataclass(frozen=True, eq=False)
class PrefixKeys:
    """Keys and values (m, K, Dh) of a prefix in every layer, float32, the keys turned as at the positions 0 … m−1."""

    prefix: tuple[int, ...]
    keys: tuple[np.ndarray, ...]
    values: tuple[np.ndarray, ...]


def refusal(config: ModelConfig) -> str | None:
    """Why no prefix can be absorbed into a model, or None."""
    if config.attention != "default":
        return f"its attention is {config.attention}, not default: its softmax is not that over [prefix, text]"
    for l in range(config.num_layers):
        rotary = config.layer(l).rotary
        scaling = None if rotary is None else rotary.scaling
        if scaling is not None and scaling.kind == "longrope":
            return "its rotary frequencies depend on the length of the text (longrope), so no key is a constant"
        if scaling is not None and scaling.query_growth:
            return "its queries grow with their absolute positions, which a prefix shifts"
    return None


def check_absorbable(lm: LanguageModel, prefix: Sequence[int]) -> None:
    """InputError for a model that takes no prefix, and for one that is empty, too long or no tokens of it."""
    if reason := refusal(lm.config):
        raise InputError(f"{lm.name}: no prefix can be absorbed, {reason}")
    if not len(prefix):
        raise InputError("the prefix has no token; expected at least one")
    if len(prefix) >= lm.config.context_length:
        raise InputError(
            f"a prefix of {len(prefix)} tokens leaves nothing of the model's context of {lm.config.context_length}"
        )
    lm.check_tokens([list(prefix)])


def prefix_keys(lm: LanguageModel, prefix: Sequence[int]) -> PrefixKeys:
    """What a prefix leaves for the text after it: one pass over its tokens. InputError as `check_absorbable`."""
    check_absorbable(lm, prefix)
    layers = [seen for _, _, seen in Stream(lm, [list(prefix)]).layers(_keys_and_values)]
    return PrefixKeys(
        tuple(int(token) for token in prefix),
        tuple(np.asarray(seen["k"][0], np.float32) for seen in layers),
        tuple(np.asarray(seen["v"][0], np.float32) for seen in layers),
    )


def absorbed(lm: LanguageModel, held: PrefixKeys) -> LanguageModel:
    """The model that reads a text as `lm` reads it after the prefix; its context is shorter by the prefix. Weights are read when needed, as before."""
    count = len(held.prefix)
    edits: dict[str, Callable[[dict], dict]] = {
        f"layer_{l}": partial(
            _with_keys, turned(keys, lm.config.layer(l).rotary, -count), held.values[l]
        )
        for l, keys in enumerate(held.keys)
    }
    if lm.config.ends().positions is not None:
        edits["positions"] = partial(_without_first, count)
    config = dataclasses.replace(
        lm.config,
        attention="attention_bias",
        extra_keys=count,
        context_length=lm.config.context_length - count,
    )
    return dataclasses.replace(lm.with_edits(edits), config=config, name=f"{lm.name}, absorbed")


def turned(keys_MxKxDh: np.ndarray, rotary: Rotary | None, positions: int) -> np.ndarray:
    """Rotated keys as they would be so many positions further on, float32. Without rotary positions the keys themselves."""
    if rotary is None:
        return keys_MxKxDh
    half = rotary.dims // 2
    angle = positions * rotary_frequencies(rotary.dims, rotary.theta, rotary.scaling).astype("d")
    first, second = keys_MxKxDh[..., :half], keys_MxKxDh[..., half : 2 * half]
    cos, sin = np.cos(angle), np.sin(angle)
    parts = first * cos - second * sin, second * cos + first * sin, keys_MxKxDh[..., 2 * half :]
    return np.concatenate(parts, axis=-1).astype(np.float32)


def _keys_and_values(x_in, taps, extra) -> dict[str, jax.Array]:
    return {name: taps[name] for name in ("k", "v")}


def _with_keys(keys_MxKxDh: np.ndarray, values_MxKxDh: np.ndarray, params: dict) -> dict:
    dtype = jax.tree.leaves(params["attn"])[0].dtype
    own = {"k_extra": keys_MxKxDh.astype(dtype), "v_extra": values_MxKxDh.astype(dtype)}
    return params | {"attn": params["attn"] | own}


def _without_first(count: int, params: dict) -> dict:
    """Of a table of positions, so that the text's first one is row `count`. Rows before position 0 (OPT) move along with it."""
    return params | {"embedding": params["embedding"][count:]}
