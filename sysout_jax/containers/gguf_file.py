"""GGUF files: what their header says, checked against the file's size before anything is believed, and their tensors one at a time.

A file is a header (key-value pairs, then name, shape, type and offset of every tensor) and, aligned behind it, the tensors' bytes. The `gguf` package knows
the types and dequantises them; its own reader trusts every length in the header, this one does not. A model may be split over several files, each
with a header of its own.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from gguf import GGMLQuantizationType
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

from sysout_jax.errors import InputError
from sysout_jax.printable import printable_name

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_DIMS = 4
MOST_NAME_BYTES = 1024  # the format itself allows 64
#: Each costs time in Python. The largest models have some ten thousand tensors, and vocabularies and merges of a million strings.
MOST_TENSORS, MOST_KEYS, MOST_STRINGS = 100_000, 10_000, 2_000_000
MOST_HEADER_BYTES = 1 << 30  # a vocabulary of 260,000 tokens and their merges takes some 12 MiB
DEQUANTISED = 1 << 20  # numbers at once
_STRING, _ARRAY, _BOOL = 8, 9, 7
#: The format's numbers of scalar types, as numpy writes them.
_SCALARS = dict(enumerate("u1 i1 <u2 <i2 <u4 <i4 <f4 ?".split())) | dict(
    enumerate("<u8 <i8 <f8".split(), 10)
)
#: Types that the package cannot turn into numbers.
UNREADABLE = frozenset(
    GGMLQuantizationType[name] for name in ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "Q1_0")
)
_SPLIT_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


class GgufTensor(NamedTuple):
    """Where a tensor lies. `shape` is that of the dequantised array in C order, rows first: (out, in) of a matrix."""

    path: Path
    offset: int  # bytes from the start of its file
    nbytes: int
    shape: tuple[int, ...]
    type: GGMLQuantizationType


class GgufFile:
    """Header of a GGUF model: `fields` (key → value; arrays as numpy arrays, lists of strings as lists) and `tensors`, of all its parts.

    Raises InputError for what is no GGUF file, is not whole, or contradicts itself; nothing is allocated that the file's size does not warrant.
    """

    def __init__(self, path: Path):
        self.path = path
        first = _Part(path)
        self.fields = first.fields
        self.tensors = dict(first.tensors)
        for part in _other_parts(path, self.fields):
            for name, tensor in _Part(part).tensors.items():
                if name in self.tensors:
                    raise InputError(
                        f"{part}: holds tensor {printable_name(name)}, which another part holds too; download the parts again"
                    )
                self.tensors[name] = tensor
        told = self.fields.get("split.tensors.count")
        if isinstance(told, int) and told != len(self.tensors):
            raise InputError(
                f"{path}: its parts hold {len(self.tensors)} tensors, its header says {told}; download the parts again"
            )

    def read(self, name: str) -> np.ndarray:
        """The numbers of one tensor: float32, or float16, bfloat16 and float64 where they are stored so."""
        tensor = self.tensors[name]
        width, count = tensor.shape[-1], math.prod(tensor.shape[:-1])

        def stored(rows: int) -> np.ndarray:
            nbytes = rows * (tensor.nbytes // count)
            data = np.fromfile(file, np.uint8, nbytes)
            if len(data) != nbytes:
                raise InputError(f"{tensor.path}: ends within tensor {name}; download it again")
            return data

        with open(tensor.path, "rb") as file:
            file.seek(tensor.offset)
            plain = PLAIN.get(tensor.type)
            if plain is not None:
                return stored(count).view(plain).reshape(tensor.shape)
            # a few rows at a time: the package holds twice what it gives
            numbers = np.empty((count, width), np.float32)
            for some in np.array_split(numbers, math.ceil(numbers.size / DEQUANTISED)):
                if len(some):
                    with np.errstate(all="ignore"):  # whoever reads weights finds NaN and inf
                        some[...] = dequantize(
                            stored(len(some)).reshape(len(some), -1), tensor.type
                        )
        return numbers.reshape(tensor.shape)


#: Types that are not quantised, and their numpy dtypes.
PLAIN: dict[GGMLQuantizationType, Any] = {
    GGMLQuantizationType.F32: np.dtype("<f4"),
    GGMLQuantizationType.F16: np.dtype("<f2"),
    GGMLQuantizationType.F64: np.dtype("<f8"),
    GGMLQuantizationType.BF16: np.dtype("bfloat16"),
}


def is_gguf(path: Path) -> bool:
    """By its magic number, or by its name."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC or path.suffix == ".gguf"


def _other_parts(path: Path, fields: dict[str, Any]) -> list[Path]:
    count, number = fields.get("split.count", 0), fields.get("split.no", 0)
    if not isinstance(count, int) or not isinstance(number, int) or count < 2:
        return []
    name = _SPLIT_NAME.fullmatch(path.name)
    if number != 0 or name is None or int(name[3]) != count:
        raise InputError(
            f"{path}: is part {number + 1} of {count} of a split model; name the first part, …-00001-of-{count:05d}.gguf"
        )
    others = [path.with_name(f"{name[1]}-{i:05d}-of-{count:05d}.gguf") for i in range(2, count + 1)]
    missing = [part for part in others if not part.is_file()]
    if missing:
        raise InputError(
            f"{path}: {len(missing)} of {count} parts are not there, first {missing[0].name}; finish the download"
        )
    return others


class _Damaged(Exception):
    """What is wrong with a header."""


class _Part:
    """The header of one file."""

    def __init__(self, path: Path):
        size = path.stat().st_size
        try:
            with open(path, "rb") as file:
                header = _Header(file, size)
                self.fields = dict(header.fields())
                self.tensors = dict(header.tensors(path, self.fields))
        except (_Damaged, OSError, UnicodeDecodeError, struct.error) as error:
            raise InputError(
                f"{path}: not a whole GGUF file ({error}); download it again"
            ) from None


