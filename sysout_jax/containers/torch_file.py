"""torch.save files without torch, as far as they hold tensors and plain values.

A file is a zip archive: `<root>/data.pkl` describes an object, `<root>/data/<key>` hold the storages of its tensors. Reading it gives
the object with a `TorchTensor` (where its numbers lie) in place of each tensor; numbers are read when they are asked for.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np

from sysout_jax.checks import shown
from sysout_jax.containers.pickle_reader import ForbiddenName, read_pickle
from sysout_jax.containers.zip_archive import AGAIN, MAGIC, StoredMembers
from sysout_jax.errors import InputError, RunError
from sysout_jax.printable import printable, printable_name

#: The storage classes that torch.save names, and their number formats.
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}

MOST_PICKLED = 1 << 24  # bytes; that of GPT-2 XL with its optimiser has half a MiB
MOST_AXES, MOST_ELEMENTS = 16, 2**63


class TorchTensor(NamedTuple):
    """Where a tensor's numbers lie: `offset` and `strides` count elements of the storage."""

    storage: str
    dtype: str
    size: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _is_bare_pickle(head: bytes) -> bool:
    """How files of torch before 1.6 begin; an opcode, never a zero as in small integers, follows the protocol's number."""
    return len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5 and head[2] != 0


def is_torch_file(path: Path) -> bool:
    """Whether the file begins as torch.save lets it begin, now or before torch 1.6."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(len(MAGIC))
    return head == MAGIC or _is_bare_pickle(head)


class TorchFile:
    """The object in a torch.save file (`.root`) and its tensors, read one at a time.

    Raises InputError for damaged files and for a pickle that names anything but tensors and plain containers.
    """

    def __init__(self, path: Path):
        self.path = path
        with open(path, "rb") as file:
            if _is_bare_pickle(file.read(len(MAGIC))):
                raise InputError(
                    f"{path}: a bare pickle, as torch before 1.6 saved; save it again with a newer torch: "
                    "torch.save(torch.load('old.pt', weights_only=True), 'new.pt')"
                )
        self._members = StoredMembers(path)
        pickles = [n for n in self._members.names if n.count("/") == 1 and n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise InputError(
                f"{path}: a zip archive without torch's data.pkl; expected a file written by torch.save"
            )
        self._prefix = pickles[0].removesuffix("data.pkl")
        self._check_byte_order()
        self.root = _unpickle(self._members.read(pickles[0], MOST_PICKLED), path)

    def check(self, name: str, tensor: TorchTensor) -> None:
        """InputError unless all numbers of the tensor are inside a storage that is inside the file."""
        storage = self._prefix + "data/" + tensor.storage
        size = self._members.size(storage)
        ok = (
            size is not None
            and len(tensor.shape) == len(tensor.strides)
            and min((tensor.size, tensor.offset, *tensor.shape, *tensor.strides)) >= 0
            and math.prod(tensor.shape) <= tensor.size
            and _span(tensor) <= tensor.size
            and tensor.size * np.dtype(tensor.dtype).itemsize <= size
        )
        if not ok:
            raise InputError(
                f"{self.path}: tensor {printable_name(name)} of shape {tensor.shape} does not fit its storage; "
                f"the file is damaged, {AGAIN}"
            )
        self._members.start(storage)

    def read(self, tensor: TorchTensor) -> np.ndarray:
        """The numbers of one tensor that `check` has passed; nothing else of the file is read.

        Raises RunError when the file is no longer what it was when it was opened.
        """
        dtype = np.dtype(tensor.dtype)
        count = _span(tensor) - tensor.offset if math.prod(tensor.shape) else 0
        start = self._members.start(self._prefix + "data/" + tensor.storage)
        try:
            numbers = np.fromfile(
                self.path, dtype, count, offset=start + tensor.offset * dtype.itemsize
            )
        except OSError as error:
            raise RunError(f"{self.path}: can no longer be read ({error.strerror})") from None
        if len(numbers) != count:
            raise RunError(f"{self.path}: ends within a tensor; {AGAIN}")
        strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
        return np.lib.stride_tricks.as_strided(numbers, tensor.shape, strides, writeable=False)

    def _check_byte_order(self) -> None:
        entry = self._prefix + "byteorder"
        order = (
            self._members.read(entry, 64) if self._members.size(entry) is not None else b"little"
        )
        if order != b"little":
            raise InputError(
                f"{self.path}: was saved on a big-endian machine (byte order {shown(order.decode(errors='replace'))}); "
                "save it again on a little-endian one"
            )


def _span(tensor: TorchTensor) -> int:
    """Index after the last element of the storage that the tensor touches."""
    steps = ((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    return tensor.offset + 1 + sum(steps) if math.prod(tensor.shape) else tensor.offset


def _unpickle(data: bytes, path: Path) -> Any:
    try:
        return read_pickle(data, KNOWN, _storage)
    except ForbiddenName as name:
        raise InputError(
            f"{path}: its pickle asks for {printable_name(str(name))}; expected only tensors and plain Python values, "
            "nothing was executed; save a dict of model, model_args and config without it"
        ) from None
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise InputError(
            f"{path}: its data.pkl is damaged ({type(error).__name__}: {printable(str(error))}); {AGAIN}"
        ) from None


class _Storage(NamedTuple):
    key: str
    dtype: str
    size: int


def _storage(pid: Any) -> _Storage:
    kind, dtype, key, _, size = pid
    if kind != "storage" or dtype not in STORAGES.values() or type(key) is not str:
        raise ValueError("a storage without dtype or name")
    return _Storage(key, dtype, size)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> TorchTensor:
    if type(storage) is not _Storage or len(shape) > MOST_AXES or len(strides) > MOST_AXES:
        raise ValueError(f"a tensor without a storage or of more than {MOST_AXES} axes")
    if not all(
        type(n) is int and abs(n) < MOST_ELEMENTS for n in (storage.size, offset, *shape, *strides)
    ):
        raise ValueError("a tensor with sizes that are no integers below 2^63")
    return TorchTensor(*storage, offset, tuple(shape), tuple(strides))


def _ordered_dict() -> dict:
    """Plain dicts keep their order; the items come after the call."""
    return {}


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


#: Every name that may occur in the pickle, and what stands for it.
KNOWN: dict[str, Any] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
} | {f"torch.{name}": dtype for name, dtype in STORAGES.items()}
