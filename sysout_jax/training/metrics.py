"""Where the numbers of a run go besides metrics.jsonl: TensorBoard and Weights & Biases on request; and model FLOPs utilisation."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import jax

from sysout_jax.config import ModelConfig
from sysout_jax.errors import InputError, RunError
from sysout_jax.printable import printable

#: Dense bfloat16 FLOP/s of a chip, from the vendors' data sheets; matched by the start of jax's device_kind.
PEAK_FLOPS = {
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,  # v5p; listed behind v5 lite, the first match holds
    "TPU v6 lite": 918e12,
}


def flops_per_token(config: ModelConfig, weights: int, length: int) -> float:
    """Forward and backward of one token: `6 N + 12 L D T` (Chowdhery et al. 2022, appendix B); N counts no position embeddings.

    D is the width of attention, heads times head size. Rematerialisation is not counted.
    """
    width = config.num_heads * config.head_dim  # type: ignore[attr-defined]
    return 6.0 * weights + 12.0 * config.num_layers * width * length


def peak_flops() -> float | None:
    """FLOP/s of all devices of the run together in bfloat16; None where unknown (CPU)."""
    kind = jax.devices()[0].device_kind
    chip = next((peak for name, peak in PEAK_FLOPS.items() if kind.startswith(name)), None)
    return None if chip is None else chip * jax.device_count()


class Sink(Protocol):
    """Takes records `{"step": …, name: number or list over layers}`."""

    def write(self, record: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def check_extras(tensorboard: bool, wandb: str) -> None:
    """InputError when a sink that is asked for is not installed."""
    if tensorboard and find_spec("tensorboardX") is None:
        raise InputError(
            "TensorBoard needs tensorboardX; pip install 'sysout_jax[tensorboard]' or leave it out"
        )
    if wandb and find_spec("wandb") is None:
        raise InputError(
            "Weights & Biases needs wandb; pip install 'sysout_jax[wandb]' or leave it out"
        )


class TensorBoard:
    """Scalars by name; a list over layers becomes one scalar per layer, counted from 1."""

    def __init__(self, workdir: Path):
        from tensorboardX import SummaryWriter

        path = Path(workdir) / "tensorboard"
        try:
            self._writer = SummaryWriter(str(path))
        except OSError as error:
            raise RunError(
                f"{path}: cannot be written ({error.strerror}); see to the disk and to what is there, or leave TensorBoard out"
            ) from None

    def write(self, record: dict[str, Any]) -> None:
        for name, value in _scalars(record):
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """The same scalars in a W&B project."""

    def __init__(self, project: str, workdir: Path, config: dict[str, Any]):
        import wandb

        try:
            self._run = wandb.init(
                project=project,
                dir=str(workdir),
                id=Path(workdir).absolute().name,
                resume="allow",
                config=config,
            )
        except Exception as error:  # of its own types, the network's and the operating system's
            raise RunError(
                f"Weights & Biases did not start ({printable(str(error), 300)}); log in to it, or leave it out"
            ) from None

    def write(self, record: dict[str, Any]) -> None:
        self._run.log(dict(_scalars(record)), step=record["step"])

    def close(self) -> None:
        self._run.finish()


def _scalars(record: dict[str, Any]) -> Iterable[tuple[str, float]]:
    for name, value in record.items():
        if name == "step":
            continue
        if isinstance(value, list):
            for layer, number in enumerate(value, 1):
                yield f"{name}/layer_{layer}", number
        elif isinstance(value, dict):
            yield from _scalars({f"{name}/{key}": inner for key, inner in value.items()})
        elif isinstance(value, (int, float)):
            yield name, value
