"""`so.compression`: perplexity under quantisation and pruning (paper, Table 3 and B.4), and where the error comes from."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from sysout_jax.analyses.compression.errors import HiddenErrors, final_error, hidden_errors
from sysout_jax.analyses.compression.keeps import (
    born_weights,
    find_keeps,
    kept_weights,
    random_others,
)
from sysout_jax.analyses.compression.results import (
    Attribution,
    Compression,
    KeptOutcome,
    Outcome,
    Outliers,
)
from sysout_jax.analyses.lifecycle.measure import lifecycle
from sysout_jax.analyses.lifecycle.results import Lifecycle
from sysout_jax.calls import check_arguments, check_kind, check_list, check_words
from sysout_jax.compress.inputs import Calibrating, Calibration, calibrated_on, recording
from sysout_jax.compress.methods import (
    METHODS,
    SHARE,
    USUAL_METHODS,
    Compressor,
    Method,
    Settings,
    named,
)
from sysout_jax.config import ModelConfig
from sysout_jax.data.text import Windows
from sysout_jax.engine import Stream, observe_nothing
from sysout_jax.language_model import LanguageModel
from sysout_jax.models import parameter_count, parameter_shapes
from sysout_jax.numerics.intervals import Interval, bootstrap_weights, interval
from sysout_jax.outliers.definitions import TAU
from sysout_jax.perplexity import Perplexity, check_predicting, perplexity_of
from sysout_jax.statistics.collect import Collecting, Stats
from sysout_jax.weights import expected_shapes
from sysout_jax.words import joined


def compression(
    lm: LanguageModel,
    tokens,
    *,
    methods: Sequence[str] = USUAL_METHODS,
    attribute: Sequence[str] = (),
    sparsities: Sequence[float] = (0.5,),
    settings: Settings | None = None,
    calibration_tokens=None,
    tau: float = TAU,
    seeds: int = 3,
    seed: int = 0,
) -> Compression:
    """Perplexity of `tokens` (N, T) under each of `methods`, and the error of each of `attribute` per layer and outlier.

    Calibrates on `calibration_tokens`, or where there are none on `tokens` themselves. `seeds` random controls are drawn from `seed`.
    Raises InputError for bad tokens and unknown methods.
    """
    check_arguments(lm, tau=tau, seeds=seeds, seed=seed)
    check_kind("settings", settings, Settings)
    methods = check_words("methods", methods, METHODS)
    # what is pruned over the whole model is not decided within a layer, and a cache is no weight or input of one
    by_layer = {
        name: method
        for name, method in METHODS.items()
        if method.prune != "model" and not method.cache_bits and not method.kept_weights
    }
    attribute = check_words("attribute", attribute, by_layer, least=0)
    sparsities = check_list("sparsities", sparsities, SHARE)
    settings = settings or Settings()
    lm = lm.reading_once()
    needs_life = bool(attribute) or any(METHODS[name].kept_weights for name in methods)
    study = _Study(lm, tokens, tau if needs_life else None)
    chosen = [METHODS[name] for name in (*methods, *attribute)]
    calibrations: dict[str, Calibration | None] = {"": None}
    calibrated = "not needed"
    needing = [m for m in chosen if m.inputs == "static" or m.smooth]
    if needing:
        read = lm.check_tokens(tokens if calibration_tokens is None else calibration_tokens)
        calibrations = _calibrations(lm, read, tau, {method.left_out for method in needing})
        calibrated = calibrated_on(read, study.tokens)

    def compressor(method: Method, sparsity: float) -> Compressor:
        calibration = calibrations.get(method.left_out)
        return Compressor(lm, dataclasses.replace(settings, sparsity=sparsity), calibration)

    life = _life(lm, study.stats) if study.stats else None
    weights = born_weights(life, lm.config) if life else {}
    runs, notes = _runs(lm, methods, sparsities)
    if quantised := _quantised(lm):
        notes.insert(
            0,
            f"The file stores weights as {joined(quantised)}: full precision is what these give when they are read, and the methods round them once more.",
        )
    followed = dict.fromkeys(name for name, _ in _runs(lm, attribute, (0.0,))[0])
    outcomes = [study.outcome("full", "full precision", None, lm)]
    for name, sparsity in runs:
        method = METHODS[name]
        if method.kept_weights and not weights:
            notes.append(f"No {method.label}: no weight is found to write an outlier.")
            continue
        made = compressor(method, settings.sparsity if sparsity is None else sparsity)
        keep = weights if method.kept_weights else None
        label = named(method, made.settings)
        outcomes.append(study.outcome(name, label, sparsity, made.model(method, keep=keep)))
    if attribute and life is None:
        notes.append("No activation is larger than others: no outlier to attribute errors to.")
    return Compression(
        model=lm.name,
        num_layers=lm.num_layers,
        parameters=parameter_count(parameter_shapes(lm.config), positions=False),
        compressed_parameters=_compressed(lm.config, settings),
        settings=settings,
        sparsities=tuple(sparsities),
        protocol=study.exact.protocol,
        calibration=calibrated,
        outcomes=tuple(outcomes),
        outliers=_outliers(life, tau) if life else None,
        attributions=tuple(
            study.attribution(
                name, METHODS[name], compressor(METHODS[name], settings.sparsity), life, seeds, seed
            )
            for name in followed
        ),
        notes=tuple(notes),
        nonfinite=study.stream.nonfinite(),
    )


def _calibrations(
    lm: LanguageModel, tokens_NxT: np.ndarray, tau: float, left_out: Collection[str]
) -> dict[str, Calibration | None]:
    """By the tokens that enter no static scale: "", all do, or names of `LEFT_OUT`. Which ones hold outliers is known after a pass."""
    stream = recording(lm, tokens_NxT)
    observers: dict[str, Calibrating] = {}
    if "" in left_out:
        observers[""] = Calibrating(stream)
    if "first" in left_out:
        later = np.broadcast_to(np.arange(tokens_NxT.shape[1]) > 0, tokens_NxT.shape)
        observers["first"] = Calibrating(stream, later)
    if "outliers" in left_out:
        collecting = Collecting(stream, tau, ("h",))
        stream.run([*observers.values(), collecting])
        plain = ~np.asarray(collecting.stats().h.outlier_tokens(tau).any(axis=0))
        stream = recording(lm, tokens_NxT)
        observers["outliers"] = Calibrating(stream, plain)
        stream.run([observers["outliers"]])
    else:
        stream.run(list(observers.values()))
    return {name: observer.calibration for name, observer in observers.items()}


def _quantised(lm: LanguageModel) -> list[str]:
    """The quantised types that a GGUF file stores weights in."""
    types = {type for types in lm.stored_as.values() for type in types.split(", ")}
    return sorted(types - {"F64", "F32", "F16", "BF16"})


def _runs(
    lm: LanguageModel, methods: Sequence[str], sparsities: Sequence[float]
) -> tuple[list[tuple[str, float | None]], list[str]]:
    """Every method, pruning once per sparsity; without those that this model does not allow, and why."""
    runs: list[tuple[str, float | None]] = []
    notes = []
    for name in dict.fromkeys(methods):
        method = METHODS[name]
        spec = lm.config.layer(0)
        if method.smooth == "up" and not spec.mlp.linear_in_up:
            between = "a limit" if spec.mlp.gated else spec.mlp.activation.upper()
            notes.append(
                f"No {method.label}: {between} lies between up and down projection of {lm.name}."
            )
        elif method.smooth and not any(
            matrix.fed_by in ("attn_norm", "mlp_norm") for matrix in spec.matrices
        ):
            notes.append(
                f"No {method.label}: no norm of {lm.name} stands before the linear layers."
            )
        else:
            runs += [(name, s) for s in sparsities] if method.prune else [(name, None)]
    return runs, notes


def _compressed(config: ModelConfig, settings: Settings) -> int:
    ends = ("embed/", "positions/", "lm_head/")
    return sum(
        int(np.prod(shape))
        for name, shape in expected_shapes(config).items()
        if (settings.embeddings and name.startswith(ends))
        or (name.startswith("layer_") and name.endswith("/kernel"))
    )


def _life(lm: LanguageModel, stats: Stats) -> Lifecycle | None:
    """The lifecycle whose outliers, or strongest candidates, the error is attributed to."""
    report = lifecycle(lm, stats.tokens, stats.tau, stats=stats, cause=False)
    life = report if report.found else report.candidate
    return life if life is not None and life.trace is not None and life.birth.events else None


def _outliers(life: Lifecycle, tau: float) -> Outliers:
    events = life.birth.events
    return Outliers(
        found=life.tau == tau,
        tau=float(tau),
        level=life.tau,
        layers=life.birth.layers,
        dims=life.birth.dims,
        channels=tuple((e.layer, channel.index) for e in events for channel in e.channels),
        labels=tuple(channel.label for e in events for channel in e.channels),
        tokens=int(_marked(life).sum()),
    )


def _marked(life: Lifecycle) -> np.ndarray:
    """(N, T) tokens that hold an outlier in some layer."""
    return np.asarray(life.stats.h.outlier_tokens(life.tau).any(axis=0))


class _Study:
    """One model and its windows: full precision is run once, with its statistics where a `tau` is given, and held against every compressed model."""

    def __init__(self, lm: LanguageModel, tokens, tau: float | None):
        self.lm, self.windows, self.tokens = lm, Windows.of(tokens), lm.check_tokens(tokens)
        self.stream = Stream(lm, self.windows)
        check_predicting(self.stream)
        self.stats = None
        if tau is None:
            self.exact = self.finish(self.stream, 0)
        else:
            collecting = Collecting(self.stream, tau)
            self.stream.run([collecting])
            self.stats, self.exact = collecting.stats(), perplexity_of(self.stream)
        self.weights_RxN = bootstrap_weights(len(self.tokens))

    def run(self, lm: LanguageModel) -> tuple[Stream, Perplexity]:
        stream = Stream(lm, self.windows)
        check_predicting(stream)
        return stream, self.finish(stream, 0)

    def finish(self, stream: Stream, first: int) -> Perplexity:
        for _ in stream.layers(observe_nothing, first=first):
            pass
        return perplexity_of(stream)

    def interval(self, runs: Sequence[Perplexity], against: np.ndarray | float = 0.0) -> Interval:
        """Of the perplexity, or of its ratio to another one given by its window nll."""
        nll_NxS = np.stack([run.window_nll - against for run in runs], axis=1)
        with np.errstate(over="ignore"):
            return interval(np.exp(self.weights_RxN @ nll_NxS / len(nll_NxS)))

    def error(self, stream: Stream) -> float:
        return final_error(self.stream, stream)

    def outcome(self, name: str, label: str, sparsity: float | None, lm: LanguageModel) -> Outcome:
        stream, measured = (self.stream, self.exact) if lm is self.lm else self.run(lm)
        return Outcome(
            method=name,
            label=label,
            sparsity=sparsity,
            perplexity=self.interval([measured]),
            ratio=self.interval([measured], self.exact.window_nll),
            error=self.error(stream),
            nonfinite=stream.nonfinite().h.total,
        )

    def attribution(
        self,
        name: str,
        method: Method,
        made: Compressor,
        life: Lifecycle | None,
        seeds: int,
        seed: int,
    ) -> Attribution:
        compressed = made.model(method)
        dims, marked = (life.birth.dims, _marked(life)) if life else ((), None)

        def errors(accumulate: bool) -> HiddenErrors:
            return hidden_errors(
                self.lm, compressed, self.tokens, dims, marked, accumulate=accumulate
            )

        stream, measured = self.run(compressed)
        return Attribution(
            method=name,
            label=named(method, made.settings),
            perplexity=measured.value,
            error=self.error(stream),
            perplexity_alone=self._alone(method, made),
            own=errors(accumulate=False),
            accumulated=errors(accumulate=True),
            kept=self._kept(method, made, life, seeds, seed) if life and not method.prune else (),
        )

    def _alone(self, method: Method, made: Compressor) -> np.ndarray:
        """Perplexity with one layer compressed at a time; what lies before it is computed once."""
        exact = Stream(self.lm, self.windows)
        before, perplexities = list(exact.hidden), []
        for layer, _, _ in exact.layers(observe_nothing):
            branch = copy.copy(exact)
            branch.lm, branch.hidden = made.model(method, (layer,)), before
            perplexities.append(self.finish(branch, layer).value)
            before = list(exact.hidden)
        return np.array(perplexities)

    def _kept(
        self, method: Method, made: Compressor, life: Lifecycle, seeds: int, seed: int
    ) -> tuple[KeptOutcome, ...]:
        config, outcomes = self.lm.config, []
        for i, (what, keep) in enumerate(find_keeps(life, config).items()):
            controls = [
                random_others(keep, config, np.random.default_rng([seed, i, run]))
                for run in range(seeds)
            ]
            kept, *others = (self.run(made.model(method, keep=k)) for k in (keep, *controls))
            outcomes.append(
                KeptOutcome(
                    what=what,
                    weights=kept_weights(keep, config),
                    perplexity=self.interval([kept[1]]),
                    error=self.error(kept[0]),
                    control=self.interval([run for _, run in others]),
                    control_error=float(np.mean([self.error(stream) for stream, _ in others])),
                )
            )
        return tuple(outcomes)
