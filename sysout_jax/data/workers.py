"""Processes that each answer one request at a time; answers come in the order of the requests, and no process outlives its use."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.util
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

from sysout_jax import interrupts
from sysout_jax.errors import RunError

Request = TypeVar("Request")


def answers(
    requests: Iterable[Request], make: Callable[..., Callable], arguments: tuple, workers: int
) -> Generator[tuple[Request, Any], None, None]:
    """Each request with what `make(*arguments)` answers to it, in order. At most two requests per worker are read ahead.

    `make`, of a module's top level, is called once in each worker; a worker is started for a request that none is free for.
    Raises what an answer raises, and RunError when a worker is killed. However this ends, all workers are killed with it.
    """
    pool: list[_Worker] = []
    with interrupts.cleaning_up(lambda: _clean_up(pool)):
        try:
            yield from _in_order(iter(requests), make, arguments, workers, pool)
        except (EOFError, ConnectionError):
            raise RunError(
                f"one of {len(pool)} workers was killed, perhaps for want of memory; ask for fewer workers"
            ) from None
        finally:
            for worker in pool:
                worker.process.kill()
            for worker in pool:
                worker.process.join()


def _in_order(
    requests: Iterator[Request],
    make: Callable[..., Callable],
    arguments: tuple,
    workers: int,
    pool: list[_Worker],
) -> Iterator[tuple[Request, Any]]:
    open_: deque[_Entry] = deque()  # read ahead and not yet passed on
    more = True
    while True:
        while more and len(open_) < 2 * workers:
            worker = next((w for w in pool if w.entry is None), None)
            if worker is None and len(pool) == workers:
                break
            request = next(requests, None)
            if request is None:
                more = False
                break
            if worker is None:
                worker = _Worker(make, arguments)
                pool.append(worker)
            open_.append(_Entry(request))
            worker.give(open_[-1])
        while open_ and open_[0].answered:
            entry = open_.popleft()
            yield entry.request, entry.answer
        busy = [worker for worker in pool if worker.entry is not None]
        if not busy and not more:
            return
        ready = wait([worker.pipe for worker in busy]) if busy else []
        for worker in busy:
            if worker.pipe in ready:
                worker.take()


class _Entry:
    def __init__(self, request: Any):
        self.request, self.answer, self.answered = request, None, False


class _Worker:
    def __init__(self, make: Callable[..., Callable], arguments: tuple):
        context = _context()
        self.pipe, its_end = context.Pipe()
        self.entry: _Entry | None = None
        self.process = context.Process(target=_work, args=(its_end, make, arguments), daemon=True)
        resource_tracker.ensure_running()  # starting it unblocks what is blocked here
        # Ctrl-C on a terminal goes to all processes: they leave it to this one, and inherit that it is blocked
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        its_end.close()

    def give(self, entry: _Entry) -> None:
        self.entry = entry
        self.pipe.send(entry.request)

    def take(self) -> None:
        assert self.entry is not None
        failure, self.entry.answer = self.pipe.recv()
        if failure is not None:
            raise failure
        self.entry.answered, self.entry = True, None


def _context() -> Any:
    """Not a fork of this process, whose threads may hold locks; one clean process that has imported us and is forked."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sysout_jax.data.encoding"])
    return context


def _clean_up(pool: list[_Worker]) -> None:
    """In a process that is about to end without Python's own clean-ups."""
    for worker in list(pool):
        worker.process.kill()
    for pid in _descendants(os.getpid()):  # a worker that is only starting, and what forks them
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(multiprocessing.util.get_temp_dir(), ignore_errors=True)  # of its sockets


def _descendants(pid: int) -> list[int]:
    """Children before their own children, which die with them; none where /proc does not tell (they end soon by themselves)."""
    children: list[int] = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children += map(int, listing.read_text().split())
    return [each for child in children for each in (child, *_descendants(child))]


def _work(pipe: Connection, make: Callable[..., Callable], arguments: tuple) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    answer = make(*arguments)
    with contextlib.suppress(EOFError, ConnectionError):  # the parent is gone
        while True:
            request = pipe.recv()
            try:
                result = answer(request)
            except Exception as error:
                pipe.send((error, None))
            else:
                pipe.send((None, result))


def _end_with_parent() -> None:
    """A killed parent must not leave a worker busy."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
