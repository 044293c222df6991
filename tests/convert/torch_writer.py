"""torch's zip format written without torch: pickle opcodes emitted by hand, storages as plain entries."""

from __future__ import annotations

import math
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

STORAGE_CLASS = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int8": "CharStorage",
    "bool": "BoolStorage",
}


class Tensor(NamedTuple):
    """A view of a storage: the array holds the whole storage, offset and strides count elements."""

    storage: np.ndarray
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    parameter: bool = False


class Raw(NamedTuple):
    """Opcodes put in as they are."""

    opcodes: bytes


def view(array: np.ndarray) -> Tensor:
    """The tensor of a whole C-contiguous array."""
    strides = tuple(math.prod(array.shape[i + 1 :]) for i in range(array.ndim))
    return Tensor(np.ascontiguousarray(array).reshape(-1), array.shape, strides)


def write_torch(path: Path, root: Any, **zip_options: Any) -> Path:
    """Save `root` (containers, scalars, arrays, Tensors, Raw). Views of one array object share one storage."""
    storages: dict[int, tuple[str, np.ndarray]] = {}
    pickle = b"\x80\x02" + _emit(root, storages) + b"."
    with zipfile.ZipFile(path, "w", **zip_options) as archive:
        archive.writestr("ckpt/data.pkl", pickle)
        archive.writestr("ckpt/byteorder", "little")
        for key, array in storages.values():
            archive.writestr(f"ckpt/data/{key}", array.tobytes())
        archive.writestr("ckpt/version", "3\n")
    return path


def _emit(x: Any, storages: dict) -> bytes:
    def emit(*values: Any) -> bytes:
        return b"".join(_emit(value, storages) for value in values)

    match x:
        case Raw():
            return x.opcodes
        case None:
            return b"N"
        case bool():
            return b"\x88" if x else b"\x89"
        case int():
            text = x.to_bytes((x.bit_length() + 8) // 8, "little", signed=True)
            return b"\x8a" + bytes([len(text)]) + text
        case float():
            return b"G" + struct.pack(">d", x)
        case str():
            return b"X" + struct.pack("<I", len(x.encode())) + x.encode()
        case np.ndarray():
            return emit(view(x))
        case Tensor():
            key, _ = storages.setdefault(id(x.storage), (str(len(storages)), x.storage))
            cls = Raw(b"ctorch\n" + STORAGE_CLASS[x.storage.dtype.name].encode() + b"\n")
            pid = emit(("storage", cls, key, "cuda:0", x.storage.size)) + b"Q"
            hooks = Raw(b"ccollections\nOrderedDict\n)R")
            arguments = (Raw(pid), x.offset, x.shape, x.strides, False, hooks)
            tensor = b"ctorch._utils\n_rebuild_tensor_v2\n" + emit(arguments) + b"R"
            if not x.parameter:
                return tensor
            return b"ctorch._utils\n_rebuild_parameter\n" + emit((Raw(tensor), True, hooks)) + b"R"
        case tuple():
            return b"(" + emit(*x) + b"t"
        case list():
            return b"](" + emit(*x) + b"e"
        case dict():
            items = [value for item in x.items() for value in item]
            return b"}(" + emit(*items) + b"u"
    raise TypeError(type(x))
