"""Batches against token files whose every token tells where it stands: order, shards, resuming, and what is refused."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from sysout_jax.data import batches as module
from sysout_jax.data import token_files
from sysout_jax.data.batches import batches, sequences_per_epoch, validation_slice
from sysout_jax.data.documents import Source
from sysout_jax.data.prepare import prepare
from sysout_jax.data.token_files import check_vocab, open_tokens
from sysout_jax.errors import InputError


@pytest.fixture
def counted(tmp_path: Path) -> Path:
    """nanoGPT's layout without meta.json: train.bin counts from 0, val.bin from 1000."""
    np.arange(1003, dtype="<u2").tofile(tmp_path / "train.bin")
    np.arange(1000, 1403, dtype="<u2").tofile(tmp_path / "val.bin")
    return tmp_path


def take(iterator, count: int) -> np.ndarray:
    return np.stack([next(iterator) for _ in range(count)])


@pytest.mark.parametrize(("length", "batch_size"), [(10, 4), (7, 9), (100, 25), (1, 64), (1002, 3)])
def test_an_epoch_is_a_permutation_of_all_windows(length, batch_size, counted):
    size = sequences_per_epoch(counted, "train", length)
    assert size == 1002 // length
    steps = 3 * size // batch_size + 1
    rows = take(batches(counted, "train", batch_size, length, 0, 0, 1), steps)
    assert rows.dtype == np.int32 and rows.shape == (steps, batch_size, length + 1)
    rows = rows.reshape(-1, length + 1)
    starts = rows[:, 0]
    np.testing.assert_array_equal(rows, starts[:, None] + np.arange(length + 1)[None])
    epochs = starts[: 3 * size].reshape(3, size)
    for epoch in epochs:
        assert sorted(epoch) == list(range(0, size * length, length))
    if size > 20:
        assert len({tuple(epoch) for epoch in epochs}) == 3, "every epoch has its own order"
        # the order is no run of neighbours: a random pair is adjacent with probability 2 / size
        assert np.mean(np.abs(np.diff(epochs[0])) == length) < 2 / size + 0.3


