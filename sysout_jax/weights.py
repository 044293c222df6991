"""Where the weights of a model come from, one group (embedding, layer, head) at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import jax
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


class ReadOnce:
    """What is read of another source stays in memory, in the first dtype that it is asked for. Nobody may write into it."""

    def __init__(self, base: WeightSource, stored_as: Mapping[str, str] | None = None):
        self._base, self._dtype = base, None
        self._held: dict[str, dict] = {}
        self.stored_as = dict(stored_as or {})
        """Of the file that they come from, see `LanguageModel.stored_as`."""

    def read(self, group: str, dtype: Any) -> dict:
        self._dtype = self._dtype or np.dtype(dtype)
        if np.dtype(dtype) != self._dtype:
            return self._base.read(group, dtype)
        if group not in self._held:
            self._held[group] = jax.tree.map(_sealed, self._base.read(group, dtype))
        return self._held[group]


def _sealed(array: Any) -> Any:
    if isinstance(array, np.ndarray):
        array.flags.writeable = False
    return array


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
