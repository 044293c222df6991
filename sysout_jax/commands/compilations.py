"""What one command compiled, the next one finds: XLA's programs, kept in the user's cache directory.

jax writes entries of its cache in place, so two processes and a kill could leave half of one. Here every process works in a directory of its
own, which begins with links to all whole entries; what it adds is handed over, each entry in one step, when it ends by itself. What a killed
process left is cleared by the next one. Nothing here changes a result, and nothing that fails here costs more than time.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import warnings
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jaxlib

from sysout_jax.errors import InputError
from sysout_jax.storage.places import cache_directory
from sysout_jax.storage.workspaces import workspace

MOST_BYTES = 512 * 2**20  # beyond, the oldest entries go
LEAST_FREE = 64 * 2**20  # on a disk that is nearly full, jax may have written half an entry
_ENTRY = "*-cache"  # what jax calls one

_stack = ExitStack()
_own: Path | None = None


def keep() -> None:
    """From now on this process finds what earlier ones compiled, and `hand_over` leaves to later ones what it compiles.

    Where the user has told jax about a cache, that is used; where no directory can be made, none.
    """
    global _own
    config: Any = jax.config
    chosen = "JAX_COMPILATION_CACHE_DIR" in os.environ or config.jax_compilation_cache_dir
    if _own is not None or chosen or not config.jax_enable_compilation_cache:
        return
    try:
        store = cache_directory() / f"compiled-{_machine()}"
        store.mkdir(parents=True, exist_ok=True)
        own = _stack.enter_context(workspace(store, "work"))
        for entry in store.glob(_ENTRY + ".*"):
            _link(entry, own)
    except (OSError, InputError):
        _stack.close()
        return
    _own = own
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation")
    jax.config.update("jax_compilation_cache_dir", str(own))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


def hand_over() -> None:
    """Leave what was compiled since `keep` to later processes."""
    global _own
    if _own is None:
        return
    own, _own = _own, None
    store = own.parent
    with _stack:
        try:
            there = {_key(entry) for entry in store.glob(_ENTRY + ".*")}
            if shutil.disk_usage(store).free > LEAST_FREE:
                for entry in own.glob(_ENTRY):
                    if entry.name not in there:
                        entry.replace(store / f"{entry.name}.{_checksum(entry)}")
            _forget(store)
        except OSError:
            pass


def _link(entry: Path, own: Path) -> None:
    """An entry of the store in this process's directory; one that is not what was written is removed."""
    try:
        if _checksum(entry) != entry.suffix[1:]:
            entry.unlink(missing_ok=True)
            return
        os.link(entry, own / _key(entry))
    except FileNotFoundError:  # another process has just made room
        pass
    except OSError:  # a file system without links
        shutil.copyfile(entry, own / _key(entry))


def _key(entry: Path) -> str:
    return entry.name.rpartition(".")[0]


def _checksum(entry: Path) -> str:
    return f"{zlib.crc32(entry.read_bytes()):08x}"


def _forget(store: Path) -> None:
    """Remove the oldest entries until the others fit."""
    entries = [(entry.stat(), entry) for entry in store.glob(_ENTRY + ".*")]
    entries.sort(key=lambda each: each[0].st_mtime)
    total = sum(status.st_size for status, _ in entries)
    for status, entry in entries:
        if total <= MOST_BYTES:
            return
        entry.unlink(missing_ok=True)
        total -= status.st_size


def _machine() -> str:
    """A name for what compiled programs depend on beside their source: a home directory may be shared by unlike machines."""
    parts = [platform.machine(), platform.processor(), jax.__version__, jaxlib.__version__]
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0].splitlines()
        parts += [l for l in lines if l.startswith(("model name", "flags", "Features", "CPU part"))]
    except OSError:
        pass
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
