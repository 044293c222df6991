"""Values that break readers, and random edits made of them."""

from __future__ import annotations

import json
import pickletools
import struct
import zipfile
from pathlib import Path
from random import Random
from typing import Any

from tests.adversary.edits import UNPACK, Edit, Raw

INTEGERS = [0, 1, 2, 3, -1, -2, 7, 127, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30, -(2**31), -(2**63)]  # fmt: skip
TEXTS = ["", " ", "x", "None", "false", "0", "nan", "\x1b[31mred\x1b[0m", "\x00", "\r\n", "a\nb", "\u202etxt", "\u2028", "ä", "🙂", "\udcff", "%s%n", "../../x", "*", "[x]", "\\", "'", '"', "<b>&"]  # fmt: skip

#: JSON texts to put in place of a value.
RAW_VALUES: list[Raw] = [
    *(str(n) for n in INTEGERS),
    *("null true false 0.5 4.0 -0.0 1e308 -1e308 1e-308 1e400 NaN Infinity -Infinity".split()),
    *(json.dumps(text) for text in TEXTS),
    *("[] {} [0] [[]] [null] [1,[2,[3]]]".split()),
    '{"a": 1}',
    '{"": {}}',
    '"\\ud800"',
    [["9", 400]],
    [["9", 5000]],
    [['"', 1], ["a", 1_000_000], ['"', 1]],
    [['"', 1], ["\\u001b", 100_000], ['"', 1]],
    [["[", 100_000], ["]", 100_000]],
    [['{"a":', 100_000], ["1", 1], ["}", 100_000]],
    [["[", 1], ["0,", 100_000], ["0]", 1]],
]
KEYS = ["x", "", "\x1b[2J", "unknown_setting", "quantization_config", "a" * 5000, "rope_scaling", "__class__", "dtype", "0", "\u202e", "a\nb"]  # fmt: skip
CHUNKS = [b"\0", b"\xff", b"\n", b"\x1b[2J", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xff\xfe", b"{", b"[", b'"', b"]", b"PK\3\4", b"\x80\x02", b"NaN"]  # fmt: skip


def bytes_edit(rng: Random, what: str, name: str, data: bytes, *inside: Any) -> Edit:
    """Flip a bit, cut, insert, delete, repeat, or write an extreme number, more often near the ends, where formats keep their structure."""
    size = len(data)
    near = min(size, 400)
    at = rng.choice((rng.randrange(size + 1), rng.randrange(near + 1), size - rng.randrange(near + 1)))  # fmt: skip
    head = [what, name, *inside]
    match rng.choice("flip flip flip cut insert delete number number zero repeat double".split()):
        case "flip" if at < size:
            return [*head, at, 1, bytes([data[at] ^ 1 << rng.randrange(8)]).hex()]
        case "cut":
            return [*head, at, size - at, ""]
        case "delete":
            return [*head, at, rng.choice((1, 4, 8, 64, size // 2)), ""]
        case "number":
            number = rng.choice(INTEGERS) % 2**64
            width = rng.choice((1, 2, 4, 8))
            return [*head, at, width, struct.pack("<Q", number)[:width].hex()]
        case "zero":
            width = rng.choice((8, 64, 1024))
            return [*head, at, width, "00", min(width, max(size - at, 1))]
        case "repeat":
            return [*head, at, 0, rng.choice(CHUNKS).hex(), rng.choice((2, 1000, 300_000))]
        case "double":
            return [*head, size, 0, data[-min(size, 4096) :].hex() or "00"]
    return [*head, at, 0, rng.choice(CHUNKS).hex()]


def file_edit(rng: Random, root: Path, name: str) -> Edit:
    """Random bytes of a file, inside its packing about as often as outside."""
    data = (root / name).read_bytes()
    if (root / name).suffix in UNPACK and rng.random() < 0.6:
        unpack, _ = UNPACK[(root / name).suffix]
        return bytes_edit(rng, "packed", name, unpack(data))
    return bytes_edit(rng, "splice", name, data)


def json_edit(rng: Random, what: str, name: str, tree: Any, *inside: Any) -> Edit:
    """Change, remove, add or repeat one value anywhere in a JSON tree."""
    head = [what, name, *inside]
    path = rng.choice(_paths(tree, rng)) if rng.random() < 0.97 else []
    value = tree
    for step in path:
        value = value[step]
    match rng.choice(("change",) * 7 + ("remove", "add", "again")):
        case "remove" if path:
            return [*head, path, None]
        case "add" if isinstance(value, dict):
            return [*head, [*path, rng.choice(KEYS)], rng.choice(RAW_VALUES)]
        case "again" if path and isinstance(path[-1], str):
            return [*head, path, rng.choice((json.dumps(value), rng.choice(RAW_VALUES))), True]
    return [*head, path, _near(rng, value) if rng.random() < 0.25 else rng.choice(RAW_VALUES)]


def _paths(tree: Any, rng: Random, most: int = 300) -> list[list[str | int]]:
    """Paths of all values; of long lists and dicts only some."""
    paths: list[list[str | int]] = []

    def walk(node: Any, path: list[str | int]) -> None:
        keys = list(node if isinstance(node, dict) else range(len(node)))
        for key in keys if len(keys) <= 40 else rng.sample(keys, 6):
            paths.append([*path, key])
            if isinstance(node[key], (dict, list)) and len(paths) < most:
                walk(node[key], [*path, key])

    if isinstance(tree, (dict, list)):
        walk(tree, [])
    return paths or [[]]


def _near(rng: Random, value: Any) -> Raw:
    """Something that could almost stand there: another number, the same value in another type."""
    if isinstance(value, bool) or value is None:
        return rng.choice(["true", "false", "null", '"true"', "0", "1"])
    if isinstance(value, (int, float)):
        near = [value + 1, value - 1, 2 * value, -value, float(value), str(value), [value], value / 2, value * 10**6]  # fmt: skip
        return json.dumps(rng.choice(near))
    if isinstance(value, str):
        return json.dumps(rng.choice([value.upper(), value[:-1], value + " ", [value], {value: value}, value * 1000]))  # fmt: skip
    return json.dumps(rng.choice([[value], {"a": value}, str(value)[:1000]]))


def zip_edit(rng: Random, root: Path, name: str) -> Edit:
    """Damage in a zip archive as torch writes it: its pickle by opcodes, its directory by fields, an entry, a bomb."""
    data = (root / name).read_bytes()
    with zipfile.ZipFile(root / name) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    pickle = next(entry for entry in entries if entry.endswith("data.pkl"))
    match rng.choice("pickle pickle pickle pickle field field entry bytes bomb".split()):
        case "pickle":
            return ["entry", name, pickle, *_opcode(rng, entries[pickle])]
        case "field":
            magic, fields = rng.choice(((b"PK\1\2", {4: 2, 6: 2, 8: 2, 10: 2, 16: 4, 20: 4, 24: 4, 28: 2, 30: 2, 42: 4}), (b"PK\3\4", {4: 2, 6: 2, 8: 2, 18: 4, 22: 4, 26: 2, 28: 2})))  # fmt: skip
            starts = [at for at in range(len(data) - 4) if data.startswith(magic, at)]
            offset, width = rng.choice(list(fields.items()))
            number = rng.choice([*INTEGERS, 8, 12, 14, 93, 99]) % 2 ** (8 * width)
            return ["splice", name, rng.choice(starts) + offset, width, number.to_bytes(width, "little").hex()]  # fmt: skip
        case "bomb":
            return ["bomb", name, rng.choice(list(entries)), rng.choice((64, 3000))]
        case "entry":
            entry = rng.choice(list(entries))
            return bytes_edit(rng, "entry", name, entries[entry], entry)
    return bytes_edit(rng, "splice", name, data)


def _opcode(rng: Random, pickle: bytes) -> list[Any]:
    """One opcode of the pickle removed, repeated, or replaced by another or by one with an extreme argument."""
    starts = [at for _, _, at in pickletools.genops(pickle)] + [len(pickle)]
    i = rng.randrange(len(starts) - 1)
    at, end = starts[i], starts[i + 1]
    j = rng.randrange(len(starts) - 1)
    huge = b"\x8b" + struct.pack("<i", 41_525) + b"\x7f" * 41_525  # 100,000 digits
    others = [
        b"N", b"}", b"]", b"(", b"t", b")", b"0", b"2", b"\x88", b"K\x00", b"M\xff\xff", b"J\xff\xff\xff\x7f", b"J\x00\x00\x00\x80", huge,
        b"G" + struct.pack(">d", float("nan")), b"X\x06\x00\x00\x00\x1b[31mx", b"X\xff\xff\xff\x7f", b"cos\nsystem\n", b"cbuiltins\neval\n",
        b"h\xff", b"j\xff\xff\xff\x7f", b"r\xff\xff\xff\x7f", b"R", b"b", b"Q", b"s", b"u", b"e", b"I99999\n", b"V\\ud800\n", b"\x95" + b"\xff" * 8,
        pickle[starts[j] : starts[j + 1]],
    ]  # fmt: skip
    match rng.choice(("replace", "replace", "replace", "remove", "insert", "repeat")):
        case "remove":
            return [at, end - at, ""]
        case "insert":
            return [at, 0, rng.choice(others).hex()]
        case "repeat":
            return [at, 0, pickle[at:end].hex(), rng.choice((2, 1000, 100_000))]
    return [at, end - at, rng.choice(others).hex()]
