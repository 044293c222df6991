"""Processes that answer: in order, with their errors, and none is left."""

from __future__ import annotations

import os
import signal
import time

import pytest

from sysout_jax.data.workers import answers
from sysout_jax.errors import InputError, RunError

pytestmark = pytest.mark.slow


def square(offset: int):
    def answer(request: int) -> tuple[int, int]:
        if request == 13:
            raise InputError("13: expected another number")
        if request == 14:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(
            0.5 if request == 0 else 0.01 * (request % 3)
        )  # so that later ones are ready first
        return request**2 + offset, os.getpid()

    return answer


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_answers_come_in_order_from_processes_that_end():
    found = list(answers(range(12), square, (5,), 2))
    assert [(request, answer) for request, (answer, _) in found] == [
        (i, i * i + 5) for i in range(12)
    ]
    pids = {pid for _, (_, pid) in found}
    assert len(pids) == 2 and os.getpid() not in pids
    assert not any(map(alive, pids))


def test_no_more_is_read_ahead_than_two_requests_per_worker():
    taken = []
    requests = (taken.append(i) or i for i in range(100))
    first = answers(requests, square, (0,), 2)
    assert next(first)[0] == 0
    assert len(taken) <= 5
    first.close()


def test_a_worker_is_started_for_a_request_that_none_is_free_for():
    assert [request for request, _ in answers([1], square, (0,), 200)] == [1]
    assert list(answers([], square, (0,), 200)) == []


def test_an_error_of_an_answer_is_raised_here():
    with pytest.raises(InputError, match="13: expected"):
        list(answers(range(10, 20), square, (0,), 2))


def test_a_killed_worker_ends_the_run():
    with pytest.raises(RunError, match="workers was killed"):
        list(answers([14, 1, 2], square, (0,), 2))
