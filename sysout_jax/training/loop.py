"""A training run from its config to its last checkpoint: resumable at any moment, bit for bit."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sysout_jax.attention import resolve_kernel
from sysout_jax.checkpoint import write_config
from sysout_jax.data.batches import batches, validation_slice
from sysout_jax.data.token_files import check_vocab
from sysout_jax.errors import InputError, RunError
from sysout_jax.provenance import run_settings
from sysout_jax.sharding import make_mesh
from sysout_jax.training import metrics as sinks
from sysout_jax.training.checkpoints import Checkpoints
from sysout_jax.training.config import TrainConfig, differences, from_dict, to_dict
from sysout_jax.training.forward import parameter_count
from sysout_jax.training.monitor import Monitor
from sysout_jax.training.step import Program, State, make_program

CONFIG = "train.json"
TOKENIZER = "tokenizer.json"


@dataclass
class Progress:
    """What a progress line shows; handed to `report` after every step."""

    step: int
    last_step: int
    loss: float
    val_loss: float | None
    tokens_per_second: float
    mfu: float | None
    seconds_left: float


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `finished`, or `interrupted` by a signal after a save."""

    status: str
    step: int
    val_loss: float | None


def fit(
    config: TrainConfig,
    workdir: Path,
    report: Callable[[Progress], object] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train until `config.last_step`, going on from the latest whole checkpoint in `workdir` if there is one.

    `should_stop` is asked between steps (a signal came); the run then saves and returns. Raises InputError for a config, data
    or mesh that cannot work and for a workdir of another config, RunError for NaN loss and failed writes.
    """
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    try:
        kernel = resolve_kernel(config.kernel, config.dtype, variant=config.model.attention)
    except ValueError as error:
        raise InputError(f"--kernel {config.kernel}: {error}") from None
    for split in ("train", "val"):
        check_vocab(config.data, split, config.model.vocab_size)
    with jax.set_mesh(mesh):
        program = make_program(config, mesh)
        data = _Data(config, program)
        _claim(config, workdir)
        checkpoints = Checkpoints(workdir, config.keep)
        try:
            run = _Run(config, workdir, program, data, checkpoints, report, should_stop)
            run.write({"run": run_settings(kernel, mesh=dict(mesh.shape))})
            return run.run()
        finally:
            checkpoints.close()


def _claim(config: TrainConfig, workdir: Path) -> None:
    """Make the workdir this config's, or refuse when it is another's."""
    path = workdir / CONFIG
    if path.exists():
        changed = differences(read_config(workdir), config)
        if changed:
            raise InputError(
                f"{workdir}: holds a run of another config ({'; '.join(changed)}); name a new --workdir or "
                "take the differences back"
            )
    elif workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise InputError(f"{workdir}: exists and is no training run; name a new --workdir")
    if jax.process_index():
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        tokenizer = config.data / TOKENIZER
        if tokenizer.is_file():
            shutil.copyfile(tokenizer, workdir / TOKENIZER)
        write_config(workdir, config.model)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(to_dict(config), indent=2) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"--workdir {workdir}: {error.strerror}; name another directory") from None


def read_config(workdir: Path) -> TrainConfig:
    """The config that a run in `workdir` was last started with; InputError when it cannot be read."""
    path = Path(workdir) / CONFIG
    try:
        return from_dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable training config ({error})") from None


class _Data:
    """Batches as global arrays, and the fixed slices for evaluation and monitoring."""

    def __init__(self, config: TrainConfig, program: Program):
        self._config, self._program = config, program
        self.iterator = batches(
            config.data, "train", config.batch_size, config.seq_len, seed=config.seed
        )
        self.validation = validation_slice(config.data, config.seq_len, config.eval_sequences)
        shards = program.eval_sharding.mesh.size // program.eval_sharding.mesh.shape["tensor"]
        count = -(-config.monitor_sequences // shards) * shards
        self.probe = np.resize(self.validation, (count, config.seq_len + 1))[:, :-1]
        self.parts = config.batch_size // config.accumulate

    def next(self) -> jax.Array:
        local = next(self.iterator)
        A = self._config.accumulate
        local = local.reshape(A, len(local) // A, -1)
        shape = (A, self.parts, local.shape[-1])
        return jax.make_array_from_process_local_data(self._program.batch_sharding, local, shape)

    def everywhere(self, tokens: np.ndarray) -> jax.Array:
        """Host tokens that every process holds, spread over the devices."""
        sharding = self._program.eval_sharding
        return jax.make_array_from_callback(tokens.shape, sharding, lambda index: tokens[index])

    def validation_batches(self) -> Iterator[jax.Array]:
        # one shape for all, and every sequence once: the slice is cut to whole batches
        size = min(self.parts, len(self.validation))
        shards = self._program.eval_sharding.mesh.size
        size = max(size // shards, 1) * shards if size >= shards else shards
        for start in range(0, max(len(self.validation) - size, 0) + 1, size):
            rows = np.resize(
                self.validation[start : start + size], (size, self.validation.shape[1])
            )
            yield self.everywhere(rows)


class _Run:
    def __init__(self, config, workdir, program, data, checkpoints, report, should_stop):
        self.config: TrainConfig = config
        self.program: Program = program
        self.data: _Data = data
        self.checkpoints: Checkpoints = checkpoints
        self.report, self.should_stop = report, should_stop
        restored = checkpoints.restore(program.shapes)
        if restored is None:
            self.state: State = program.init(jax.random.key(config.seed))
            self.step = 0
        else:
            self.state, position = restored
            self.step = int(self.state["step"])
            data.iterator.set_state(position)
        self.saved = self.step if restored else -1
        self.sinks = self._open_sinks(Path(workdir)) if jax.process_index() == 0 else []
        self.monitor = Monitor(config.model, config.dtype) if config.monitor_every else None
        self.clock = _Clock(config, program)
        self.pending: tuple[int, dict] | None = None
        self.loss, self.val_loss = float("nan"), None

    def _open_sinks(self, workdir: Path) -> list[sinks.Sink]:
        opened: list[sinks.Sink] = [sinks.JsonLines(workdir, self.step)]
        if self.config.tensorboard:
            opened.append(sinks.TensorBoard(workdir))
        if self.config.wandb:
            opened.append(sinks.WeightsAndBiases(self.config.wandb, workdir, to_dict(self.config)))
        return opened

    def run(self) -> Outcome:
        config, last = self.config, self.config.last_step
        status = "finished"
        try:
            while self.step < last:
                if self._interrupted():
                    status = "interrupted"
                    break
                batch = self.data.next()
                self.state, found = self.program.train(self.state, batch)
                self.step += 1
                self._settle()  # of the step before: its numbers are there while this one computes
                self.pending = (self.step, found)
                if self.step % config.eval_every == 0 or self.step == last:
                    self._settle()
                    self._evaluate()
                if config.monitor_every and self.step % config.monitor_every == 0:
                    self._observe(found)
                if self.step % config.save_every == 0:
                    self._save()
            self._settle()
            self._save()
            self.checkpoints.wait()
        finally:
            for sink in self.sinks:
                sink.close()
        return Outcome(status, self.step, self.val_loss)

    def _interrupted(self) -> bool:
        if jax.process_count() > 1:  # all processes must leave at the same step
            return self.checkpoints.should_stop(self.step)
        return self.should_stop()

    def _settle(self) -> None:
        """Read the numbers of the last step that was started; stop before a NaN can reach a checkpoint."""
        if self.pending is None:
            return
        step, found = self.pending
        self.pending = None
        self.loss = float(found["loss"])
        if not math.isfinite(self.loss) or not math.isfinite(float(found["grad_norm"])):
            self.checkpoints.wait()
            whole = self.checkpoints.steps()
            kept = (
                f"the last good checkpoint is of step {whole[-1]}" if whole else "no checkpoint yet"
            )
            raise RunError(
                f"loss is {self.loss} at step {step}: stopped, {kept}; lower optimizer.lr, clip gradients or look at the data"
            )
        self.clock.tick(step)
        if step % self.config.log_every == 0 or step == self.config.last_step:
            self.write(
                {
                    "loss": self.loss,
                    "lr": float(found["lr"]),
                    "grad_norm": float(found["grad_norm"]),
                    "tokens": step * self.config.tokens_per_step,
                    "tokens_per_second": self.clock.tokens_per_second,
                    "mfu": self.clock.mfu,
                },
                step,
            )
        self.report(
            Progress(
                step,
                self.config.last_step,
                self.loss,
                self.val_loss,
                self.clock.tokens_per_second,
                self.clock.mfu,
                self.clock.seconds_left(step),
            )
        )

    def _evaluate(self) -> None:
        with self.clock.paused():
            losses = [
                self.program.evaluate(self.state["params"], batch)
                for batch in self.data.validation_batches()
            ]
            self.val_loss = float(np.mean([float(loss) for loss in losses]))
        self.write({"val_loss": self.val_loss})

    def _observe(self, found: dict) -> None:
        assert self.monitor is not None
        with self.clock.paused():
            seen = self.monitor(self.state["params"], self.data.everywhere(self.data.probe))
            norms = jax.device_get(found["grad_norms"])
        seen |= {f"grad_norm_{name}": values.tolist() for name, values in norms.items()}
        self.write({"monitor": seen})

    def _save(self) -> None:
        if self.saved == self.step:
            return
        self._settle()
        with self.clock.paused():
            if self.val_loss is None or self.step % self.config.eval_every:
                self._evaluate()
            assert self.val_loss is not None
            self.checkpoints.save(
                self.step, self.state, self.data.iterator.get_state(), self.val_loss
            )
        self.saved = self.step

    def write(self, values: dict[str, Any], step: int | None = None) -> None:
        """A record of `step` (default: the current one) to all sinks."""
        for sink in self.sinks:
            sink.write({"step": self.step if step is None else step} | values)


class _Clock:
    """Tokens per second over the last steps, without compilation, evaluation, monitoring and saving."""

    WINDOW = 50

    def __init__(self, config: TrainConfig, program: Program):
        weights = parameter_count(program.shapes["params"], positions=False)
        self._flops = sinks.flops_per_token(config.model, weights, config.seq_len)
        self._peak = sinks.peak_flops()
        self._tokens, self._last_step = config.tokens_per_step, config.last_step
        self._steps: list[float] = []
        self._since: float | None = None
        self._away = 0.0

    def tick(self, step: int) -> None:
        now = time.perf_counter()
        if self._since is not None:  # the first step compiles
            self._steps = [*self._steps, now - self._since - self._away][-self.WINDOW :]
        self._since, self._away = now, 0.0

    def paused(self):
        return _Pause(self)

    @property
    def tokens_per_second(self) -> float:
        total = sum(self._steps)
        return self._tokens * len(self._steps) / total if total > 0 else 0.0

    @property
    def mfu(self) -> float | None:
        return None if self._peak is None else self.tokens_per_second * self._flops / self._peak

    def seconds_left(self, step: int) -> float:
        speed = self.tokens_per_second
        return (self._last_step - step) * self._tokens / speed if speed else float("inf")


class _Pause:
    def __init__(self, clock: _Clock):
        self._clock = clock

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_) -> None:
        self._clock._away += time.perf_counter() - self._start
