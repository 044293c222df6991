"""Reading .xz files to their very end: `lzma.LZMAFile` takes what follows the last stream for nothing, whatever it is."""

from __future__ import annotations

import io
import lzma
from typing import IO

BLOCK = 1 << 20  # packed bytes read at a time


def open_xz(file: IO[bytes]) -> io.BufferedReader:
    """The unpacked content. Reading raises LZMAError for what is no stream, also behind one, and EOFError for one that is cut."""
    return io.BufferedReader(_Streams(file), BLOCK)


class _Streams(io.RawIOBase):
    """Streams one after the other, with zeros between and behind them, as the format allows."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._stream = lzma.LZMADecompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, target) -> int:
        while True:
            if self._stream.eof:
                following = self._stream.unused_data.lstrip(b"\0")
                while not following:
                    block = self._file.read(BLOCK)
                    if not block:
                        return 0
                    following = block.lstrip(b"\0")
                self._stream = lzma.LZMADecompressor()
            else:
                following = self._file.read(BLOCK) if self._stream.needs_input else b""
                if self._stream.needs_input and not following:
                    raise EOFError("cut before the end of its stream")
            data = self._stream.decompress(following, len(target))
            if data:
                target[: len(data)] = data
                return len(data)
