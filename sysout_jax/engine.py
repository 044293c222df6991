"""Layer-wise streaming: all sequences go through one layer at a time, and what is observed is reduced on the device.

Memory is one layer of weights (two while the next one is prefetched), the hidden states and one block of attention rows; it
depends neither on the depth nor on T². One block is compiled once for all layers. Every observation has the sequence as its
leading axis and is computed for one sequence at a time, so batches combine by concatenation, and how the sequences were
cut into batches cannot change a result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sysout_jax import capture as cap
from sysout_jax.language_model import LanguageModel

#: `observe(x_in, taps, extra) -> pytree of arrays with leading axis B`; pure, traced once.
Observe = Callable[[jax.Array, dict[str, jax.Array], Any], Any]
#: `edit(h, extra) -> h`: what a layer's output (B, T, D) is replaced by; pure, traced once. `extra` decides in which layers it acts.
Edit = Callable[[jax.Array, Any], jax.Array]

STEP_TOKENS = 4096  # tokens per step by default; a step works through its sequences one by one
#: One thread for all passes: every new one would leave a malloc arena behind, some 20 MB per pass.
_PREFETCH = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
NLL_ROWS = 256  # positions whose logits are held at once when only their likelihood is wanted


class Stream:
    """The hidden states of N sequences on their way through a model, layer by layer.

    `tokens` is (N, T) int; `batch_size` is how many sequences one step takes; it changes no result.
    """

    def __init__(self, lm: LanguageModel, tokens, batch_size: int | None = None):
        self.lm = lm
        tokens = lm.check_tokens(tokens)
        size = batch_size or default_batch_size(*tokens.shape)
        self.batches = [jnp.asarray(tokens[i : i + size]) for i in range(0, len(tokens), size)]
        with _exact(lm):
            params = {name: lm.read(name) for name in ("embed", "positions") if self._has(name)}
            self.hidden = [_embed(lm.module, params, batch) for batch in self.batches]

    def _has(self, group: str) -> bool:
        return group != "positions" or self.lm.config.family == "gpt2"

    def layers(
        self,
        observe: Observe,
        extra: Sequence[Any] | None = None,
        on_layer: Callable[[], object] | None = None,
        edit: Edit | None = None,
        first: int = 0,
    ) -> Iterator[tuple[int, dict, Any]]:
        """Push everything through the next layer; yield (layer, its parameters, observations joined over sequences).

        `extra[l]` goes to `observe` and `edit` of layer l; its arrays have the sequence as leading axis and are cut like the
        batches. The edited output is what the next layer reads and what `observe` finds as tap `h`. Consuming the iterator
        drives the computation; afterwards `hidden` holds the last layer's output. With `first`, `hidden` is the input of that
        layer and those before it are left out.
        """
        block, num_layers = self.lm.block(), self.lm.num_layers
        coming = _PREFETCH.submit(self.lm.read, f"layer_{first}")
        for layer in range(first, num_layers):
            params = coming.result()
            if layer + 1 < num_layers:
                coming = _PREFETCH.submit(self.lm.read, f"layer_{layer + 1}")
            seen, start = [], 0
            with _exact(self.lm):
                for i, x in enumerate(self.hidden):
                    part = None if extra is None else _slice(extra[layer], start, len(x))
                    self.hidden[i], found = _block_step(block, observe, edit, params, x, part)
                    seen.append(jax.device_get(found))
                    start += len(x)
            yield layer, params, jax.tree.map(lambda *parts: np.concatenate(parts), *seen)
            if on_layer:
                on_layer()

    def logits(self) -> jax.Array:
        """(N, T, V) from the last layer's output."""
        params = self._head()
        with _exact(self.lm):
            return jnp.concatenate([_unembed(self.lm.module, params, x) for x in self.hidden])

    def nll(self) -> np.ndarray:
        """(N, T-1) negative log-likelihood in nats of every next token, without ever holding (N, T, V) logits."""
        params = self._head()
        with _exact(self.lm):
            parts = [
                _next_token_nll(self.lm.module, params, x, tokens)
                for x, tokens in zip(self.hidden, self.batches, strict=True)
            ]
        return np.concatenate([np.asarray(part) for part in parts])

    def _head(self) -> dict:
        names = ["final_norm", "embed" if self.lm.config.tied_embeddings else "lm_head"]
        return {name: self.lm.read(name) for name in names}


