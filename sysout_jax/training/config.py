"""What a training run is made of: frozen dataclasses, checked when they are built. A file in configs/ is one of them."""

from __future__ import annotations

import dataclasses
import difflib
import os
import runpy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from sysout_jax.attention.kernels import KERNELS
from sysout_jax.checks import Flag, Is, OrNone, Real, Rule, Whole, Word, check_fields, shown
from sysout_jax.config import ModelConfig, config_to_dict
from sysout_jax.errors import InputError
from sysout_jax.families import config_from_dict
from sysout_jax.sharding import MeshConfig

T = TypeVar("T")

# Steps compute in float32: what is 0, 1 or infinite there is meant by nobody
_FLOAT32 = np.finfo(np.float32)
_ZERO_OR_MORE = Real(0, float(_FLOAT32.max))
_POSITIVE = Real(float(_FLOAT32.tiny), float(_FLOAT32.max))
_BETA = Real(0, below=1 - 2**-25)
OptimizerName = Literal["adamw", "muon", "sgd"]
_OPTIMIZER_RULES: dict[str, Rule] = {
    "name": Word(get_args(OptimizerName)),
    "momentum": _BETA,
    "lr": _POSITIVE,
    "min_lr": _ZERO_OR_MORE,
    "warmup_steps": Whole(0),
    "decay_steps": Whole(0),
    "beta1": _BETA,
    "beta2": _BETA,
    "eps": _POSITIVE,
    "weight_decay": _ZERO_OR_MORE,
    "clip": _ZERO_OR_MORE,
}


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW as in nanoGPT: decay on matrices only, linear warm-up, cosine to `min_lr`. Or Muon for the matrices of layers, or SGD."""

    name: OptimizerName = "adamw"
    """muon: the matrices of layers by orthogonalised momentum, as long as AdamW's updates are, all else by AdamW (Jordan et al. 2024, Liu et
    al. 2025); sgd: with momentum. Learning rate, decay and clipping are the same for all."""
    momentum: float = 0.95
    """Of muon (Nesterov's) and sgd; AdamW has betas."""
    lr: float = 6e-4
    min_lr: float = 6e-5
    warmup_steps: int = 2000
    decay_steps: int = 600_000
    """Step at which the cosine reaches min_lr, counted from the start."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    """Largest global gradient norm; 0 does not clip."""

    def __post_init__(self) -> None:
        check_fields(self, _OPTIMIZER_RULES, "optimizer.")
        if self.min_lr > self.lr:
            raise InputError(f"optimizer.min_lr {self.min_lr} must lie between 0 and lr {self.lr}")


_COUNTS = """steps batch_size seq_len accumulate loss_chunk eval_every eval_sequences log_every save_every
    keep monitor_sequences"""
_RULES: dict[str, Rule] = {name: Whole(1) for name in _COUNTS.split()} | {
    "model": Is(ModelConfig),
    "data": Is(Path),
    "init": OrNone(Is(Path)),
    "tokens": OrNone(Whole(1, 2**63 - 1)),
    "optimizer": Is(OptimizerConfig),
    "dtype": Word(("float32", "bfloat16")),
    "kernel": Word(("auto", *KERNELS)),
    "remat": Flag(),
    "z_loss": _ZERO_OR_MORE,
    "monitor_every": Whole(0),
    "mesh": Is(MeshConfig),
    "seed": Whole(0, 2**32 - 1),  # jax drops higher bits in silence
    "tensorboard": Flag(),
    "wandb": Is(str),
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    model: ModelConfig
    data: Path
    """Directory with train.bin and val.bin, from python -m train.prepare or nanoGPT."""
    init: Path | None = None
    """Checkpoint of `model` whose weights the run starts from; default: random ones. Its optimiser is not taken over."""
    steps: int
    tokens: int | None = None
    """Stop earlier, once so many tokens were seen."""
    batch_size: int
    """Sequences per optimiser step, over all devices and accumulated parts."""
    seq_len: int
    accumulate: int = 1
    """Parts that a batch is cut into; gradients are averaged over them in float32."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    dtype: str = "bfloat16"
    """Of compute; weights, residual stream, loss and optimiser are float32."""
    kernel: str = "auto"
    """Attention kernel: auto, reference, blockwise, fused, splash."""
    remat: bool = False
    """Compute each layer's insides again for the gradient instead of keeping them."""
    z_loss: float = 0.0
    loss_chunk: int = 256
    """Positions per sequence whose logits are held at once."""
    eval_every: int = 1000
    eval_sequences: int = 64
    """Sequences of the fixed validation slice."""
    log_every: int = 10
    save_every: int = 1000
    keep: int = 2
    """Latest checkpoints kept, beside the best one by validation."""
    monitor_every: int = 100
    """Steps between two looks of the outlier monitor; 0 turns it off."""
    monitor_sequences: int = 4
    mesh: MeshConfig = field(default_factory=MeshConfig)
    seed: int = 0
    tensorboard: bool = False
    wandb: str = ""
    """Project name; needs the wandb extra."""

    def __post_init__(self) -> None:
        check_fields(self, _RULES)
        if self.batch_size % self.accumulate:
            raise InputError(
                f"batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate}"
            )
        if self.optimizer.name == "muon" and self.model.layer(0).mlp.experts is not None:
            raise InputError(
                "optimizer.name is 'muon'; expected adamw or sgd for a mixture of experts, whose matrices lie side by side in one"
            )
        if self.seq_len > self.model.context_length:
            raise InputError(
                f"seq_len {self.seq_len} exceeds the model's context_length {self.model.context_length}"
            )

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.seq_len

    @property
    def last_step(self) -> int:
        """Optimiser steps of the whole run."""
        if self.tokens is None:
            return self.steps
        return min(self.steps, max(1, self.tokens // self.tokens_per_step))


#: What may differ when a run is resumed: it changes when and where things happen, never what is computed.
FREE_ON_RESUME = (
    "steps",
    "tokens",
    "eval_every",
    "log_every",
    "save_every",
    "keep",
    "monitor_every",
    "mesh",
    "data",
    "tensorboard",
    "wandb",
)


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """JSON-ready; `from_dict` inverts it."""
    fields = dataclasses.asdict(config)
    init = None if config.init is None else str(config.init)
    return fields | {"model": config_to_dict(config.model), "data": str(config.data), "init": init}


def from_dict(fields: dict[str, Any]) -> TrainConfig:
    """Rebuild a config written by `to_dict`; InputError for fields that do not fit."""
    try:
        fields = dict(fields)
        return TrainConfig(
            **fields
            | {
                "model": config_from_dict(fields["model"]),
                "data": Path(fields["data"]),
                "init": Path(fields["init"]) if fields.get("init") else None,
                "optimizer": OptimizerConfig(**fields["optimizer"]),
                "mesh": MeshConfig(**fields["mesh"]),
            }
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"not a training config: {error}") from None


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """`key: old → new` for every setting that must not change within a run."""
    return [f"{key}: {change}" for key, change in changes(old, new).items()]


def changes(old: TrainConfig, new: TrainConfig) -> dict[str, str]:
    """The same by the keys, which name settings in settings as `optimizer.lr`."""

    def flat(tree: dict, prefix: str = "") -> dict[str, Any]:
        flattened: dict[str, Any] = {}
        for key, value in tree.items():
            flattened |= (
                flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
            )
        return flattened

    before, after = flat(to_dict(old)), flat(to_dict(new))
    return {
        key: f"{before.get(key)} → {after.get(key)}"
        for key in sorted(before | after)
        if key.split(".")[0] not in FREE_ON_RESUME and before.get(key) != after.get(key)
    }


def load_config(path: Path) -> TrainConfig:
    """The `config` that a Python file in configs/ defines. InputError when there is none or it cannot be built."""
    return load_defined(path, "config", TrainConfig)


def load_defined(path: Path, name: str, kind: type[T], example: str = "default") -> T:
    """What a Python file in configs/ calls `name`, a `kind`. InputError when there is none or it cannot be built.

    Where it is a function of a word (of an attention variant, say), `FILE.py:WORD` calls it, and `FILE_WORD.py` where no such file lies. The
    message for a file that wants one shows `example`.
    """
    path, word = _file_and_word(path)
    if not os.path.isfile(path):
        beside = path.parent.glob("*.py") if os.path.isdir(path.parent) else ()
        near = difflib.get_close_matches(path.name, [p.name for p in beside], 1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else "; name a file of configs/"
        raise InputError(f"config {path}: no such file{hint}")
    try:
        defined = runpy.run_path(str(path)).get(name)
        if word is not None:
            if not callable(defined):
                raise InputError(
                    f"its `{name}` stands for itself; name the file without {shown(word)}"
                )
            defined = defined(word)
    except InputError as error:
        raise InputError(f"config {path}: {error}") from None
    except (Exception, SystemExit) as error:
        raise InputError(f"config {path}: {_told(error)}") from None
    if callable(defined):
        raise InputError(
            f"config {path}: stands for several; name one behind a colon, as in {path}:{example}"
        )
    if not isinstance(defined, kind):
        raise InputError(f"config {path}: defines no `{name}` of type {kind.__name__}")
    return defined


def _told(error: BaseException) -> str:
    kind = type(error).__name__
    try:
        return f"{kind}: {error}"
    except Exception:  # it is the user's own, and may fail at that too
        return kind


def _file_and_word(path: Path) -> tuple[Path, str | None]:
    if os.path.isfile(path):
        return path, None
    file, colon, word = str(path).rpartition(":")
    if colon:
        return Path(file), word
    for at in range(len(path.stem) - 1, 0, -1):
        base = path.with_name(f"{path.stem[:at]}.py")
        if path.stem[at] == "_" and path.suffix == ".py" and os.path.isfile(base):
            return base, path.stem[at + 1 :]
    return path, None
