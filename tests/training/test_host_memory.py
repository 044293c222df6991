"""What training sets of the C library does what it is for: freed memory comes back without new pages."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHILD = """
import resource, threading
import numpy as np
from sysout_jax.training.host_memory import keep_freed_memory
KEEP

def touch():
    for megabytes in (40, 150, 90):
        np.ones(megabytes * 2**17)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=touch)  # as XLA's threads do
    thread.start(); thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_freed_memory_is_used_again():
    found = [
        int(subprocess.run([sys.executable, "-c", CHILD.replace("KEEP", call)], capture_output=True, text=True, check=True).stdout)
        for call in ("", "keep_freed_memory()")
    ]  # fmt: skip
    # A kernel with huge pages counts 144 faults of 2 MiB where others count 70,000; starting the thread costs a few.
    assert found[1] < 0.02 * found[0] + 32 < found[0], found