def test_the_seed_fixes_the_order(counted):
    first, again, other = (
        take(batches(counted, "train", 4, 10, seed, 0, 1), 60) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first, again)
    # and a neighbouring seed does not give the same epochs one epoch later
    for epoch in range(2):
        assert not np.array_equal(first[25 * epoch : 25 * epoch + 25], other[:25])
        assert not np.array_equal(other[25 * epoch : 25 * epoch + 25], first[:25])


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_shards_together_are_what_one_process_sees(count, counted):
    whole = take(batches(counted, "train", 12, 9, 3, 0, 1), 30)
    shards = [take(batches(counted, "train", 12, 9, 3, i, count), 30) for i in range(count)]
    assert {shard.shape for shard in shards} == {(30, 12 // count, 10)}
    np.testing.assert_array_equal(np.concatenate(shards, axis=1), whole)


def test_processes_default_to_those_of_jax(counted, monkeypatch):
    monkeypatch.setattr(module.jax, "process_index", lambda: 1)
    monkeypatch.setattr(module.jax, "process_count", lambda: 2)
    expected = take(batches(counted, "train", 4, 10, 0, 1, 2), 5)
    np.testing.assert_array_equal(take(batches(counted, "train", 4, 10, 0), 5), expected)


def test_resumes_exactly_from_any_point(counted):
    rng = np.random.default_rng()
    whole = take(batches(counted, "train", 6, 10, 1, 0, 1), 120)
    used = batches(counted, "train", 6, 10, 1, 0, 1)
    for stop in [0, *rng.integers(1, 110, 8)]:
        first = batches(counted, "train", 6, 10, 1, 0, 1)
        for _ in range(stop):
            next(first)
        state = json.loads(json.dumps(first.get_state()))
        assert len(json.dumps(state)) < 100
        # with threads that have read ahead, in a fresh iterator, in one that was elsewhere, and divided otherwise
        for iterator in (first, batches(counted, "train", 6, 10, 1, 0, 1), used):
            iterator.set_state(state)
            np.testing.assert_array_equal(take(iterator, 10), whole[stop : stop + 10])
        shards = []
        for index in range(3):
            shard = batches(counted, "train", 6, 10, 1, index, 3)
            shard.set_state(state)
            shards.append(take(shard, 10))
        np.testing.assert_array_equal(np.concatenate(shards, axis=1), whole[stop : stop + 10])


def test_batches_are_loaded_ahead(counted, monkeypatch):
    loaded = []
    read = module._Windows.__getitem__

    def counting(self, index):
        if self._length == 13:  # threads of other tests may still be reading ahead
            loaded.append(index)
        return read(self, index)

    monkeypatch.setattr(module._Windows, "__getitem__", counting)
    iterator = batches(counted, "train", 4, 13, 0, 0, 1)
    next(iterator)
    wanted = 4 * (1 + module.BATCHES_AHEAD)
    end = time.monotonic() + 20
    while len(loaded) < wanted and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(loaded) == wanted, "while nobody asks, the buffer fills, and no further"


def test_validation_slice_is_fixed_and_spread_over_the_file(counted):
    rows = validation_slice(counted, 10, 8)
    assert rows.dtype == np.int32 and rows.shape == (8, 11)
    np.testing.assert_array_equal(rows, validation_slice(counted, 10, 8))
    np.testing.assert_array_equal(rows, rows[:, :1] + np.arange(11)[None])
    np.testing.assert_array_equal(rows[:, 0], 1000 + 50 * np.arange(8))
    for asked in (40, 41, 1000):
        every = validation_slice(counted, 10, asked)
        np.testing.assert_array_equal(every[:, 0], 1000 + 10 * np.arange(40))


def test_prepared_text_comes_out_of_the_batches(tmp_path):
    text = "".join(np.random.default_rng().choice(list("abc \n"), 5000))
    (tmp_path / "a.txt").write_text(text)
    prepare([Source(tmp_path / "a.txt")], "bytes", tmp_path / "out", val_fraction=0)
    rows = take(batches(tmp_path / "out", "train", 5, 100, 0, 0, 1), 10).reshape(50, 101)
    windows = {text[i : i + 101] for i in range(0, 5000, 100)}
    assert {bytes(row[row < 256].tolist()).decode() for row in rows} == windows


def test_four_byte_ids(counted, tmp_path):
    out = tmp_path / "wide"
    (tmp_path / "a.txt").write_text("some text")
    meta = prepare([Source(tmp_path / "a.txt")], "bytes", out, val_fraction=0)
    ids = np.array([0, 70_000, 3_000_000_000, 7], "<u4")
    ids[:2].tofile(out / "train.bin")
    fields = json.loads((out / "meta.json").read_text())
    fields |= {"dtype": "uint32", "vocab_size": 70_001, "splits": {"train": {"tokens": 2}}}
    (out / "meta.json").write_text(json.dumps(fields))
    assert meta.dtype == "uint16"
    np.testing.assert_array_equal(open_tokens(out, "train"), ids[:2])
    assert take(batches(out, "train", 1, 1, 0, 0, 1), 1).tolist() == [[[0, 70_000]]]


# --- what is refused


def refusal(call, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_vocabulary(counted, tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "SCAN", 100)  # the highest id is in the last of many chunks
    check_vocab(counted, "train", 1003)
    check_vocab(counted, "val", 1403)
    message = refusal(check_vocab, counted, "train", 1002)
    assert "train.bin" in message and "token id 1002" in message and "1002 entries" in message

    (tmp_path / "a.txt").write_text("abc " * 100)
    prepare([Source(tmp_path / "a.txt")], "bytes", tmp_path / "out", val_fraction=0, eos=None)
    check_vocab(tmp_path / "out", "train", 257)
    assert "token id 256" in refusal(check_vocab, tmp_path / "out", "train", 256)
    check_vocab(tmp_path / "out", "train", 300)


def test_ids_are_not_trusted_to_meta(tmp_path):
    (tmp_path / "a.txt").write_text("abc " * 100)
    prepare([Source(tmp_path / "a.txt")], "bytes", tmp_path / "out", val_fraction=0)
    path = tmp_path / "out" / "train.bin"
    ids = np.fromfile(path, "<u2")
    ids[123] = 300
    ids.tofile(path)
    message = refusal(check_vocab, tmp_path / "out", "train", 280)
    assert "train.bin: holds token id 300 at position 123, " in message and "280 entries" in message
    check_vocab(tmp_path / "out", "train", 301)


def test_large_files_are_looked_at_in_parts(counted, monkeypatch):
    monkeypatch.setattr(token_files, "SCAN", 10)
    monkeypatch.setattr(token_files, "MOST_SCANNED", 100)  # five parts of ten ids, of 1,003
    assert list(token_files._starts(1003, 50)) == [0, 248, 496, 744, 993]
    ids = np.zeros(1003, "<u2")
    for at, seen in ((0, True), (505, True), (1002, True), (300, False)):
        ids[:] = 0
        ids[at] = 9
        ids.tofile(counted / "train.bin")
        if seen:
            assert f"position {at:,}" in refusal(check_vocab, counted, "train", 9)
        else:
            check_vocab(counted, "train", 9)
            rows = batches(counted, "train", 4, 10, 0, 0, 1, vocab_size=9)
            message = refusal(take, rows, 26)  # an epoch, and no further
            assert "train.bin: holds token id 9 at position 300, " in message


def test_a_wide_vocabulary_needs_no_look(counted, monkeypatch):
    monkeypatch.setattr(token_files, "check_ids", None)
    check_vocab(counted, "train", 1 << 16)


def test_validation_windows_are_checked(counted):
    validation_slice(counted, 10, 8, vocab_size=1403)
    message = refusal(validation_slice, counted, 10, 40, 1400)
    assert "val.bin: holds token id 1400 at position 400, " in message


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"vocab_size": -1}, "vocab_size is -1; expected a whole number"),
        ({"vocab_size": "257"}, "vocab_size is '257'"),
        ({"vocab_size": 257.0}, "vocab_size is 257.0"),
        ({"vocab_size": 10**299}, "vocab_size is an integer of 994 bits"),
        ({"vocab_size": 10**400}, "a number of 401 digits"),
        ({"dtype": ["uint16"]}, "dtype is a list of 1"),
        ({"dtype": "int64"}, "dtype is 'int64'; expected one of uint16, uint32"),
        ({"eos_id": -2}, "eos_id is -2"),
        ({"splits": None}, "splits is None"),
        ({"splits": {"train": 3}}, "splits.train is 3"),
        ({"splits": {"train": {"tokens": "401"}}}, "splits.train.tokens is '401'"),
        ({"splits": {"val": {"tokens": 1}}}, "knows no train"),
        ({"sources": "a.txt"}, "sources is 'a.txt'"),
        ({"more\x1b[2J": 1}, "unexpected keyword argument"),
    ],
)
def test_meta_with_what_cannot_be(fields, reason, tmp_path):
    (tmp_path / "a.txt").write_text("abc " * 100)
    prepare([Source(tmp_path / "a.txt")], "bytes", tmp_path / "out", val_fraction=0)
    path = tmp_path / "out" / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    message = refusal(check_vocab, tmp_path / "out", "train", 300)
    assert reason in message and message.isprintable() and len(message) < 500