def capture(lm: LanguageModel, tokens, names: Sequence[str] = ("h", "x_down", "attn_map")):
    """Logits and raw intermediates of short prompts.

    tokens (B, T) int. Returns logits (B, T, V) and a dict of arrays with a leading layer axis, for example h (L, B, T, D),
    x_down (L, B, T, F), attn_map (L, B, H, T, T); `sysout_jax.TAPS` lists all names. Capturing changes no bit of the logits.
    Raises InputError for bad tokens and ValueError for a name that this model does not record.
    """
    names = tuple(names)
    cap.check_names(names)
    stream = Stream(lm, tokens)
    found = [seen for _, _, seen in stream.layers(_raw(names))]
    return stream.logits(), {name: np.stack([seen[name] for seen in found]) for name in names}


def observe_nothing(x_in, taps, extra) -> dict:
    """The `Observe` of passes that only want the hidden states or the likelihood."""
    return {}


def default_batch_size(num_sequences: int, length: int) -> int:
    """Sequences per step, so that calling the step costs little beside its work, and all steps have one shape."""
    most = int(np.clip(STEP_TOKENS // length, 1, num_sequences))
    return max(size for size in range(1, most + 1) if num_sequences % size == 0)


class _raw:  # a function that is equal to another one for the same names, so that jit compiles it once
    def __init__(self, names: tuple[str, ...]):
        self.names = names

    def __eq__(self, other):
        return isinstance(other, _raw) and self.names == other.names

    def __hash__(self):
        return hash(self.names)

    def __call__(self, x_in, taps, extra):
        missing = [name for name in self.names if name not in taps]
        if missing:
            raise ValueError(
                f"this model does not record {', '.join(missing)}; it has {', '.join(sorted(taps))}"
            )
        return {name: taps[name] for name in self.names}


@partial(jax.jit, static_argnums=(0, 1, 2))
def _block_step(block, observe: Observe, edit: Edit | None, params: dict, x_BxTxD, extra):
    # One sequence at a time: the shape of every product, and with it its rounding, is then that of a sequence, so that
    # statistics do not depend on how sequences were cut into batches. The products are T rows high, which is enough.
    def one_sequence(args):
        x_1xTxD, extra = jax.tree.map(lambda a: a[None], args)
        y, state = block.apply({"params": params}, x_1xTxD, mutable=[cap.COLLECTION])
        taps = cap.flatten_taps(state[cap.COLLECTION])
        if edit is not None:
            y = taps["h"] = edit(y, extra)
        found = observe(x_1xTxD, taps, extra)
        return jax.tree.map(lambda a: a[0], (y, found))

    return jax.lax.map(one_sequence, (x_BxTxD, extra))


@partial(jax.jit, static_argnums=0)
def _embed(module, params: dict, tokens_BxT):
    return module.apply({"params": params}, tokens_BxT, method="embed_tokens")


@partial(jax.jit, static_argnums=0)
def _unembed(module, params: dict, x_BxTxD):
    def one_sequence(x_TxD):
        return module.apply({"params": params}, x_TxD[None], method="unembed")[0]

    return jax.lax.map(one_sequence, x_BxTxD)


@partial(jax.jit, static_argnums=0)
def _next_token_nll(module, params: dict, x_BxTxD, tokens_BxT):
    B, T, D = x_BxTxD.shape
    rows = -(-(T - 1) // NLL_ROWS) * NLL_ROWS
    x = jnp.pad(x_BxTxD[:, :-1], ((0, 0), (0, rows - (T - 1)), (0, 0)))
    targets = jnp.pad(tokens_BxT[:, 1:], ((0, 0), (0, rows - (T - 1))))

    def chunk(args):
        x_RxD, targets_R = args
        logits = module.apply({"params": params}, x_RxD[None], method="unembed")[0].astype(
            jnp.float32
        )
        picked = jnp.take_along_axis(logits, targets_R[:, None], -1)[:, 0]
        return jax.nn.logsumexp(logits, axis=-1) - picked

    size = min(NLL_ROWS, rows) if rows else 1
    nll = jax.lax.map(chunk, (x.reshape(-1, size, D), targets.reshape(-1, size)))
    return nll.reshape(B, rows)[:, : T - 1]


def _slice(tree: Any, start: int, count: int):
    return jax.tree.map(lambda a: a[start : start + count], tree)


def _exact(lm: LanguageModel):
    """Float32 analysis means float32 products, also where the hardware would round them (TF32, bfloat16 passes)."""
    wide = jnp.dtype(lm.dtype).itemsize >= 4
    return jax.default_matmul_precision("highest") if wide else contextlib.nullcontext()
