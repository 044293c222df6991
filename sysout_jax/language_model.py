"""A model as analyses see it: config, weights that may still lie on disk, tokenizer."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sysout_jax.attention import AttentionSpec, attention_spec
from sysout_jax.checks import OrNone, Whole, check, scalar
from sysout_jax.config import ModelConfig
from sysout_jax.data.tokenizers import Tokenizer
from sysout_jax.errors import InputError
from sysout_jax.models import build, parameter_count, parameter_shapes
from sysout_jax.nonfinite import Damaged, count_weights, suspicious
from sysout_jax.sharding import put
from sysout_jax.weights import InMemory, ReadOnce, WeightSource, groups

DTypeName = Literal["float32", "bfloat16", "float16"]
#: Number formats that weights may be read and computed in.
DTYPES: tuple[str, ...] = get_args(DTypeName)
MOST_HELD = (
    2**30
)  # bytes of weights that a study of many passes keeps; larger models stream layer by layer, as in one pass


@dataclass(frozen=True)
class Passes:
    """How sequences go through a model: nothing here changes a result."""

    batch_size: int | None = None
    """Sequences per step; None: some 4,096 tokens worth."""
    on_layer: Callable[[], object] | None = None
    """Called after each layer of each pass, for progress."""
    on_plan: Callable[[int], object] | None = None
    """Called with the number of layers that are still to come, by studies that know it only when they have begun."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "batch_size", scalar(self.batch_size))
        check("batch_size", self.batch_size, OrNone(Whole()))


