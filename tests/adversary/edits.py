"""Damage as data: each edit is a list that JSON holds, `[what, file, …]`; places count bytes, texts may be `[[part, times], …]`."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

Edit = list[Any]
Raw = str | list[list[Any]]  # text, or parts that are repeated

RANDOM_NAME = re.compile("[0-9a-f]{32}")
_VALUE, _KEY = "value", "key"
UNPACK: dict[str, tuple[Callable, Callable]] = {
    ".gz": (gzip.decompress, lambda data: gzip.compress(data, mtime=0)),
    ".xz": (lzma.decompress, lzma.compress),
}


def apply(edits: list[Edit], place: Path) -> None:
    """Damage the files below `place`. An edit that no longer fits, because an earlier one took its target, is left out."""
    for what, name, *arguments in edits:
        try:
            EDITS[what](located(place, name), *arguments)
        except Exception:
            if len(edits) == 1:
                raise


def named(root: Path, file: Path) -> str:
    """A file's name in an edit: Orbax's random names, the same in no two originals, become their place in the order of sizes, `*0`, `*1`, …"""
    name = str(file.relative_to(root))
    if not RANDOM_NAME.fullmatch(file.name):
        return name
    return str(Path(name).with_name(f"*{_by_size(file.parent).index(file)}"))


def located(root: Path, name: str) -> Path:
    """The file that `named` gave that name."""
    path = root / name
    return _by_size(path.parent)[int(path.name[1:])] if path.name.startswith("*") else path


def _by_size(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda file: (file.stat().st_size, file.name))


def text_of(raw: Raw) -> str:
    """The text that a JSON-friendly form stands for."""
    return raw if isinstance(raw, str) else "".join(part * times for part, times in raw)


def spliced(data: bytes, at: int, count: int, new: str, times: int = 1) -> bytes:
    """`count` bytes at `at` replaced by the hexadecimal `new`, repeated."""
    return data[:at] + bytes.fromhex(new) * times + data[at + count :]


def changed_json(text: str, path: list[str | int], raw: Raw | None, again: bool = False) -> str:
    """A JSON text with the value at `path` replaced by (or added as) `raw`, removed for None, or given `again` under the same key."""
    tree = json.loads(text)
    if not path:
        return "" if raw is None else text_of(raw)
    parent = tree
    for step in path[:-1]:
        parent = parent[step]
    if raw is None:
        del parent[path[-1]]
        return json.dumps(tree)
    if isinstance(parent, list) and path[-1] >= len(parent):
        parent.append(_VALUE)
    else:
        parent[_KEY if again else path[-1]] = _VALUE
    dumped = json.dumps(tree).replace(json.dumps(_KEY), json.dumps(path[-1]))
    return dumped.replace(json.dumps(_VALUE), text_of(raw))


def _splice(file: Path, *where: Any) -> None:
    file.write_bytes(spliced(file.read_bytes(), *where))


def _packed(file: Path, *where: Any) -> None:
    unpack, pack = UNPACK[file.suffix]
    file.write_bytes(pack(spliced(unpack(file.read_bytes()), *where)))


def _json(file: Path, *change: Any) -> None:
    text = changed_json(file.read_text(encoding="utf-8"), *change)
    file.write_bytes(text.encode("utf-8", "surrogatepass"))


def _line(file: Path, number: int, *change: Any) -> None:
    """The same for one line of a .jsonl file, plain or packed."""
    unpack, pack = UNPACK.get(file.suffix, (bytes, bytes))
    lines = unpack(file.read_bytes()).splitlines()
    changed = changed_json(lines[number].decode(), *change)
    lines[number] = changed.encode("utf-8", "surrogatepass")
    file.write_bytes(pack(b"\n".join(lines) + b"\n"))


def _header(file: Path, *change: Any) -> None:
    """The JSON header of a safetensors file, its length kept true."""
    data = file.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    head = changed_json(data[8 : 8 + length].decode(), *change).encode("utf-8", "surrogatepass")
    file.write_bytes(struct.pack("<Q", len(head)) + head + data[8 + length :])


def _rewritten(file: Path, entry: str, change: Callable[[bytes], bytes]) -> None:
    with zipfile.ZipFile(file) as archive:
        held = {info.filename: archive.read(info) for info in archive.infolist()}
    held[entry] = change(held[entry])
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in held.items():
            archive.writestr(zipfile.ZipInfo(name), content)


def _entry(file: Path, entry: str, *where: Any) -> None:
    """A splice within one entry of a zip archive, whose checksums are right again."""
    _rewritten(file, entry, lambda content: spliced(content, *where))


def _bomb(file: Path, entry: str, mebibytes: int) -> None:
    """An entry of a zip archive that unpacks to many mebibytes of zeros."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    stream = block * mebibytes + packer.flush(zlib.Z_FINISH)
    _rewritten(file, entry, lambda _: stream)
    data = bytearray(file.read_bytes())
    size = min(mebibytes << 20, 2**32 - 1)
    for at, (magic, method, unpacked) in ((0, (b"PK\3\4", 8, 22)), (0, (b"PK\1\2", 10, 24))):
        while (at := data.find(magic, at)) >= 0:
            if entry.encode() in data[at : at + 60 + len(entry)]:
                struct.pack_into("<H", data, at + method, zipfile.ZIP_DEFLATED)
                struct.pack_into("<I", data, at + unpacked, size)
            at += 4
    file.write_bytes(data)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _write(path: Path, raw: Raw) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text_of(raw).encode("utf-8", "surrogateescape"))


def _folder(path: Path) -> None:
    if path.is_file():
        path.unlink()
    path.mkdir(parents=True, exist_ok=True)


def _link(path: Path, target: str) -> None:
    if path.exists() or path.is_symlink():
        _remove(path)
    path.symlink_to(target)


def _swap(path: Path, other: str) -> None:
    """Two files exchange their names; `other` lies in the same folder."""
    aside = path.with_name("aside")
    os.replace(path, aside)
    os.replace(path.with_name(other), path)
    os.replace(aside, path.with_name(other))


EDITS: dict[str, Callable[..., None]] = {
    "splice": _splice,  # at, count, hex[, times]
    "packed": _packed,  # the same within a .gz or .xz file
    "json": _json,  # path, raw | None[, again]
    "line": _line,  # number, path, raw | None[, again]
    "header": _header,  # path, raw | None[, again]
    "entry": _entry,  # entry, at, count, hex[, times]
    "bomb": _bomb,  # entry, mebibytes
    "remove": _remove,
    "write": _write,  # raw
    "folder": _folder,
    "link": _link,  # target
    "swap": _swap,  # other
}