def test_meta_that_is_no_object(counted):
    for text in ("[1]", "[" * 10**5, "\xff"):
        (counted / "meta.json").write_text(text, encoding="latin-1")
        assert "meta.json" in refusal(open_tokens, counted, "val")
    (counted / "meta.json").unlink()
    (counted / "meta.json").mkdir()
    assert "not a file" in refusal(open_tokens, counted, "val")


def test_files_that_cannot_be_trained_on(counted, tmp_path):
    assert "train.prepare" in refusal(open_tokens, tmp_path / "nowhere", "train")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "train.bin").touch()
    assert "is empty" in refusal(open_tokens, tmp_path / "empty", "train")
    (counted / "train.bin").write_bytes(b"abc")
    assert "3 bytes" in refusal(open_tokens, counted, "train")
    (counted / "meta.json").write_text('{"dtype": "uint16"}')
    assert "meta.json" in refusal(open_tokens, counted, "val")
    (counted / "meta.json").write_text("{")
    assert "meta.json" in refusal(open_tokens, counted, "val")


def test_copies_that_were_cut_short(tmp_path):
    (tmp_path / "a.txt").write_text("abc " * 100)
    prepare([Source(tmp_path / "a.txt")], "bytes", tmp_path / "out", val_fraction=0)
    path = tmp_path / "out" / "train.bin"
    path.write_bytes(path.read_bytes()[:-20])
    assert "holds 391 tokens, meta.json says 401" in refusal(open_tokens, tmp_path / "out", "train")