@dataclass(eq=False)
class LanguageModel:
    """What `so.load` returns. Weights are read group by group when needed; `params` reads and keeps all of them."""

    config: ModelConfig
    source: WeightSource
    tokenizer: Tokenizer | None = None
    dtype: Any = "float32"
    name: str = "model"
    wrap: Callable[[Any], Any] | None = None
    """Replaces the block that streaming runs layer by layer, see `block`."""
    mesh: Mesh | None = None
    """Devices that weights and sequences are spread over (`sysout_jax.sharding.make_mesh`); None: jax's default device."""
    accepted: tuple[str, ...] = ()
    """Settings of its config that nothing computes with, accepted by name."""
    notes: tuple[str, ...] = ()
    """What is odd about its checkpoint, a sentence each."""
    passes: Passes = Passes()
    """How analyses run through it, see `with_passes`."""
    checked: dict[str, tuple[Damaged, ...]] = field(default_factory=dict, repr=False)
    """What `check` found in the groups that were read."""

    @property
    def num_layers(self) -> int:
        return self.config.num_layers

    @property
    def stored_as(self) -> dict[str, str]:
        """Kind of weight (`mlp/down_proj/kernel`) → the types that a GGUF file stores it in, quantised or not; empty for other formats."""
        return dict(getattr(self.source, "stored_as", {}))

    @cached_property
    def module(self):
        """The Flax module; `lm.module.apply({"params": lm.params}, tokens)` gives logits."""
        # the kernel that also gives column sums without holding a map
        return build(self.config, self.dtype, kernel="blockwise")

    def block(self, layer: int) -> Any:
        """What runs one layer: hashable, equal to others that compute the same, and with Flax's `apply`."""
        block = self.module.block(layer)
        return block if self.wrap is None else self.wrap(block)

    def attention(self, layer: int, length: int) -> AttentionSpec:
        """The rule behind a layer's attention over sequences of `length` tokens."""
        return attention_spec(self.config, self.config.layer(layer).attention, length)

    def attention_windows(self, length: int) -> tuple[int | None, ...]:
        """How many keys up to its own a query of each layer sees at most, in sequences of `length` tokens; None: all."""
        return tuple(self.attention(layer, length).window for layer in range(self.num_layers))

    @cached_property
    def params(self) -> dict:
        """All parameters as one nested dict of device arrays."""
        params = {name: self.read(name) for name in groups(self.config)}
        self.source = InMemory(params, self.stored_as)
        return params

    def read(self, group: str) -> dict:
        """Parameters below one top-level name, in the model's dtype, as device arrays; checked."""
        params = self.put(group, self.fetch(group))
        self.check(group, params)
        return params

    def fetch(self, group: str, dtype: Any = None) -> dict:
        """The same as they come from their source, in the model's dtype or another one. Where that leaves NaN or inf, `check` tells."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return self.source.read(group, dtype or self.dtype)

    def check(self, group: str, params: dict) -> None:
        """Look once for NaN and inf in a group's parameters, which `read` gave."""
        if group in self.checked:
            return
        with self.computing():
            bad = bool(suspicious(params))
        # nothing that weights are stored in is wider than float64
        self.checked[group] = (
            count_weights(group, self.fetch(group), self.fetch(group, "float64")) if bad else ()
        )

    def damaged(self) -> tuple[Damaged, ...]:
        """Every tensor that holds NaN or inf; reads the groups that no pass has read."""
        names = groups(self.config)
        for name in names:
            if name not in self.checked:
                self.read(name)
        return tuple(tensor for name in names for tensor in self.checked[name])

    def put(self, group: str, params: dict) -> dict:
        """Those parameters, wherever they are, on the model's devices."""
        if self.mesh is None:
            return jax.device_put(params)
        return put({group: params}, self.mesh)[group]

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Within, jax computes on the model's devices, and in float32 where that is asked for.

        Also where jax's 64-bit mode is on: what counts and ranks are stays int32.
        Float32 analysis means float32 products, also where the hardware would round them (TF32, bfloat16 passes).
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(jax.enable_x64(False))
            if self.mesh is not None:
                stack.enter_context(jax.set_mesh(self.mesh))
            if jnp.dtype(self.dtype).itemsize >= 4:
                stack.enter_context(jax.default_matmul_precision("highest"))
            yield

    def with_edits(self, edits: Mapping[str, Callable[[dict], dict]]) -> LanguageModel:
        """The same model with some groups changed as they are read; the original stays as it is."""
        checked = {group: damage for group, damage in self.checked.items() if group not in edits}
        return dataclasses.replace(self, source=_Edited(self.source, edits), checked=checked)

    def reading_once(self) -> LanguageModel:
        """The same model for a study of dozens of passes: it keeps the weights that it reads where all of them take at most `MOST_HELD` bytes."""
        count = parameter_count(parameter_shapes(self.config))
        if isinstance(self.source, InMemory | ReadOnce) or (
            count * jnp.dtype(self.dtype).itemsize > MOST_HELD
        ):
            return self
        return dataclasses.replace(self, source=ReadOnce(self.source, self.stored_as))

    def with_passes(self, **changes: Any) -> LanguageModel:
        """The same model with another `batch_size`, `on_layer` or `on_plan` (`Passes`) in all that runs through it. InputError for a bad size."""
        return dataclasses.replace(self, passes=dataclasses.replace(self.passes, **changes))

    def wrapped(self, wrap: Callable[[Any], Any]) -> LanguageModel:
        """The same model with `wrap(block)` in place of its block wherever layers are streamed; `params` and `module` stay."""
        return dataclasses.replace(self, wrap=wrap)

    def check_tokens(self, tokens) -> np.ndarray:
        """`tokens` as (N, T) int32; InputError when empty, longer than the context, or outside the vocabulary."""
        try:
            tokens = np.asarray(tokens)
        except (ValueError, TypeError, OverflowError):
            raise InputError(
                "tokens are no array; expected (sequences, length) integers, all sequences of one length"
            ) from None
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
            raise InputError(
                f"tokens have shape {tokens.shape} and dtype {tokens.dtype}; expected (sequences, length) integers"
            )
        if tokens.size == 0:
            raise InputError(f"tokens have shape {tokens.shape}; expected at least one token")
        if tokens.shape[1] > self.config.context_length:
            raise InputError(
                f"sequences of {tokens.shape[1]} tokens exceed the model's context of "
                f"{self.config.context_length}; shorten them"
            )
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.config.vocab_size:
            raise InputError(
                f"token ids span {low} to {high}, the model's vocabulary has {self.config.vocab_size} entries; "
                "does the tokenizer belong to this model?"
            )
        return tokens.astype(np.int32)


class _Edited:
    def __init__(self, base: WeightSource, edits: Mapping[str, Callable[[dict], dict]]):
        self._base, self._edits = base, edits

    def read(self, group: str, dtype: Any) -> dict:
        params = self._base.read(group, dtype)
        return self._edits[group](params) if group in self._edits else params
