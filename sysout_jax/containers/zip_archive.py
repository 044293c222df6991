"""The members of a zip archive that lie in it as they are: found and bounded before anything is read or unpacked."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

from sysout_jax.errors import InputError
from sysout_jax.printable import printable, printable_name
from sysout_jax.storage.files import check_readable

MAGIC = b"PK\x03\x04"
AGAIN = "copy or download it again"
#: Bytes of the list of members, of which zipfile makes an object of some 700 bytes for every 46.
MOST_LISTED = 1 << 22
_LOCAL_HEADER = struct.Struct("<4sHHH16xHH")  # magic, _, flags, method, lengths of name and extra
_END, _END_64, _LOCATOR_64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_LONGEST_END = 22 + 0xFFFF  # with its comment


class StoredMembers:
    """Where the members of an archive lie. Only whole ones, neither compressed nor encrypted, can be asked for.

    Raises InputError for what is no whole zip archive, and for one with a name that occurs twice.
    """

    def __init__(self, path: Path):
        self.path = path
        check_readable(path, f"expected a file written by torch.save, {AGAIN}")
        try:
            listed = _listed_bytes(path)
            if listed > MOST_LISTED:
                raise InputError(
                    f"{path}: a zip archive whose list of members holds {listed:,} bytes, at most {MOST_LISTED:,} are read"
                )
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
        except InputError:
            raise
        # what zipfile raises for damage of one kind or another
        except (
            *(zipfile.BadZipFile, NotImplementedError, RuntimeError),
            *(OSError, ValueError, EOFError, struct.error),
        ) as error:
            raise InputError(
                f"{path}: not a whole torch file ({printable(str(error))}); {AGAIN}"
            ) from None
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in members:
            if member.filename in self._members:
                raise InputError(f"{path}: holds {printable_name(member.filename)} twice; {AGAIN}")
            self._members[member.filename] = member
        self._starts: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        return list(self._members)

    def size(self, name: str) -> int | None:
        """Bytes of a member; None where there is none of that name."""
        return self._members[name].file_size if name in self._members else None

    def start(self, name: str) -> int:
        """Where the bytes of a member begin; all of them are inside the file."""
        if name not in self._starts:
            self._starts[name] = self._checked_start(self._members[name])
        return self._starts[name]

    def read(self, name: str, most: int) -> bytes:
        """The bytes of a member that has at most `most`."""
        size = self._members[name].file_size
        if size > most:
            raise InputError(
                f"{self.path}: {name} holds {size:,} bytes, at most {most:,} are read; "
                "expected a file as torch.save writes it"
            )
        with open(self.path, "rb") as file:
            file.seek(self.start(name))
            return file.read(size)

    def _checked_start(self, member: zipfile.ZipInfo) -> int:
        offset = member.header_offset
        header = b""
        with open(self.path, "rb") as file:
            if offset >= 0:
                file.seek(offset)
                header = file.read(_LOCAL_HEADER.size)
            length = file.seek(0, 2)
        if len(header) == _LOCAL_HEADER.size:
            magic, _, flags, method, name, extra = _LOCAL_HEADER.unpack(header)
            start = offset + _LOCAL_HEADER.size + name + extra
            if (
                magic == MAGIC
                and not (flags | member.flag_bits) & _NOT_PLAIN
                and method == member.compress_type == zipfile.ZIP_STORED
                and member.file_size == member.compress_size
                and start + member.file_size <= length
            ):
                return start
        raise InputError(
            f"{self.path}: {printable_name(member.filename)} is encrypted, compressed or damaged; "
            "expected a file as torch.save writes it"
        )


_NOT_PLAIN = 0x1 | 0x20 | 0x40  # flags: encrypted, a patch, strongly encrypted


def _listed_bytes(path: Path) -> int:
    """Bytes of the list of members, as the records at the archive's end say."""
    with open(path, "rb") as file:
        length = file.seek(0, 2)
        file.seek(max(length - _LONGEST_END - 76, 0))
        tail = file.read()
    end = tail.rfind(_END)
    if end < 0 or len(tail) < end + 22:
        raise zipfile.BadZipFile("no end of a zip archive")
    (listed,) = struct.unpack_from("<I", tail, end + 12)
    # the 64-bit record lies right before its locator, and that right before the end
    if end >= 76 and tail[end - 20 : end - 16] == _LOCATOR_64:
        if tail[end - 76 : end - 72] != _END_64:
            raise zipfile.BadZipFile("no end of a 64-bit zip archive")
        listed = max(
            *struct.unpack_from("<Q", tail, end - 36), 0 if listed == 0xFFFFFFFF else listed
        )
    return listed
