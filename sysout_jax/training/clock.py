"""How fast a run goes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from sysout_jax.models import parameter_count
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.metrics import flops_per_token, peak_flops
from sysout_jax.training.step import Program

WINDOW = 50  # steps


class Clock:
    """Tokens per second over the last steps, without compilation, evaluation, monitoring and saving."""

    def __init__(self, config: TrainConfig, program: Program):
        weights = parameter_count(program.shapes["params"], positions=False)
        self._flops = flops_per_token(config.model, weights, config.seq_len)
        self._peak = peak_flops()
        self._tokens, self._last_step = config.tokens_per_step, config.last_step
        self._seconds: deque[float] = deque(maxlen=WINDOW)
        self._since: float | None = None
        self._away = 0.0

    def tick(self) -> None:
        """A step has ended."""
        now = time.perf_counter()
        if self._since is not None:  # the first step compiles
            self._seconds.append(now - self._since - self._away)
        self._since, self._away = now, 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens in this block does not count."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._away += time.perf_counter() - start

    @property
    def tokens_per_second(self) -> float:
        """0 until two steps have ended."""
        total = sum(self._seconds)
        return self._tokens * len(self._seconds) / total if total > 0 else 0.0

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation; None where the devices' peak is unknown."""
        return None if self._peak is None else self.tokens_per_second * self._flops / self._peak

    def seconds_left(self, step: int) -> float:
        """Until the last step, at this speed."""
        speed = self.tokens_per_second
        return (self._last_step - step) * self._tokens / speed if speed else float("inf")
