"""What Orbax's threads and tasks leave in the log after an error that was raised as well."""

from __future__ import annotations

import asyncio
import gc
import logging

from sysout_jax.checkpoints.noise import quiet_orbax


async def fails():
    raise OSError("the disk is full")


def left_over(coroutine) -> None:
    """A task whose error nobody asks for."""

    async def begin():
        asyncio.get_running_loop().create_task(coroutine)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(begin())
    gc.collect()


def test_only_tasks_of_orbax_are_not_spoken_of(caplog):
    quiet_orbax()
    left_over(fails())
    assert "Task exception was never retrieved" in caplog.text  # a user's own
    caplog.clear()
    fails_in_orbax = compile(
        "async def fails():\n    raise OSError('the disk is full')",
        "/site-packages/orbax/x.py",
        "exec",
    )
    names: dict = {}
    exec(fails_in_orbax, names)
    left_over(names["fails"]())
    assert caplog.text == ""
    logging.getLogger("asyncio").error("Executing took 3 seconds")
    assert "took 3 seconds" in caplog.text
