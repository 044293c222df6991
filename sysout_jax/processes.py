"""The processes of a run and the devices that they see together, as the environment describes them."""

from __future__ import annotations

import os
import re

import jax

from sysout_jax.errors import InputError, RunError
from sysout_jax.printable import printable


def start_processes() -> None:
    """`jax.distributed` where this process is one of several: TPU pods, Slurm, MPI, or JAX_COORDINATOR_ADDRESS by hand.

    Must run before anything touches a device. By hand: JAX_COORDINATOR_ADDRESS=host:port JAX_NUM_PROCESSES=n JAX_PROCESS_ID=i.
    Raises InputError for variables that say no such thing and when there is no device, RunError when the processes do not meet.
    """
    if jax.distributed.is_initialized():
        return
    environ = os.environ
    if environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    address = environ.get("JAX_COORDINATOR_ADDRESS")
    try:
        if address and environ.get("JAX_NUM_PROCESSES"):
            count = _number("JAX_NUM_PROCESSES", least=1)
            index = _number("JAX_PROCESS_ID", least=0)
            if index >= count:
                raise InputError(
                    f"JAX_PROCESS_ID={index}: expected a number below JAX_NUM_PROCESSES={count}"
                )
            if not re.fullmatch(r"[^\s:]+:\d{1,5}|\[[^\s\]]+\]:\d{1,5}", address):
                raise InputError(
                    f"JAX_COORDINATOR_ADDRESS={printable(address)}: expected host:port, for example 10.0.0.1:1234"
                )
            jax.distributed.initialize(address, count, index)
        elif (
            _number("SLURM_NTASKS", least=1, default=1) > 1
            or _number("OMPI_COMM_WORLD_SIZE", least=1, default=1) > 1
            or environ.get("TPU_WORKER_HOSTNAMES", "").count(",") > 0
        ):
            jax.distributed.initialize()  # reads the rest from the same environment
    except InputError:
        raise
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise RunError(
            f"the processes of this run do not find each other ({printable(str(error))}); are all of them started, "
            "and do SLURM_*, OMPI_*, TPU_* or JAX_* in the environment say the truth?"
        ) from None
    all_devices()


def _number(variable: str, least: int, default: int | None = None) -> int:
    """A whole number out of the environment; InputError for anything else. Empty is as good as not set."""
    text = os.environ.get(variable, "")
    if not text and default is not None:
        return default
    if not re.fullmatch(r"\d{1,9}", text) or int(text) < least:
        raise InputError(
            f"{variable}={printable(text)}: expected a whole number, at least {least}; set it right or unset it"
        )
    return int(text)


def all_devices() -> list[jax.Device]:
    """All devices of all processes; InputError when the platforms that the environment names have none."""
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where its library is not installed
        asked = os.environ.get("JAX_PLATFORMS") or ""
        if not asked:
            raise
        reason = f" ({printable(str(error))})" if str(error) else ""
        raise InputError(
            f"JAX_PLATFORMS={printable(asked)}: no such device can be used here{reason}; unset it or set it to cpu"
        ) from None
