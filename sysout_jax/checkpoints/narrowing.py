"""Weights in a narrower number format, counted where it has no number that large."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict

from sysout_jax.config import ModelConfig
from sysout_jax.errors import InputError
from sysout_jax.notices import warn
from sysout_jax.weights import WeightSource, groups
from sysout_jax.words import plural


class Narrowing:
    """The same weights; InputError when a cast turns some of the model's finite ones into inf, with their number."""

    def __init__(self, source: WeightSource, config: ModelConfig):
        self._source, self._groups = source, groups(config)
        self._damaged: dict[str, int] = {}  # parameters that hold NaN or inf, and how many

    def read(self, group: str, dtype: Any) -> dict:
        with np.errstate(over="ignore", invalid="ignore"):
            params = self._source.read(group, dtype)
            if overflows(self._source, group, dtype, params):
                raise self._refusal(dtype)
        for path, leaf in flatten_dict(params, sep="/").items():
            if count := int((~np.isfinite(np.asarray(leaf))).sum()):
                self._damaged[f"{group}/{path}"] = count
        return params

    def warn_of_damage(self) -> None:
        """Say how many of the weights that were read are NaN or inf, as the model's own were and stay."""
        if self._damaged:
            warn(f"{_counted(self._damaged)}, hold NaN or inf; they are written as they are")

    def _refusal(self, dtype: Any) -> InputError:
        counts = {
            f"{group}/{path}": count
            for group in self._groups
            for path, count in overflows(self._source, group, dtype).items()
        }
        dtype = np.dtype(dtype)
        return InputError(
            f"{_counted(counts)}, are beyond the largest "
            f"{dtype.name}, {float(ml_dtypes.finfo(dtype).max):g}, and would be inf; use a wider number format"
        )


def _counted(counts: Mapping[str, int]) -> str:
    """Weights by parameter, as the start of a sentence."""
    weights, parameters = plural(sum(counts.values()), "weight"), plural(len(counts), "parameter")
    return f"{weights} in {parameters}, first {next(iter(counts))}"


def overflows(
    source: WeightSource, group: str, dtype: Any, params: dict | None = None
) -> dict[str, int]:
    """How many weights of each parameter of a group are finite and not so in `dtype`; only parameters that have some.

    `params` is the group in `dtype` if it has been read.
    """
    with np.errstate(over="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # arrays of jax are float32 at most, and say so
        narrow = flatten_dict(source.read(group, dtype) if params is None else params, sep="/")
        infinite = {path: np.isinf(np.asarray(leaf)) for path, leaf in narrow.items()}
        infinite = {path: mask for path, mask in infinite.items() if mask.any()}
        if not infinite:
            return {}
        wide = flatten_dict(source.read(group, np.float64), sep="/")
    counts = {
        path: int(np.isfinite(np.asarray(wide[path])[mask]).sum())
        for path, mask in infinite.items()
    }
    return {path: count for path, count in counts.items() if count}
