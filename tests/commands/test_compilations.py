"""Programs that one process compiled are found by the next; half an entry, a kill and a full cache cost time and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sysout_jax.commands import compilations

pytestmark = pytest.mark.slow

PROGRAM = """
import os, signal, sys
import jax, jax.numpy as jnp
from sysout_jax.commands import compilations
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
compilations.keep()
jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((7, 5))).block_until_ready()
if sys.argv[1:] == ["killed"]:
    os.kill(os.getpid(), signal.SIGKILL)
compilations.hand_over()
print(sum(name == "/jax/compilation_cache/cache_hits" for name in events), sum(name == "/jax/compilation_cache/cache_misses" for name in events))
"""


def compile_in(cache: Path, *words: str) -> subprocess.CompletedProcess:
    own = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        env=own | {"SYSOUT_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )


def hits_and_misses(done: subprocess.CompletedProcess) -> tuple[int, int]:
    assert done.returncode == 0 and done.stderr == ""
    hits, misses = map(int, done.stdout.split())
    return hits, misses


def test_what_is_compiled_is_found_again_whatever_happens(tmp_path):
    assert compile_in(tmp_path, "killed").returncode == -signal.SIGKILL
    (store,) = tmp_path.iterdir()
    assert [p.name for p in store.iterdir()] == [
        ".work.partial"
    ]  # nothing half done is handed over
    hits, misses = hits_and_misses(compile_in(tmp_path))
    entries = sorted(store.iterdir())
    assert hits == 0 and misses == len(entries) > 0  # and what the killed one left is gone
    assert hits_and_misses(compile_in(tmp_path)) == (misses, 0)
    damaged = entries[0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert hits_and_misses(compile_in(tmp_path)) == (misses - 1, 1)
    assert sorted(store.iterdir()) == entries
    assert hits_and_misses(compile_in(tmp_path)) == (misses, 0)


def test_where_no_directory_can_be_made_nothing_is_kept(tmp_path):
    (tmp_path / "file").write_text("")
    done = compile_in(tmp_path / "file" / "below")
    assert done.returncode == 0 and done.stderr == "" and done.stdout.startswith("0 ")


def test_the_oldest_entries_go(tmp_path, monkeypatch):
    for age in range(5):
        entry = tmp_path / f"jit_f{age}-cache.00000000"
        entry.write_bytes(b"x" * 10)
        os.utime(entry, (1000 - age, 1000 - age))
    monkeypatch.setattr(compilations, "MOST_BYTES", 25)
    compilations._forget(tmp_path)
    assert sorted(p.name[:6] for p in tmp_path.iterdir()) == ["jit_f0", "jit_f1"]
