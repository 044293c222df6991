"""Layer-wise streaming: all sequences go through one layer at a time, and what is observed is reduced on the device.

Memory is one layer of weights (two while the next one is prefetched), the hidden states and one block of attention rows; it
depends neither on the depth nor on T². One block is compiled once for all equal layers. Every observation has the sequence as its
leading axis and is computed for one sequence at a time, so batches combine by concatenation, and how the sequences were
cut into batches cannot change a result. On a mesh every group of devices that holds the weights once works on a sequence of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from sysout_jax import capture as cap
from sysout_jax.calls import check_arguments, check_words
from sysout_jax.data.text import Windows
from sysout_jax.errors import InputError
from sysout_jax.language_model import LanguageModel
from sysout_jax.nonfinite import Nonfinite, Watch, count_activations
from sysout_jax.sharding import (
    BATCH,
    BATCH_AXES,
    batch_shards,
    constrain,
    lay,
    per_device,
    whole_rows,
)
from sysout_jax.weights import groups

#: `observe(x_in, taps, extra) -> pytree of arrays with leading axis B`; pure, traced once. One with settings is a frozen dataclass with
#: `__call__`: equal for equal settings, so that jit compiles it once.
Observe = Callable[[jax.Array, dict[str, jax.Array], Any], Any]
#: `write(name, value, extra) -> value`: what a layer goes on with at its tap of that name, the value itself at all others; pure, traced
#: once. `extra` decides in which layers it acts.
Write = Callable[[str, jax.Array, Any], jax.Array]


class Observer(Protocol):
    """Looks at all layers of a pass, which several share (`Stream.run`)."""

    def observe(self, layer: int) -> Observe: ...

    def extra(self, layer: int) -> Any:
        """What `observe` is given there, as `Stream.layers` takes it."""
        ...

    def take(self, layer: int, params: dict, seen: Any) -> None:
        """A layer's parameters, and what `observe` saw of it."""
        ...


STEP_TOKENS = 4096  # tokens per step by default; a step works through its sequences one by one
#: One thread for all passes: every new one would leave a malloc arena behind, some 20 MB per pass.
_PREFETCH = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
NLL_ROWS = 256  # positions whose logits are held at once when only their likelihood is wanted


