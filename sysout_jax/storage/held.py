"""Open files that live as long as the object that needs them: a lock, or a directory by a name that every library understands."""

from __future__ import annotations

import os
import re
import weakref
from pathlib import Path

from sysout_jax.errors import InputError

DESCRIPTORS = Path("/proc/self/fd")  # Linux: open files by number
# Orbax takes directories for glob patterns and URLs, TensorStore takes \ for a separator
_MISREAD = re.compile(r"[\[*?\\]|:/|^/(gs|s3|az|hf)/")


class Held:
    """An open file descriptor, closed when nothing refers to this object any more."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)


class PlainDirectory:
    """An existing directory under a `path` in which no library sees a pattern, a URL or a separator that is none.

    Most directories keep their own. Another path is valid in this process only, while this object lives.
    """

    def __init__(self, directory: Path):
        check_name(directory)
        self.path = Path(directory).absolute()
        if _is_misread(directory):
            self._held = Held(os.open(directory, os.O_RDONLY | os.O_DIRECTORY))
            self.path = DESCRIPTORS / str(self._held.descriptor)


def check_name(directory: Path) -> None:
    """InputError when the libraries that read and write checkpoints cannot work in a directory of this name."""
    if _is_misread(directory) and not DESCRIPTORS.is_dir():
        raise InputError(
            f"{directory}: checkpoints cannot lie here on this system; name a directory without any of [ * ? \\ :"
        )


def _is_misread(directory: Path) -> bool:
    name = str(Path(directory).absolute())
    try:
        name.encode()
    except UnicodeEncodeError:
        return True
    return bool(_MISREAD.search(name + "/"))
