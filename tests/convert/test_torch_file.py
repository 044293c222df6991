"""torch files are read without torch: every number format and view, and nothing but tensors."""

from __future__ import annotations

import io
import os
import pickle
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from sysout_jax.containers.torch_file import KNOWN, TorchFile, is_torch_file
from sysout_jax.errors import InputError, RunError
from tests.convert.torch_writer import STORAGE_CLASS, Raw, Tensor, write_torch


def refusal(path) -> str:
    with pytest.raises(InputError) as caught:
        TorchFile(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def read(file: TorchFile, name: str) -> np.ndarray:
    file.check(name, file.root[name])
    return file.read(file.root[name])


@pytest.mark.parametrize("dtype", STORAGE_CLASS)
def test_number_formats(tmp_path, dtype):
    want = np.random.default_rng(0).normal(0, 50, (3, 4)).astype(dtype)
    got = read(TorchFile(write_torch(tmp_path / "x.pt", {"x": want})), "x")
    assert got.dtype == want.dtype and got.tobytes() == want.tobytes()


def test_views(tmp_path):
    """Strides, offsets and shared storages mean what they mean in numpy."""
    storage = np.random.default_rng(1).normal(size=60).astype(np.float32)
    grid = storage.reshape(5, 4, 3)
    views = {
        "transposed": (Tensor(storage, (3, 4, 5), (1, 3, 12)), grid.T),
        "sliced": (Tensor(storage, (2, 3), (12, 1), 15), grid[1:3, 1]),
        "strided": (Tensor(storage, (5, 2), (12, 6), 2), grid[:, ::2, 2]),
        "scalar": (Tensor(storage, (), (), 59), grid[4, 3, 2]),
        "empty": (Tensor(storage, (0, 3), (3, 1), 60), storage[60:].reshape(0, 3)),
        "parameter": (Tensor(storage, (60,), (1,), parameter=True), storage),
    }
    path = write_torch(tmp_path / "x.pt", {name: tensor for name, (tensor, _) in views.items()})
    file = TorchFile(path)
    assert len({tensor.storage for tensor in file.root.values()}) == 1
    for name, (_, want) in views.items():
        np.testing.assert_array_equal(read(file, name), want, err_msg=name)


def test_plain_values(tmp_path):
    root = {"a": [1, -(2**40), 0.5, None, True, "ü"], 3: {"b": ()}}
    assert TorchFile(write_torch(tmp_path / "x.pt", root)).root == root


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_as_python_pickles_them(tmp_path, protocol):
    shared = ["x", 2**70, -1.5]
    root = {"a": shared, "b": [shared, shared, {}], "c": ((), (1,), (1, 2), (1, 2, 3, 4)), 5: False}
    root |= {f"key {i}": i * 1000 for i in range(300)} | {"long": "ß" * 300, "one": {"item": [7]}}
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(root, protocol))
    found = TorchFile(tmp_path / "x.pt").root
    assert found == root and found["a"] is found["b"][0]


def test_only_what_is_asked_for_is_read(tmp_path):
    """The optimiser's state is three quarters of a training checkpoint."""
    big, small = np.zeros(2**22, np.float32), np.ones(10, np.float32)
    path = write_torch(tmp_path / "x.pt", {"big": big, "small": small})
    tracemalloc.start()
    try:
        file = TorchFile(path)
        np.testing.assert_array_equal(read(file, "small"), small)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20 < big.nbytes


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        ("os", "system", ("touch {}",)),
        ("posix", "system", ("touch {}",)),
        ("builtins", "eval", ("open('{}', 'w')",)),
        ("builtins", "getattr", ()),
        ("torch", "load", ()),
        ("torch.storage", "_load_from_bytes", ()),
        ("sysout_jax.containers.torch_file", "TorchFile", ()),
        ("collections", "OrderedDict.__class__", ()),
        ("", "", ()),
        ("numpy._core.multiarray", "scalar", ()),
    ],
)
def test_other_names_are_refused_and_not_called(tmp_path, module, name, arguments):
    witness = tmp_path / "witness"
    call = f"c{module}\n{name}\n(".encode()
    for argument in arguments:
        text = argument.format(witness).encode()
        call += b"X" + len(text).to_bytes(4, "little") + text
    path = write_torch(tmp_path / "x.pt", {"x": Raw(call + b"tR")})
    message = refusal(path)
    assert f"asks for {module}.{name};" in message and "nothing was executed" in message
    assert not witness.exists()


class Evil:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch {self.witness}",)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_real_exploit_does_nothing(tmp_path, protocol):
    """As Python itself pickles it: this payload works with pickle.loads."""
    witness = tmp_path / "witness"
    payload = pickle.dumps({"model": Evil(witness)}, protocol)
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", payload)
    assert "system" in refusal(path) and not witness.exists()
    pickle.loads(payload)
    assert witness.exists()


def test_no_attribute_is_ever_set(tmp_path):
    """BUILD would set one, of an object or of what a name stands for."""
    state = b"}X\x04\x00\x00\x00keysK\x01sb"
    path = write_torch(tmp_path / "x.pt", Raw(b"ccollections\nOrderedDict\n)R" + state))
    assert TorchFile(path).root == {} and callable(TorchFile(path).root.keys)
    for name in KNOWN:
        module, _, attribute = name.rpartition(".")
        path = write_torch(tmp_path / "x.pt", Raw(f"c{module}\n{attribute}\n".encode() + state))
        assert TorchFile(path).root is KNOWN[name] and not hasattr(KNOWN[name], "keys")