def test_too_short_for_a_sequence(counted):
    batches(counted, "train", 1, 1002, 0, 0, 1)
    message = refusal(batches, counted, "train", 1, 1003, 0, 0, 1)
    assert "1003 tokens" in message and "train.bin" in message
    assert "val.bin" in refusal(validation_slice, counted, 403, 1)
    assert "at least 1" in refusal(validation_slice, counted, 10, 0)
    assert "at least 1" in refusal(batches, counted, "train", 1, 0, 0, 0, 1)


@pytest.mark.parametrize(("batch_size", "count"), [(7, 2), (0, 1), (2, 4)])
def test_batch_that_cannot_be_divided(batch_size, count, counted):
    message = refusal(batches, counted, "train", batch_size, 10, 0, 0, count)
    assert f"{batch_size} sequences" in message and f"{count} processes" in message


@pytest.mark.parametrize("length", [7, 64])
def test_text_in_windows_that_begin_with_bos(length, tmp_path):
    """BOS and the next tokens, nothing lost but a rest, nothing twice."""
    text = "".join(np.random.default_rng().choice(list("abc d\n"), 1500))
    (tmp_path / "text.txt").write_text(text)

    def write(name: str, **more) -> Path:
        prepare([Source(tmp_path / "text.txt")], "bytes", tmp_path / name, val_fraction=0.2, **more)
        return tmp_path / name

    plain, cut = write("plain"), write("cut", bos_every=length)
    for split in ("train", "val"):
        tokens, rows = open_tokens(plain, split), open_tokens(cut, split).reshape(-1, length + 1)
        count = len(tokens) // length
        np.testing.assert_array_equal(rows[:, 1:].ravel(), tokens[: count * length])
        assert (rows[:, 0] == 256).all() and len(rows) == count
        assert sequences_per_epoch(cut, split, length) == count
    got = take(batches(cut, "train", 2, length, 0, 0, 1), 3)
    assert (got[:, :, 0] == 256).all()


def test_windows_that_cannot_be_cut(tmp_path):
    (tmp_path / "text.txt").write_text("ab " * 40)
    cases = {
        "windows of 0 tokens": {"bos_every": 0},
        "fewer than one window": {"bos_every": 90},
        "'<s>' is no token": {"bos_every": 8, "bos": "<s>"},
        "nothing is cut into windows": {"bos": "<|endoftext|>"},
    }
    for message, more in cases.items():
        with pytest.raises(InputError, match=message):
            prepare([Source(tmp_path / "text.txt")], "bytes", tmp_path / "out", **more)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text.txt"]