class Stream:
    """The hidden states of N sequences on their way through a model, layer by layer.

    `tokens` is (N, T) int, or `Windows` of them; how many of them a step takes, and who hears of each layer, says `lm.passes`.
    """

    def __init__(self, lm: LanguageModel, tokens):
        check_arguments(lm)
        self.lm = lm
        self.tokens = lm.check_tokens(tokens)
        self.windows = dataclasses.replace(Windows.of(tokens), tokens=self.tokens)
        batch_size = lm.passes.batch_size
        with lm.computing():
            shards, (count, length) = batch_shards(), self.tokens.shape
            each = -(-count // shards)
            if batch_size is None:
                size = default_batch_size(each, length)
                each += -each % size
            else:
                size = max(batch_size // shards, 1)
            # the last sequence fills up what steps and devices leave; nothing is kept of its copies
            padded = _pad(self.tokens, each * shards - count)
            size *= shards
            self.batches = [jnp.asarray(padded[i : i + size]) for i in range(0, len(padded), size)]
            before = ["embed"] + ["positions"] * (lm.config.ends().positions is not None)
            params = {name: lm.read(name) for name in before}
            self.hidden = [_embed(lm.module, params, batch) for batch in self.batches]
        self._watch = Watch(len(self.tokens))

    def _read(self, layer: int) -> tuple[dict, dict]:
        """A layer's parameters on the model's devices, and where whoever looks at them finds them whole."""
        group = f"layer_{layer}"
        if self.lm.mesh is None:
            params = self.lm.read(group)
            return params, params
        whole = self.lm.fetch(group)
        return self.lm.put(group, lay(whole, self.lm.mesh)), whole

    def layers(
        self,
        observe: Observe | Sequence[Observe],
        extra: Sequence[Any] | None = None,
        write: Write | None = None,
        first: int = 0,
    ) -> Iterator[tuple[int, dict, Any]]:
        """Push everything through the next layer; yield (layer, its parameters, observations joined over sequences).

        `observe` is one for all layers, or one for each.
        `extra[l]` goes to `observe` and `write` of layer l; its arrays have the sequence as leading axis and are cut like the
        batches. What is written is what the model goes on with and what `observe` finds. Consuming the iterator
        drives the computation; afterwards `hidden` holds the last layer's output. With `first`, `hidden` is the input of that
        layer and those before it are left out.
        """
        num_layers, count = self.lm.num_layers, len(self.tokens)
        observes = [observe] * num_layers if callable(observe) else observe
        self._watch = self._watch.before(
            first
        )  # anew: a branch of this stream must not write into what it left
        coming = _PREFETCH.submit(self._read, first)
        for layer in range(first, num_layers):
            params, whole = coming.result()
            if layer + 1 < num_layers:
                coming = _PREFETCH.submit(self._read, layer + 1)
            self.lm.check(f"layer_{layer}", params)
            block, seen, start = self.lm.block(layer), [], 0
            with self.lm.computing():
                for i, x in enumerate(self.hidden):
                    part = None if extra is None else _slice(extra[layer], start, len(x))
                    self._watch.nll_NxT = None  # of other states
                    self.hidden[i], observed, bad = block_step(
                        block, observes[layer], write, params, x, part
                    )
                    seen.append(jax.device_get(observed))
                    self._watch.add(layer, bad)
                    start += len(x)
            yield layer, whole, jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *seen)
            if self.lm.passes.on_layer:
                self.lm.passes.on_layer()

    def run(self, observers: Sequence[Observer]) -> None:
        """Push everything through all layers, in one pass for all `observers`."""
        layers = range(self.lm.num_layers)
        observes = [_Each(tuple(each.observe(l) for each in observers)) for l in layers]
        extras = [tuple(each.extra(l) for each in observers) for l in layers]
        for layer, params, seen in self.layers(observes, extras):
            for each, part in zip(observers, seen, strict=True):
                each.take(layer, params, part)

    def logits(self) -> jax.Array:
        """(N, T, V) from the last layer's output."""
        params = self._head()
        with self.lm.computing():
            parts = [_unembed(self.lm.module, params, x) for x in self.hidden]
            return jnp.concatenate(parts)[: len(self.tokens)]

    def nll(self) -> np.ndarray:
        """(N, T-1) negative log-likelihood in nats of every next token, without ever holding (N, T, V) logits; NaN where it is not finite.

        Computed once for a stream that goes no further.
        """
        if self._watch.nll_NxT is not None:
            return self._watch.nll_NxT
        params = self._head()
        with self.lm.computing():
            parts = [
                _next_token_nll(self.lm.module, params, x, tokens)
                for x, tokens in zip(self.hidden, self.batches, strict=True)
            ]
        nll_NxT = np.concatenate([np.asarray(part) for part in parts])[: len(self.tokens)]
        self._watch.nll_NxT = np.where(np.isfinite(nll_NxT), nll_NxT, np.nan)
        return self._watch.nll_NxT

    def nonfinite(self) -> Nonfinite:
        """NaN and inf in all of the model's weights, in the layers that were run, and in the likelihoods where `nll` was asked for."""
        length = self.tokens.shape[1]
        return self._watch.join(self.lm.config, length, self.lm.dtype, self.lm.damaged())

    def states(self) -> Iterator[jax.Array]:
        """The hidden states of one batch after the other, without what only fills up the devices."""
        left = len(self.tokens)
        for x_BxTxD in self.hidden:
            yield x_BxTxD if len(x_BxTxD) <= left else x_BxTxD[:left]
            left -= len(x_BxTxD)

    def _head(self) -> dict:
        names = ["final_norm", "embed" if self.lm.config.tied_embeddings else "lm_head"]
        there = groups(self.lm.config)  # a norm may have no parameters
        return {name: self.lm.read(name) for name in names if name in there}


def capture(lm: LanguageModel, tokens, names: Sequence[str] = ("h", "x_down", "attn_map")):
    """Logits and raw intermediates of short prompts.

    tokens (B, T) int. Returns logits (B, T, V) and a dict of arrays with a leading layer axis, for example h (L, B, T, D),
    x_down (L, B, T, F), attn_map (L, B, H, T, T); `sysout_jax.TAPS` lists all names. Capturing changes no bit of the logits.
    Raises InputError for bad tokens and for a name that this model does not record.
    """
    names = check_words("names", names, cap.TAPS, least=0)
    stream = Stream(lm, tokens)
    layers = [seen for _, _, seen in stream.layers(_Raw(names))]
    return stream.logits(), {name: np.stack([seen[name] for seen in layers]) for name in names}


def observe_nothing(x_in, taps, extra) -> dict:
    """The `Observe` of passes that only want the hidden states or the likelihood."""
    return {}


def default_batch_size(num_sequences: int, length: int) -> int:
    """Sequences per step, so that calling the step costs little beside its work, and few are needed to make all steps as large."""
    most = int(np.clip(STEP_TOKENS // length, 1, num_sequences))
    return min(range(most, most // 2, -1), key=lambda size: -num_sequences % size)


@dataclass(frozen=True)
class _Each:
    """The `Observe` of a pass that several observers share."""

    observes: tuple[Observe, ...]

    def __call__(self, x_in, taps, extra):
        return [
            observe(x_in, taps, part) for observe, part in zip(self.observes, extra, strict=True)
        ]


@dataclass(frozen=True)
class _Raw:
    """The `Observe` of `capture`: the taps as they are."""

    names: tuple[str, ...]

    def __call__(self, x_in, taps, extra):
        missing = [name for name in self.names if name not in taps]
        if missing:
            raise InputError(
                f"this model does not record {', '.join(missing)}; it has {', '.join(sorted(taps))}"
            )
        return {name: taps[name] for name in self.names}


@partial(jax.jit, static_argnums=(0, 1, 2))
def block_step(block, observe: Observe, write: Write | None, params: dict, x_BxTxD, extra):
    """One layer on one batch: its output (B, T, D), what was observed, and what is not finite (`count_activations`); leading axis B."""

    def one_each(x_SxTxD, extra):
        hook = None if write is None else lambda name, value: write(name, value, extra)
        with cap.hooked(hook):
            y, state = block.apply({"params": params}, x_SxTxD, mutable=[cap.COLLECTION])
        taps = cap.flatten_taps(state[cap.COLLECTION])
        return y, per_device(watch, (BATCH, BATCH, BATCH), BATCH)(x_SxTxD, taps, extra)

    def watch(x_SxTxD, taps, extra):
        return observe(x_SxTxD, taps, extra), count_activations(taps)

    y_BxTxD, seen = _one_by_one(one_each, (x_BxTxD, extra))
    # whole on every device and process: whoever observes wants to read it
    observed, bad = jax.tree.map(lambda a: constrain(a, P()), seen)
    return constrain(y_BxTxD, BATCH), observed, bad


def _one_by_one(function: Callable, args: tuple) -> Any:
    """`function(*args)`, where one call sees one sequence, or one for every shard of the batch.

    The shape of every product, and with it its rounding, is then that of a sequence, so that results do not depend on how
    sequences were cut into batches. The products are T rows high, which is enough.
    """
    shards = batch_shards()

    def split(a):  # shard s holds rows s*N … (s+1)*N - 1: no row changes its device
        return constrain(
            a.reshape(shards, len(a) // shards, *a.shape[1:]).swapaxes(0, 1), P(None, BATCH_AXES)
        )

    def join(a):
        return a.swapaxes(0, 1).reshape(a.shape[0] * a.shape[1], *a.shape[2:])

    done = jax.lax.map(lambda each: function(*each), jax.tree.map(split, args))
    return jax.tree.map(join, done)


@partial(jax.jit, static_argnums=0)
def _embed(module, params: dict, tokens_BxT):
    x_BxTxD = module.apply({"params": whole_rows(params)}, tokens_BxT, method="embed_tokens")
    return constrain(x_BxTxD, BATCH)


@partial(jax.jit, static_argnums=0)
def _unembed(module, params: dict, x_BxTxD):
    def one_each(x_SxTxD):
        return module.apply({"params": params}, x_SxTxD, method="unembed")

    return constrain(_one_by_one(one_each, (x_BxTxD,)), P())


@partial(jax.jit, static_argnums=0)
def _next_token_nll(module, params: dict, x_BxTxD, tokens_BxT):
    T = tokens_BxT.shape[1]
    size = min(NLL_ROWS, T - 1) or 1
    chunks, short = -(-(T - 1) // size), -(T - 1) % size

    def one_each(x_SxTxD, tokens_SxT):
        S, _, D = x_SxTxD.shape
        x = jnp.pad(x_SxTxD[:, :-1], ((0, 0), (0, short), (0, 0)))
        targets = jnp.pad(tokens_SxT[:, 1:], ((0, 0), (0, short)))

        def chunk(args):
            x_SxRxD, targets_SxR = args
            logits = module.apply({"params": params}, x_SxRxD, method="unembed")
            logits = logits.astype(jnp.float32)
            picked = jnp.take_along_axis(logits, targets_SxR[..., None], -1)[..., 0]
            return jax.nn.logsumexp(logits, axis=-1) - picked

        pieces = x.reshape(S, chunks, size, D), targets.reshape(S, chunks, size)
        nll = jax.lax.map(chunk, jax.tree.map(lambda a: a.swapaxes(0, 1), pieces))
        return nll.swapaxes(0, 1).reshape(S, chunks * size)[:, : T - 1]

    return constrain(_one_by_one(one_each, (x_BxTxD, tokens_BxT)), P())


def _slice(tree: Any, start: int, count: int):
    """Rows `start` and on; the last one again where they end before `count`."""

    def cut(a):
        rows = a[start : start + count]
        return _pad(rows, count - len(rows)) if len(rows) else _pad(a[-1:], count - 1)

    return jax.tree.map(cut, tree)


def _pad(rows, more: int):
    """`rows` and its last one `more` times."""
    return rows if more == 0 else np.concatenate([rows, np.repeat(rows[-1:], more, axis=0)])