DEEP = 300_000  # enough to overflow the C stack where anything recurses


@pytest.mark.parametrize(
    "opcodes",
    [
        b"",
        b"(",
        b"}(K\x01u",
        b"r\xff\xff\xff\x7f",
        b"X\xff\xff\xff\x7fabc",
        b"ccollections\nOrderedDict\nK\x01R",
        b"}(]K\x01u",
        b"}" + b")" + b"\x85" * DEEP + b"K\x01s",
        b"K\x01)R",
        b"ctorch\nFloatStorage\n)R",
        b"]K\x01K\x02s",
        b"}K\x01a",
        b"K\x01K\x02",
        b"h\x05",
        b"t",
        b"cos.path\n",
        b"(oK\x01",
        b"(U\x07storageX\x0c\x00\x00\x00FloatStorageX\x01\x00\x00\x000U\x03cpuK\x01tQ",
    ],
    ids=lambda opcodes: str(opcodes[:40]),
)
def test_damaged_pickles(tmp_path, opcodes):
    assert "data.pkl is damaged" in refusal(write_torch(tmp_path / "x.pt", Raw(opcodes)))


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor(np.zeros(6, np.float32), (7,), (1,)),
        Tensor(np.zeros(6, np.float32), (2, 3), (4, 1)),
        Tensor(np.zeros(6, np.float32), (2,), (1,), 5),
        Tensor(np.zeros(6, np.float32), (2,), (-1,), 3),
        Tensor(np.zeros(6, np.float32), (2, 3), (1,)),
        Tensor(np.zeros(6, np.float32), (-2, -3), (3, 1)),
        Tensor(np.zeros(6, np.float32), (2**60,), (0,)),
        Tensor(np.zeros(6, np.float32), (2**40, 2**40), (2**40, 1)),
        Tensor(np.zeros(6, np.float32), (3,), (1,), -2),
    ],
    ids=lambda t: f"{t.shape} {t.strides} {t.offset}",
)
def test_views_that_leave_their_storage(tmp_path, tensor):
    file = TorchFile(write_torch(tmp_path / "x.pt", {"x": tensor}))
    with pytest.raises(InputError, match="tensor x of shape .* does not fit its storage"):
        file.check("x", file.root["x"])


def test_a_storage_that_claims_more_than_the_file_holds(tmp_path):
    pid = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000NJ\xff\xff\xff\x7ftQ"
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + b"K\x00J\xff\xff\xff\x7f\x85K\x01\x85tR"
    )
    path = write_torch(tmp_path / "x.pt", {"y": np.zeros(4, np.float32), "x": Raw(tensor)})
    file = TorchFile(path)
    assert file.root["x"].shape == (2**31 - 1,)
    with pytest.raises(InputError, match="does not fit its storage"):
        file.check("x", file.root["x"])


def test_truncated_and_foreign_files(tmp_path):
    path = write_torch(tmp_path / "x.pt", {"x": np.zeros(1000, np.float32)})
    data = path.read_bytes()
    for kept in (4, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:kept])
        assert is_torch_file(path) and "not a whole torch file" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
    assert "without torch's data.pkl" in refusal(path)
    write_torch(path, {"x": 1}, compression=zipfile.ZIP_DEFLATED)
    assert "is encrypted, compressed or damaged" in refusal(path)


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    path = write_torch(tmp_path / "x.pt", {"x": np.zeros(1000, np.float32)})
    file = TorchFile(path)
    file.check("x", file.root["x"])
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(RunError, match="ends within a tensor"):
        file.read(file.root["x"])


def test_big_endian_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}, 2))
        archive.writestr("x/byteorder", "big")
    assert "big-endian" in refusal(path)


def test_files_of_old_torch_and_bare_pickles_say_how_to_save_again(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.")
    assert is_torch_file(path) and "torch.save(torch.load(" in refusal(path)
    path.write_bytes(pickle.dumps({"model": {}}))
    assert is_torch_file(path) and "torch.save(torch.load(" in refusal(path)


@pytest.mark.parity
def test_against_torch(tmp_path):
    """What torch itself saves: views, shared storages, parameters, every number format."""
    torch = pytest.importorskip("torch", reason="torch writes the files of this test")
    base = torch.randn(6, 5)
    tensors = {
        "base": base,
        "transposed": base.T,
        "sliced": base[1:4:2, 2:],
        "column": base[:, 3],
        "parameter": torch.nn.Parameter(base),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
    }
    for dtype in ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"):
        tensors[dtype] = (10 * torch.randn(3, 3)).to(getattr(torch, dtype))
    tensors["bool"] = base > 0
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    path = tmp_path / "x.pt"
    torch.save(tensors | module.state_dict(), path)
    file = TorchFile(path)
    assert set(file.root) == set(tensors) | set(module.state_dict())
    for name, want in (tensors | module.state_dict()).items():
        got, plain = read(file, name), want.detach()
        if want.dtype == torch.bfloat16:
            want_numpy = plain.float().numpy().astype(ml_dtypes.bfloat16)
        else:
            want_numpy = plain.numpy()
        assert got.dtype == want_numpy.dtype, name
        np.testing.assert_array_equal(got, want_numpy, err_msg=name)

    buffer = io.BytesIO()
    torch.save(module, buffer)  # a whole module is code, not tensors
    path.write_bytes(buffer.getvalue())
    assert "asks for torch.nn.modules.container.Sequential;" in refusal(path)
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    assert "torch.save(torch.load(" in refusal(path)
