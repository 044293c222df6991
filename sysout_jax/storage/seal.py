"""A seal: the list of a directory's files with sizes and checksums, written last. It says whether what lies there is what was written."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Container
from pathlib import Path

FILE = "files.json"
BLOCK = 1 << 20  # bytes read in one go; smaller files are always read


class Damaged(Exception):
    """Something is missing or is not what was written; the message says what."""


def write_seal(directory: Path) -> None:
    """Seal the files in the directories below `directory`. Those beside the seal itself are not part of it."""
    files = {
        str(path.relative_to(directory)): [path.stat().st_size, _checksum(path)]
        for path in sorted(directory.glob("*/**/*"))
        if path.is_file()
    }
    content = {"files": files, "checksum": _checksum_of(files)}
    with (directory / FILE).open("wb") as file:
        file.write((json.dumps(content) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def check_seal(directory: Path, contents: bool = False, always: Container[str] = ()) -> None:
    """Damaged when a file is missing, of another size or, as far as it is read, of other content.

    Small files and those named in `always` are read, the others with `contents`. OSError when a file that is there cannot be read.
    """
    for name, (size, checksum) in _read_seal(directory).items():
        path = directory / name
        try:
            actual = path.stat().st_size
            if actual != size:
                raise Damaged(f"{name} has {actual:,} bytes, {size:,} were written")
            read = contents or size <= BLOCK or name in always
            if read and _checksum(path) != checksum:
                raise Damaged(f"{name} has other content than was written")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise Damaged(f"{name} is missing") from None


def _read_seal(directory: Path) -> dict[str, list[int]]:
    try:
        content = json.loads((directory / FILE).read_bytes())
        files = content["files"]
        if content["checksum"] == _checksum_of(files):
            return files
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise Damaged(f"{FILE} is missing") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise Damaged(f"{FILE} is not what was written")


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _checksum_of(files: dict) -> int:
    return zlib.crc32(json.dumps(files, sort_keys=True).encode())
