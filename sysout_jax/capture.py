"""The only writer of the `intermediates` collection, the list of names that it may hold, and the one way to write into a model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import jax
from flax import linen as nn

COLLECTION = "intermediates"

#: Every name a model may tap, with its shape for one layer. `K = H` without grouped queries; `gate` only where gated.
TAPS = {
    "h": "(B, T, D) layer output, the residual stream",
    "h_mid": "(B, T, D) residual stream between attention and MLP; not where both read the same",
    "attn_in": "(B, T, D) input of the attention block, after the norm",
    "mlp_in": "(B, T, D) input of the MLP, after the norm",
    "x_down": "(B, T, F) input of the down projection",
    "gate": "(B, T, F) gate before its activation function",
    "up": "(B, T, F) up projection, before the activation function where there is no gate",
    "expert": "(B, T, R) int: the experts that a token goes through, those of largest weight first; x_down, gate and up are then (B, T, R, F)",
    "expert_weight": "(B, T, R) what their outputs are multiplied with",
    "down": "(B, T, D) what the MLP adds to the residual stream",
    "down_gain": "(B, T, D) what a norm or a scale after the MLP multiplies W_down x_down with; only with one",
    "q": "(B, T, H, Dh) queries as they meet the keys (after rotation)",
    "k": "(B, T, K, Dh) keys as they meet the queries (after rotation)",
    "v": "(B, T, K, Dh) values",
    "lse": "(B, H, T) log-sum-exp of each query's logits; not with sigmoid attention; softpick: the logarithm of what a row is divided by",
    "attn_map": "(B, H, T, S) attention over the real keys, before `attn_scale`; rows sum to 1, except with sigmoid attention and softpick",
    "attn_sums": "(B, H, S) column sums of the attention map",
    "attn_scale": "(B, H, T) context-aware scale on what attention gives: context_scale, attention_bias, softmax1, gates (by element: their mean) and learned sinks only",
    "sink_mass": "(B, H, T) attention that extra keys or a sink logit take: context_bias, attention_bias, softmax1 and learned sinks only",
    "attn_heads": "(B, T, H, Dh) output of every head as its variant makes it, before the output projection",
    "attn_out": "(B, T, D) what attention adds to the residual stream",
}


#: `hook(name, value) -> value`: what a model goes on with in place of what it computed; the value as it is for all other names.
Hook = Callable[[str, jax.Array], jax.Array]
_HOOK: ContextVar[Hook | None] = ContextVar("hook", default=None)


@contextlib.contextmanager
def hooked(hook: Hook | None) -> Iterator[None]:
    """Within, every tap of a model that is traced here gives what `hook` makes of it, and records that."""
    token = _HOOK.set(hook)
    try:
        yield
    finally:
        _HOOK.reset(token)


def tap(module: nn.Module, name: str, value: jax.Array) -> jax.Array:
    """Record `value` under `name` in the module's intermediates, and give it back for the model to go on with.

    Within `hooked` it is what the hook makes of it. Without that collection nothing is recorded. A name can be written once per call; a
    second write raises ValueError.
    """
    hook = _HOOK.get()
    if hook is not None and not module.is_initializing():
        value = hook(name, value)
    record(module, name, lambda: value)
    return value


def record(module: nn.Module, name: str, value: Callable[[], jax.Array]) -> None:
    """Record what the model does not go on with. It is computed only when somebody records: an attention map is not even traced otherwise."""
    if name not in TAPS:
        raise ValueError(f"tap {name!r} is not in capture.TAPS; add it there with its shape")
    if not module.is_mutable_collection(COLLECTION) or module.is_initializing():
        return

    def write_once(old, new):
        if old is not None:
            raise ValueError(f"tap {name!r} was written twice in {module.scope and module.path}")
        return new

    module.sow(COLLECTION, name, value(), reduce_fn=write_once, init_fn=lambda: None)


def flatten_taps(intermediates: dict) -> dict[str, jax.Array]:
    """One flat dict of the taps of one block, whichever submodule wrote them."""
    flat: dict[str, jax.Array] = {}
    for key, value in intermediates.items():
        for name, leaf in (
            flatten_taps(value).items() if isinstance(value, dict) else [(key, value)]
        ):
            if name in flat:
                raise ValueError(f"tap {name!r} is written by two submodules of one block")
            flat[name] = leaf
    return flat
