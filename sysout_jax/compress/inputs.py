"""What enters the linear layers: recording it for calibration, and fake quantisation of it.

Both stand around a block (`LanguageModel.wrap`) and act through Flax's `intercept_methods`, so models know nothing of it. What differs
between layers is data and lies beside the kernel of a linear layer, so that one compiled step serves all of them:

    input_kept   (I,) bool   input channels that stay in full precision; a layer without it reads its input as it is
    input_scale  ()          calibrated scale of the whole tensor; without it every token has its own
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from sysout_jax.capture import COLLECTION
from sysout_jax.compress.quantise import absmax_scale, fake_quantise
from sysout_jax.engine import Observe, Stream
from sysout_jax.errors import InputError
from sysout_jax.language_model import LanguageModel
from sysout_jax.models.experts import IntoExperts, OutOfExperts, by_channel
from sysout_jax.words import plural

RECORDED = "input of "

#: layer → path of a linear layer in its block (`attn/q_proj`) → (I,) largest |input| of every channel
Calibration = list[dict[str, np.ndarray]]


@dataclass(frozen=True)
class QuantisedInputs:
    """A block whose linear layers read quantised inputs where their parameters say so."""

    block: nn.Module
    bits: int = 8

    def apply(self, variables: dict, x, **more) -> Any:
        with nn.intercept_methods(self._intercept):
            return self.block.apply(variables, x, **more)

    def _intercept(self, call, args, kwargs, context):
        if not _is_linear(context) or not context.module.has_variable("params", "input_kept"):
            return call(*args, **kwargs)
        read, (x, *rest) = context.module.get_variable, args
        kept = _at_rows(context.module, read("params", "input_kept"), args)
        scale = read("params", "input_scale")
        if scale is None:
            magnitude = jnp.where(kept, 0.0, jnp.abs(x.astype(jnp.float32)))
            scale = absmax_scale(magnitude.max(axis=-1, keepdims=True), self.bits)
        scale = jnp.broadcast_to(scale, (*x.shape[:-1], 1))
        x = jnp.where(kept, x, fake_quantise(x, scale, self.bits).astype(x.dtype))
        return call(x, *rest, **kwargs)


@dataclass(frozen=True)
class RecordedInputs:
    """A block that records the magnitude of what enters its linear layers as taps `input of <path>`: (B, T, I); of what leaves experts
    (B, T, R, F) for each chosen one, beside them (B, T, R)."""

    block: nn.Module

    def apply(self, variables: dict, x, **more) -> Any:
        recorded: dict[str, Any] = {}

        def intercept(call, args, kwargs, context):
            if _is_linear(context):
                magnitude = jnp.abs(args[0].astype(jnp.float32))
                of_experts = isinstance(context.module, OutOfExperts)
                path = "/".join(context.module.path)
                recorded[RECORDED + path] = (magnitude, args[1]) if of_experts else magnitude
            return call(*args, **kwargs)

        with nn.intercept_methods(intercept):
            y, state = self.block.apply(variables, x, **more)
        return y, {**state, COLLECTION: {**state[COLLECTION], **recorded}}


def calibrate(lm: LanguageModel, tokens, counted_NxT: np.ndarray | None = None) -> Calibration:
    """Largest magnitude of every input channel of every linear layer over `tokens` (N, T), in the unquantised model. One pass.

    `counted` (N, T) bool are the tokens that enter the maximum, which all of them do without. InputError where there is none.
    """
    stream = recording(lm, tokens)
    calibrating = Calibrating(stream, counted_NxT)
    stream.run([calibrating])
    return calibrating.calibration


def recording(lm: LanguageModel, tokens) -> Stream:
    """A stream at its start that `Calibrating` can look at, and others too: it computes what the model does."""
    return Stream(lm.wrapped(RecordedInputs), tokens)


class Calibrating:
    """The `Observer` of `calibrate`."""

    def __init__(self, stream: Stream, counted_NxT: np.ndarray | None = None):
        shape = stream.tokens.shape
        self._counted = np.ones(shape, bool) if counted_NxT is None else counted_NxT
        if not self._counted.any():
            raise InputError(
                f"the calibration text {shape} has no token that counts; give a longer one, or leave fewer tokens out"
            )
        self._config = stream.lm.config
        #: after the pass
        self.calibration: Calibration = []

    def observe(self, layer: int) -> Observe:
        return _Observe(self._config.layer(layer).matrix("down").experts)

    def extra(self, layer: int) -> np.ndarray:
        return self._counted

    def take(self, layer: int, params: dict, seen: dict[str, np.ndarray]) -> None:
        self.calibration.append({name: value.max(axis=0) for name, value in seen.items()})


def calibrated_on(read_NxT: np.ndarray, analysed_NxT: np.ndarray) -> str:
    """What a report says of the windows that scales come from: whether they are apart from those that are analysed with them."""
    analysed = {tuple(window) for window in analysed_NxT.tolist()}
    same = sum(tuple(window) in analysed for window in read_NxT.tolist())
    count, length = read_NxT.shape
    which = {0: "other windows", count: "the analysed windows themselves"}
    return f"{plural(count, 'window')} of {plural(length, 'token')}, {which.get(same, f'{same} of them analysed too')}"


@dataclass(frozen=True)
class _Observe:
    """Largest magnitude (B, I) of every channel over the tokens that count, (B, T)."""

    experts: int

    def __call__(self, x_in, taps, counted_BxT) -> dict[str, jax.Array]:
        return {
            name.removeprefix(RECORDED): self._largest(value, counted_BxT)
            for name, value in taps.items()
            if name.startswith(RECORDED)
        }

    def _largest(self, recorded, counted_BxT: jax.Array) -> jax.Array:
        if isinstance(recorded, tuple):
            magnitude_BxTxRxF, chosen_BxTxR = recorded
            free = jnp.where(counted_BxT[..., None, None], magnitude_BxTxRxF, 0.0)
            return by_channel(free, chosen_BxTxR, self.experts, "max")
        return jnp.where(counted_BxT[..., None], recorded, 0.0).max(axis=1)


def _at_rows(module: nn.Module, values_I: jax.Array, args: tuple) -> jax.Array:
    """What every element of a linear layer's input finds at its channel, of the input's shape."""
    x = args[0]
    if isinstance(module, OutOfExperts):
        return values_I.reshape(module.experts, -1)[args[1]]
    return jnp.broadcast_to(values_I, x.shape)


def _is_linear(context) -> bool:
    linear = (nn.Dense, IntoExperts, OutOfExperts)
    return isinstance(context.module, linear) and context.method_name == "__call__"
