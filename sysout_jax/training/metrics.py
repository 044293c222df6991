"""Where the numbers of a run go: metrics.jsonl always, TensorBoard and Weights & Biases on request; and model FLOPs utilisation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import jax

from sysout_jax.config import ModelConfig
from sysout_jax.errors import InputError
from sysout_jax.staging import write_file

METRICS = "metrics.jsonl"

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


class JsonLines:
    """metrics.jsonl, one record a line. Lines behind `step` are dropped first: a resumed run writes them again."""

    def __init__(self, workdir: Path, step: int):
        path = Path(workdir) / METRICS
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= step]
        write_file(path, "".join(kept).encode())
        self._file = path.open("a", buffering=1)

    def write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        self._file.close()


def _whole_lines(path: Path) -> Iterable[str]:
    if not path.exists():
        return
    with path.open() as file:
        for line in file:
            if line.endswith("\n"):  # a killed run may leave half a line
                yield line


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """All records of a run, in order."""
    return [json.loads(line) for line in _whole_lines(Path(workdir) / METRICS)]


class TensorBoard:
    """Scalars by name; a list over layers becomes one scalar per layer, counted from 1."""

    def __init__(self, workdir: Path):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise InputError(
                "--tensorboard needs tensorboardX; pip install 'sysout_jax[tensorboard]'"
            ) from None
        self._writer = SummaryWriter(str(Path(workdir) / "tensorboard"))

    def write(self, record: dict[str, Any]) -> None:
        for name, value in _scalars(record):
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """The same scalars in a W&B project."""

    def __init__(self, project: str, workdir: Path, config: dict[str, Any]):
        try:
            import wandb
        except ImportError:
            raise InputError("--wandb needs wandb; pip install 'sysout_jax[wandb]'") from None
        self._run = wandb.init(
            project=project,
            dir=str(workdir),
            id=Path(workdir).absolute().name,
            resume="allow",
            config=config,
        )

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
