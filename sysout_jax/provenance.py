"""What every result records of where it is from: command, time, attention kernel, versions, device."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import sys
from typing import Any

import jax

from sysout_jax.attention import resolve_kernel
from sysout_jax.storage.serialise import plain
from sysout_jax.version import __version__

_VERSIONS_OF = ("jax", "jaxlib", "flax", "numpy", "matplotlib")


def versions_and_device() -> dict[str, Any]:
    """Versions of Python and the libraries whose numbers these are, and the device they were computed on."""
    device = jax.devices()[0]
    versions = {"python": platform.python_version(), "sysout_jax": __version__}
    return {
        "versions": versions | {name: importlib.metadata.version(name) for name in _VERSIONS_OF},
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "host": platform.platform(),
            "cores": os.cpu_count(),
        },
    }


def run_settings(kernel: str = "auto", **more: Any) -> dict[str, Any]:
    """The settings block of a report: the command as typed, the time, kernel, versions, device, and what is given besides.

    `kernel` is the attention kernel asked for; the block names the one that ran.
    """
    return {
        "command": shlex.join(sys.orig_argv),
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "kernel": resolve_kernel(kernel),
        **versions_and_device(),
        **plain(more),
    }
