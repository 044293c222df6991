"""`so.absorb`: find a prefix, make its keys and values constants of the model, and say what that removes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from sysout_jax.analyses.absorb.results import Absorption, Proof, Quantised, Reading, Staying
from sysout_jax.analyses.absorb.search import LONGEST, chosen, search
from sysout_jax.analyses.lifecycle.waves import find_waves
from sysout_jax.attention import AttentionSpec
from sysout_jax.attention.logits import first_key_weights
from sysout_jax.calls import check_arguments, check_list
from sysout_jax.checks import Whole
from sysout_jax.compress.absorption import absorbed, check_absorbable, prefix_keys, refusal
from sysout_jax.compress.inputs import calibrate, calibrated_on
from sysout_jax.compress.methods import Compressor, Method
from sysout_jax.data.text import Windows
from sysout_jax.engine import Stream, observe_nothing
from sysout_jax.errors import InputError
from sysout_jax.language_model import LanguageModel
from sysout_jax.models.spec import LayerSpec
from sysout_jax.outliers import definitions as rules
from sysout_jax.outliers.definitions import TAU, TAUS
from sysout_jax.perplexity import perplexity, perplexity_of, protocol_of
from sysout_jax.statistics.activations import (
    ActivationStats,
    join_activations,
    reduce_activations,
    reduce_x_down,
)
from sysout_jax.statistics.statistic import TOP

PROOF_TOKENS = 128  # of the first window, whose logits are compared
STAYING = 12  # tokens that are listed
#: Static scales are what one outlier spoils.
QUANTISED: tuple[Method, ...] = (
    Method("A8 static per tensor", inputs="static"),
    Method("W8A8 static per tensor", 8, "tensor", "static"),
)


def absorb(
    lm: LanguageModel,
    tokens,
    tau: float = TAU,
    *,
    prefix: Sequence[int] | None = None,
    calibration_tokens=None,
    longest: int = LONGEST,
) -> Absorption:
    """Absorb a prefix into a model and measure both on `tokens` (N, T): outliers, attention, perplexity, static quantisation.

    `prefix` are token ids; without them one of up to `longest` tokens is searched for. The search and the calibration of scales read
    `calibration_tokens`, or where there are none `tokens` themselves. Raises InputError for bad tokens and for a model whose positions
    or attention allow no prefix.
    """
    check_arguments(lm, tau=tau)
    if reason := refusal(lm.config):
        raise InputError(f"{lm.name}: no prefix can be absorbed, {reason}")
    windows = Windows.of(tokens)
    checked = lm.check_tokens(tokens)
    calibration = checked if calibration_tokens is None else lm.check_tokens(calibration_tokens)
    if prefix is not None:
        prefix = check_list("prefix", prefix, Whole(0))
        check_absorbable(lm, prefix)
    (longest,) = check_list("longest", [longest], Whole(1, 64))
    taken = longest if prefix is None else len(prefix)
    length = checked.shape[1]
    if length + taken > lm.config.context_length:
        raise InputError(
            f"windows of {length} tokens after a prefix of up to {taken} exceed the model's context of "
            f"{lm.config.context_length}; shorten them"
        )
    tried = () if prefix is not None else search(lm, calibration, longest)
    keys = prefix_keys(lm, chosen(tried).prefix if prefix is None else prefix)
    clean = absorbed(lm, keys)
    before, _ = _read(lm, windows, tau)
    after, stream = _read(clean, windows, tau)
    tokenizer = lm.tokenizer
    return Absorption(
        model=clean,
        name=lm.name,
        family=lm.config.family,
        prefix=keys.prefix,
        prefix_text=tuple(tokenizer.token(t) if tokenizer else f"[{t}]" for t in keys.prefix),
        given=prefix is not None,
        keys=keys,
        proof=_prove(lm, keys.prefix, stream),
        tau=float(tau),
        protocol=protocol_of(windows),
        even_share=np.array([rules.even_share(length, w) for w in lm.attention_windows(length)]),
        before=before,
        after=after,
        search=tried,
        quantised=_quantised(lm, clean, windows, calibration),
        calibration=calibrated_on(calibration, stream.tokens),
    )


@dataclass(frozen=True)
class _Observe:
    """What is kept of one layer and sequence; `plain` is the rule of its attention."""

    spec: LayerSpec
    plain: AttentionSpec

    def __call__(self, x_in, taps, extra) -> dict[str, Any]:
        first_BxHxT = first_key_weights(taps["q"], taps["k"], taps["lse"], self.plain)
        scale_BxHxT = taps.get("attn_scale", jnp.ones_like(first_BxHxT))
        return {
            "h": reduce_activations(taps["h"], TOP),
            "x_down": reduce_x_down(self.spec.mlp, taps, TOP),
            "first": (scale_BxHxT * first_BxHxT).mean(-1),
            "extra": (1 - scale_BxHxT).mean(-1),
        }


def _read(lm: LanguageModel, windows: Windows, tau: float) -> tuple[Reading, Stream]:
    """And the stream that has gone through all layers."""
    stream, length = Stream(lm, windows), np.shape(windows)[-1]
    specs = [lm.config.layer(l) for l in range(lm.num_layers)]
    observes = [_Observe(spec, lm.attention(l, length)) for l, spec in enumerate(specs)]
    seen = [layer for _, _, layer in stream.layers(observes)]
    h = join_activations([layer["h"] for layer in seen], TOP)
    width = specs[0].mlp.expert_width
    x_down = join_activations([layer["x_down"] for layer in seen], TOP, width)

    waves = find_waves(lm, stream.tokens, h, tau).waves

    def mean(name: str) -> np.ndarray:
        return np.stack([layer[name].astype(np.float64).mean(axis=0) for layer in seen])

    return Reading(
        perplexity=perplexity_of(stream),
        h_ratio=h.ratio,
        x_down_ratio=x_down.ratio,
        h_counts=h.counts,
        x_down_counts=x_down.counts,
        first=mean("first"),
        extra=mean("extra"),
        stays=_staying(h, stream.tokens),
        waves=tuple(wave for wave in waves if wave.ratio > TAUS[0]),
        nonfinite=stream.nonfinite(),
    ), stream


def _staying(h: ActivationStats, tokens_NxT: np.ndarray) -> tuple[Staying, ...]:
    ratio_LxNxT = rules.ratio(h.token_max, h.sequence_mean[..., None])
    over_LxNxT = h.outlier_tokens(TAUS[0])
    staying = []
    for token in np.unique(tokens_NxT[over_LxNxT.any(axis=0)]):
        at_NxT = tokens_NxT == token
        mine_LxNxT = over_LxNxT & at_NxT
        layers = np.flatnonzero(mine_LxNxT.any(axis=(1, 2)))
        places = int(mine_LxNxT.any(axis=0).sum())
        ratio = float(ratio_LxNxT[:, at_NxT].max())
        staying.append(Staying(int(token), places, ratio, tuple(int(l) for l in layers)))
    return tuple(sorted(staying, key=lambda token: -token.ratio)[:STAYING])


def _prove(lm: LanguageModel, prefix: tuple[int, ...], alone: Stream) -> Proof:
    """`alone` is the absorbed model's stream over the text."""
    text, count = alone.tokens, len(prefix)
    rows = np.tile(np.array(prefix, np.int32), (len(text), 1))
    whole = Stream(lm, np.concatenate([rows, text], axis=1))
    for _ in whole.layers(observe_nothing):
        pass
    original = _first_logits(whole, count)
    nll = np.abs(whole.nll()[:, count:] - alone.nll())
    return Proof(
        dtype=str(jnp.dtype(lm.dtype)),
        logits=float(np.abs(original - _first_logits(alone, 0)).max()),
        logits_of=float(np.abs(original).max()),
        tokens=original.shape[1],
        nll=float(nll.max()) if nll.size else float("nan"),
    )


def _first_logits(stream: Stream, start: int) -> np.ndarray:
    """(1, at most `PROOF_TOKENS`, V) of the first window, from a position on."""
    few = copy.copy(stream)
    few.hidden = [next(stream.states())[:1, start : start + PROOF_TOKENS]]
    return np.asarray(few.logits(), np.float32)


def _quantised(
    lm: LanguageModel, clean: LanguageModel, windows: Windows, calibration: np.ndarray
) -> tuple[Quantised, ...]:
    if np.shape(windows)[-1] < 2:
        return ()
    made = [Compressor(model, calibration=calibrate(model, calibration)) for model in (lm, clean)]
    return tuple(
        Quantised(
            method.label,
            *(perplexity(compressor.model(method), windows).value for compressor in made),
        )
        for method in QUANTISED
    )
