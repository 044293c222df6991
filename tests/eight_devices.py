"""Runs a piece of code in a process of its own that sees eight devices, which XLA makes of one CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Where devices share a pool of few threads, each may hold one while it waits for the others, for ever: then none is shared.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_cpu_multi_thread_eigen=false"


def on_eight_devices(code: str) -> str:
    """What the code printed. Its process must end with status 0."""
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
