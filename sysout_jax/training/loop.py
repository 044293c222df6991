"""A training run from its config to its last checkpoint: resumable at any moment, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from sysout_jax.attention import attention_spec, resolve_kernel
from sysout_jax.checkpoints.run_checkpoints import RUN
from sysout_jax.checks import shown
from sysout_jax.config import config_to_dict
from sysout_jax.data.identity import check_identity, identity
from sysout_jax.data.token_files import check_vocab
from sysout_jax.errors import InputError, RunError
from sysout_jax.language_model import LanguageModel
from sysout_jax.loading import load
from sysout_jax.provenance import run_settings
from sysout_jax.sharding import lay, make_mesh, put, relaid
from sysout_jax.training import metrics as sinks
from sysout_jax.training.checkpoints import Checkpoints
from sysout_jax.training.clock import Clock
from sysout_jax.training.config import TrainConfig, to_dict
from sysout_jax.training.feed import Feed
from sysout_jax.training.metrics_file import JsonLines
from sysout_jax.training.monitor import Monitor
from sysout_jax.training.step import Program, State, make_program
from sysout_jax.training.workdir import alone_in, check, check_checkpoint, check_not_beyond, claim


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
    or mesh that cannot work, for a workdir of another config or other data and for one that another training works in; nothing is written
    then. RunError for a loss, gradient or validation loss that is not finite, failed writes and checkpoints that cannot be read.
    """
    workdir = Path(workdir)
    sinks.check_extras(config.tensorboard, config.wandb)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    kernel = resolve_kernel(
        config.kernel,
        config.dtype,
        spec=attention_spec(config.model, config.model.layer(0).attention, config.seq_len),
    )
    for split in ("train", "val"):
        check_vocab(config.data, split, config.model.vocab_size)
    with jax.set_mesh(mesh):
        program = make_program(config, mesh)
        feed = Feed(config, program)
        check(config, workdir)
        start = _start(config)
        with alone_in(workdir), closing(Checkpoints(workdir, config.keep)) as checkpoints:
            check(config, workdir)  # again: another training may have begun it meanwhile
            data = identity(config.data)
            restored = checkpoints.restore(program.stored)
            if restored:
                check_checkpoint(
                    config, restored.config, workdir / RUN / str(restored.state["step"])
                )
                check_identity(config.data, data, restored.data)
                check_not_beyond(config, int(restored.state["step"]), workdir)
            claim(config, workdir)
            first = None if start is None or restored else put(lay(start.params, mesh), mesh)
            run = _Run(
                config,
                workdir,
                program,
                feed,
                checkpoints,
                restored,
                first,
                data,
                report,
                should_stop,
            )
            run.write({"run": run_settings(kernel, mesh=dict(mesh.shape))})
            return run.run()


def _start(config: TrainConfig) -> LanguageModel | None:
    """The model whose weights the run starts from. InputError when it is another one than the config's."""
    if config.init is None:
        return None
    lm = load(config.init)
    if lm.config != config.model:
        theirs, ours = config_to_dict(lm.config), config_to_dict(config.model)
        wrong = [
            f"{name}: {shown(theirs.get(name))} there, {shown(ours.get(name))} here"
            for name in sorted(theirs | ours)
            if theirs.get(name) != ours.get(name)
        ]
        raise InputError(
            f"init {config.init}: holds another model ({'; '.join(wrong[:4])}); take its config as it is"
        )
    return lm


class _Run:
    def __init__(
        self,
        config,
        workdir,
        program,
        feed,
        checkpoints,
        restored,
        first,
        data,
        report,
        should_stop,
    ):
        self.config: TrainConfig = config
        self.program: Program = program
        self.feed: Feed = feed
        self.checkpoints: Checkpoints = checkpoints
        self.data: dict = data
        self.report, self.should_stop = report, should_stop
        if restored is None:
            self.state: State = program.init(jax.random.key(config.seed))
            if first is not None:
                self.state = self.state | {"params": first}
            self.step = 0
        else:
            self.state = relaid(restored.state, program.shapes)
            self.step = int(self.state["step"])
            feed.iterator.set_state(restored.position)
        self.saved = self.resumed_at = self.step if restored else -1
        self.sinks = self._open_sinks(workdir) if jax.process_index() == 0 else []
        self.monitor = Monitor(config.model, config.dtype) if config.monitor_every else None
        self.clock = Clock(config, program)
        self.pending: tuple[int, dict] | None = None
        self.loss, self.val_loss = float("nan"), None

    def _open_sinks(self, workdir: Path) -> list[sinks.Sink]:
        opened: list[sinks.Sink] = [JsonLines(workdir, self.step)]
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
                batch = self.feed.next()
                self.state, measured = self.program.train(self.state, batch)
                self.step += 1
                self._settle()  # of the step before: its numbers are there while this one computes
                self.pending = (self.step, measured)
                if self.step % config.eval_every == 0 or self.step == last:
                    self._settle()
                    self._evaluate()
                if config.monitor_every and self.step % config.monitor_every == 0:
                    self._observe(measured)
                if self.step % config.save_every == 0:
                    self._save()
            self._settle()
            self._save()
            self.checkpoints.wait()
            if status == "finished" and self.saved != self.resumed_at:
                self.checkpoints.confirm(self.step)
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
        step, measured = self.pending
        self.pending = None
        self.loss, grad_norm = float(measured["loss"]), float(measured["grad_norm"])
        if not math.isfinite(self.loss):
            self._stop(f"loss is {self.loss}", step)
        if not math.isfinite(grad_norm):
            self._stop(f"gradient norm is {grad_norm} (loss {self.loss:.4g})", step)
        self.clock.tick()
        if step % self.config.log_every == 0 or step == self.config.last_step:
            self.write(
                {
                    "loss": self.loss,
                    "lr": float(measured["lr"]),
                    "grad_norm": grad_norm,
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
            params, parts = self.state["params"], list(self.feed.validation_parts())
            losses = [self.program.evaluate(params, part.tokens, part.masked) for part in parts]
            weights = [part.sequences for part in parts]
            val_loss = float(np.average([float(loss) for loss in losses], weights=weights))
        if not math.isfinite(val_loss):
            self._stop(f"validation loss is {val_loss}", self.step)
        self.val_loss = val_loss
        self.write({"val_loss": self.val_loss})

    def _stop(self, what: str, step: int) -> NoReturn:
        """RunError: what came out is no number, and nothing that comes after it may be saved."""
        self.checkpoints.wait()
        whole = self.checkpoints.steps()
        kept = f"the last good checkpoint is of step {whole[-1]}" if whole else "no checkpoint yet"
        raise RunError(
            f"{what} at step {step}: stopped, {kept}; the same settings would lead here again: lower optimizer.lr or clip gradients in "
            "another workdir, or look at the data"
        )

    def _observe(self, measured: dict) -> None:
        assert self.monitor is not None
        with self.clock.paused():
            seen = self.monitor(self.state["params"], self.feed.probe())
            norms = jax.device_get(measured["grad_norms"])
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
            stored = relaid(self.state, self.program.stored)
            position = self.feed.iterator.get_state()
            self.checkpoints.save(
                self.step, stored, position, self.val_loss, self.data, to_dict(self.config)
            )
        self.saved = self.step

    def write(self, values: dict[str, Any], step: int | None = None) -> None:
        """A record of `step` (default: the current one) to all sinks."""
        for sink in self.sinks:
            sink.write({"step": self.step if step is None else step} | values)
