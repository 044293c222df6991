"""Where the weights of a model come from, one group (embedding, layer, head) at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sysout_jax.config import ModelConfig
from sysout_jax.models import parameter_shapes


class WeightSource(Protocol):
    """Gives the nested parameters below a top-level name (`embed`, `layer_3`, `final_norm`, `lm_head`)."""

    def read(self, group: str, dtype: Any) -> dict:
        """Host or device arrays of one group, cast to `dtype`. A lazy source reads them now and keeps nothing."""
        ...


class StoredWeights(WeightSource, Protocol):
    """Weights that lie on disk."""

    @property
    def stored_dtype(self) -> str:
        """The dtype that practically all of them are stored in."""
        ...


class InMemory:
    """Parameters that are already here."""

    def __init__(self, params: dict, stored_as: Mapping[str, str] | None = None):
        self._params = params
        self.stored_as = dict(stored_as or {})
        """Of the file that they come from, see `LanguageModel.stored_as`."""

    def read(self, group: str, dtype: Any) -> dict:
        return _cast(self._params[group], dtype)


def _cast(tree: dict, dtype: Any) -> dict:
    # jax has no float64 unless asked for it
    wide = np.dtype(dtype) == np.float64
    return {
        key: _cast(value, dtype)
        if isinstance(value, dict)
        else (np.asarray(value) if wide else value).astype(dtype)
        for key, value in tree.items()
    }


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter under its path (`layer_0/mlp/up_proj/kernel`)."""
    return {k: v.shape for k, v in flatten_dict(parameter_shapes(config), sep="/").items()}


def groups(config: ModelConfig) -> list[str]:
    """The top-level parameter names in the order in which a forward pass needs them."""
    names = list(parameter_shapes(config))
    layers = [f"layer_{l}" for l in range(config.num_layers)]
    before = [name for name in names if name in ("embed", "positions")]
    return before + layers + [name for name in names if name not in before and name not in layers]


def nest(flat: dict[str, np.ndarray]) -> dict:
    """`{"a/b": x}` to `{"a": {"b": x}}`."""
    return unflatten_dict(flat, sep="/")