class _Header:
    """Reads forwards through a header; every length is held against the bytes that are left."""

    def __init__(self, file: IO[bytes], size: int):
        self._file, self._size, self._at = file, size, 0
        if self._take(4, "the magic number") != MAGIC:
            raise _Damaged("it does not begin with GGUF")
        version = self._number("<I", "the version")
        if version not in VERSIONS:
            swapped = version & 0xFFFF == 0
            raise _Damaged(
                "it is big-endian, expected little-endian"
                if swapped
                else f"version {version}, expected {' or '.join(map(str, VERSIONS))}"
            )
        self._tensor_count = self._count("tensors", 24, MOST_TENSORS)
        self._field_count = self._count("keys", 13, MOST_KEYS)
        self._strings = 0  # in arrays

    def _take(self, count: int, what: str) -> bytes:
        if count > min(self._size, MOST_HEADER_BYTES) - self._at:
            raise _Damaged(f"{what} of {count:,} bytes at {self._at:,} leads past its end")
        self._at += count
        return self._file.read(count)

    def _number(self, form: str, what: str) -> int:
        return struct.unpack(form, self._take(struct.calcsize(form), what))[0]

    def _count(self, what: str, least: int, most: int | None = None) -> int:
        """A number of things that take at least so many bytes each, and `most` of them."""
        count = self._number("<Q", f"the number of {what}")
        if count * least > self._size - self._at:
            raise _Damaged(f"{count:,} {what}, more than its {self._size:,} bytes can hold")
        if most is not None and count > most:
            raise _Damaged(f"{count:,} {what}, expected at most {most:,}")
        return count

    def _text(self, what: str, most: int | None = None) -> str:
        length = self._number("<Q", f"the length of {what}")
        if most is not None and length > most:
            raise _Damaged(f"{what} of {length:,} bytes, expected at most {most:,}")
        return self._take(length, what).decode()

    def fields(self) -> Iterator[tuple[str, Any]]:
        """Every key and its value."""
        seen = set()
        for _ in range(self._field_count):
            key = self._text("a key", MOST_NAME_BYTES)
            if key in seen:
                raise _Damaged(f"key {printable_name(key)} stands there twice")
            seen.add(key)
            yield key, self._value(self._number("<I", "a type"), printable_name(key))

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._text(f"the value of {key}")
        if kind == _ARRAY:
            inner = self._number("<I", "a type")
            if inner == _STRING:
                count = self._count(f"strings of {key}", 8, MOST_STRINGS - self._strings)
                self._strings += count
                return [self._text(f"a value of {key}") for _ in range(count)]
            dtype = self._dtype(inner, key)
            count = self._count(key, dtype.itemsize)
            return np.frombuffer(self._take(count * dtype.itemsize, key), dtype)
        dtype = self._dtype(kind, key)
        value = np.frombuffer(self._take(dtype.itemsize, key), dtype)[0]
        # the shortest number that is stored so: 1e-05, not 9.999999747378752e-06
        return float(str(value)) if dtype == np.float32 else value.item()

    def _dtype(self, kind: int, key: str) -> np.dtype:
        if kind not in _SCALARS:
            raise _Damaged(f"{key} is of type {kind}, which is unknown")
        return np.dtype(_SCALARS[kind])

    def tensors(self, path: Path, fields: dict[str, Any]) -> Iterator[tuple[str, GgufTensor]]:
        """Every tensor, its bytes known to lie within the file and apart from the others'."""
        alignment = fields.get("general.alignment", 32)
        if (
            type(alignment) is not int
            or not 8 <= alignment <= 1 << 20
            or alignment & (alignment - 1)
        ):
            raise _Damaged(f"an alignment of {alignment}, expected a power of two")
        told = [self._tensor() for _ in range(self._tensor_count)]
        start = -(-self._at // alignment) * alignment
        names, end = set(), 0
        for name, shape, kind, offset in sorted(told, key=lambda tensor: tensor[3]):
            block, nbytes = GGML_QUANT_SIZES[kind]
            length = math.prod(shape) // block * nbytes
            shown = printable_name(name)
            if name in names:
                raise _Damaged(f"tensor {shown} stands there twice")
            if offset % alignment or offset < end:
                raise _Damaged(
                    f"tensor {shown} begins at {offset:,}, within another or not aligned"
                )
            if start + offset + length > self._size:
                raise _Damaged(
                    f"tensor {shown} of {length:,} bytes at {start + offset:,} leads past its end"
                )
            names.add(name)
            end = offset + length
            yield name, GgufTensor(path, start + offset, length, shape, kind)

    def _tensor(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name = self._text("the name of a tensor", MOST_NAME_BYTES)
        shown = printable_name(name)
        count = self._number("<I", "a number of dimensions")
        if not 1 <= count <= MOST_DIMS:
            raise _Damaged(f"tensor {shown} has {count} dimensions, expected 1 to {MOST_DIMS}")
        dims = struct.unpack(f"<{count}Q", self._take(8 * count, "dimensions"))
        kind, offset = self._number("<I", "a type"), self._number("<Q", "an offset")
        try:
            known = GGMLQuantizationType(kind)
            block, nbytes = GGML_QUANT_SIZES[known]
        except (ValueError, KeyError):
            raise _Damaged(f"tensor {shown} is of type {kind}, which is unknown") from None
        if min(dims) < 1 or math.prod(dims) // block * nbytes > self._size:
            raise _Damaged(f"tensor {shown} of shape {dims} is larger than the file, or empty")
        if dims[0] % block:
            raise _Damaged(f"rows of {dims[0]} numbers of {shown} are no whole {known.name} blocks")
        return name, dims[::-1], known, offset
