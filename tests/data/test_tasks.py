"""Tasks by what their own sequences show: the table, the copies, BOS, and the loss of the exact model."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sysout_jax.data.batches import batches, validation_slice
from sysout_jax.data.documents import Source
from sysout_jax.data.prepare_task import prepare_task, source_bigrams
from sysout_jax.data.tasks import BOS, MARK, bigram_backcopy, count_bigrams, sparse_copy
from sysout_jax.data.token_files import open_tokens, read_meta
from sysout_jax.errors import InputError

TEXT = "abacabad, te tae bed cab\nteaba dab tace e bat "
LENGTH = 11


@pytest.fixture
def table():
    return count_bigrams([TEXT])


def pairs_of(text: str) -> Counter:
    return Counter(zip(text, text[1:] + text[0], strict=True))


@pytest.mark.parametrize("cuts", [[], [1], [7, 8, 30], [0, len(TEXT)]])
def test_the_table_counts_pairs_across_blocks(cuts):
    blocks = [TEXT[a:b] for a, b in zip([0, *cuts], [*cuts, len(TEXT)], strict=True)]
    found = count_bigrams(blocks)
    letters = [chr(s) for s in found.symbols]
    assert letters == sorted(set(TEXT))
    counted = pairs_of(TEXT)
    for a, row in zip(letters, found.counts, strict=True):
        assert row.tolist() == [counted[a, b] for b in letters]


def test_the_default_text_always_leaves_a_choice_after_a_comma():
    """Where one successor is certain, a copied pair repeats to the end of the window."""
    table = source_bigrams([])
    comma = table.counts[table.symbols.tolist().index(ord(","))]
    assert (comma > 0).sum() >= 2 and comma.max() < 0.95 * comma.sum()


def asked(task: str, ids_NxS: np.ndarray) -> np.ndarray:
    """Where, by the tokens alone, the next character is a copy."""
    if task == "sparse":
        return (ids_NxS >= MARK) & (ids_NxS != BOS)
    return np.isin(ids_NxS, [ord(c) for c in "te "])


def made(task: str, table):
    return sparse_copy(table, 0.4) if task == "sparse" else bigram_backcopy(table, "te ")


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("task", ["sparse", "backcopy"])
def test_copies_are_copies_and_the_rest_follows_the_table(task, bos, table):
    ids = made(task, table).windows(np.random.default_rng(), 20_000, LENGTH, bos).astype(int)
    assert ids.shape == (20_000, LENGTH + 1)
    assert (ids[:, 0] == BOS).all() == bos and (ids[:, 1:] != BOS).all()
    if not bos:  # the rest of the test counts from a token before the first character
        assert (ids[:, 0] != BOS).all()
        ids = np.pad(ids, ((0, 0), (1, 0)), constant_values=BOS)
    asks = asked(task, ids)
    assert not asks[:, :2].any(), "a window's first character has nothing before it to copy"
    letters = np.where((task == "sparse") & asks, ids - MARK, ids)
    before, now, after = letters[:, :-2], letters[:, 1:-1], letters[:, 2:]
    copied = asks[:, 1:-1]
    assert copied.mean() > 0.1
    np.testing.assert_array_equal(after[copied], before[copied])
    seen = np.zeros((256, 256))
    np.add.at(seen, (now[~copied], after[~copied]), 1)
    seen = seen[np.ix_(table.symbols, table.symbols)]
    total = seen.sum(1, keepdims=True)
    wanted = table.counts / table.counts.sum(1, keepdims=True)
    # six standard deviations of a share, and what is impossible never happens
    assert (
        np.abs(seen - total * wanted) <= 6 * np.sqrt(total * wanted * (1 - wanted)) + 1e-9
    ).all()
    if task == "sparse":
        assert asks[:, 2:].mean() == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("task", ["sparse", "backcopy"])
def test_the_floor_is_the_loss_of_the_exact_model(task, bos, table):
    """Its probabilities written out token by token, averaged over drawn windows: within five standard errors."""
    ids = made(task, table).windows(np.random.default_rng(3), 4000, LENGTH, bos).astype(int)
    if not bos:
        ids = np.pad(ids, ((0, 0), (1, 0)), constant_values=BOS)
    counted, size = pairs_of(TEXT), len(TEXT)
    often, triggers = Counter(TEXT), set("te ")
    firsts = size if task == "sparse" else sum(n for c, n in often.items() if c not in triggers)
    asks = asked(task, ids)
    letters = np.where((task == "sparse") & asks, ids - MARK, ids)
    losses = []
    for row, ask in zip(letters, asks, strict=True):
        text = "^" + "".join(map(chr, row[1:]))
        loss = -np.log(often[text[1]] / firsts) if bos else 0.0
        for i in range(2, len(text)):
            if not ask[i - 1]:
                loss -= np.log(counted[text[i - 1], text[i]] / often[text[i - 1]])
            if task == "sparse":
                loss -= np.log(0.6 if ask[i] else 0.4)
        losses.append(loss / LENGTH)
    error = np.std(losses) / np.sqrt(len(losses))
    floor = made(task, table).loss_floor(LENGTH, bos)
    assert floor == pytest.approx(np.mean(losses), abs=5 * error)


def test_idle_goes_from_all_copies_to_none(table):
    rng = np.random.default_rng()
    all_copies = sparse_copy(table, 0).windows(rng, 50, 9).astype(int) % MARK
    np.testing.assert_array_equal(all_copies[:, 4:], all_copies[:, 2:-2])
    none = sparse_copy(table, 1)
    assert (none.windows(rng, 50, 9)[:, 1:] < MARK).all()
    rows = table.counts / table.counts.sum(1, keepdims=True)
    now, total = table.frequency / table.frequency.sum(), 0.0
    rate = -(rows * np.log(np.where(rows > 0, rows, 1))).sum(1)
    for _ in range(8):
        total, now = total + now @ rate, now @ rows
    first = table.frequency / table.frequency.sum()
    assert none.loss_floor(9) == pytest.approx((total - first @ np.log(first)) / 9)


def test_a_directory_of_windows(table, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    sources = [Source(tmp_path / "text.txt")]
    task = bigram_backcopy(source_bigrams(sources), "te ")

    def write(name: str, seed: int) -> Path:
        prepare_task(
            task,
            {"name": "bigram-backcopy"},
            tmp_path / name,
            length=LENGTH,
            windows=40,
            val_windows=7,
            seed=seed,
            sources=sources,
        )
        return tmp_path / name

    out, again, other = write("a", 1), write("b", 1), write("c", 2)
    meta = read_meta(out)
    assert meta.windows.length == LENGTH and meta.windows.bos_id == BOS
    assert meta.task["loss_floor"] == pytest.approx(task.loss_floor(LENGTH))
    assert meta.sources == [{"path": str(tmp_path / "text.txt"), "bytes": len(TEXT)}]
    for split, count in (("train", 40), ("val", 7)):
        tokens = open_tokens(out, split)
        assert len(tokens) == count * (LENGTH + 1) == meta.splits[split]["tokens"]
        np.testing.assert_array_equal(tokens, open_tokens(again, split))
        assert (tokens != open_tokens(other, split)).any()
    rows = np.concatenate([r for r, _ in zip(batches(out, "train", 8, LENGTH, 0, 0, 1), range(5), strict=False)])  # fmt: skip
    assert (rows[:, 0] == BOS).all()
    whole = open_tokens(out, "train").reshape(40, -1)
    assert sorted(map(tuple, rows)) == sorted(map(tuple, whole)), "an epoch is each window once"
    np.testing.assert_array_equal(
        validation_slice(out, LENGTH, 7), open_tokens(out, "val").reshape(7, -1)
    )
    with pytest.raises(InputError, match="windows for sequences of 11 tokens"):
        validation_slice(out, LENGTH - 1, 7)


def test_a_directory_of_windows_without_bos(table, tmp_path):
    task = bigram_backcopy(table, "te ")
    meta = prepare_task(task, {}, tmp_path / "out", length=LENGTH, windows=40, val_windows=7, bos=False)  # fmt: skip
    assert read_meta(tmp_path / "out") == meta and meta.windows.bos_id is None
    assert meta.task["loss_floor"] == pytest.approx(task.loss_floor(LENGTH, bos=False))
    whole = open_tokens(tmp_path / "out", "train").reshape(40, LENGTH + 1)
    assert (whole != BOS).all()
    rows = np.concatenate([r for r, _ in zip(batches(tmp_path / "out", "train", 8, LENGTH, 0, 0, 1), range(5), strict=False)])  # fmt: skip
    assert sorted(map(tuple, rows)) == sorted(map(tuple, whole)), "an epoch is each window once"


@pytest.mark.parametrize(
    ("damage", "message"),
    [({"length": 0, "bos_id": 256}, "length"), ({"width": 3}, "width"), ([11, 256], "windows")],
)
def test_meta_that_says_no_such_windows(damage, message, tmp_path, table):
    task = bigram_backcopy(table, "t")
    prepare_task(task, {}, tmp_path / "out", length=4, windows=3, val_windows=1)
    path = tmp_path / "out" / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"windows": damage}))
    with pytest.raises(InputError, match=f"not written by train.prepare.*{message}"):
        open_tokens(tmp_path / "out", "train")


def test_what_makes_no_task(table, tmp_path):
    for triggers in ("", "z", "é", TEXT):
        with pytest.raises(InputError, match="trigger"):
            bigram_backcopy(table, triggers)
    for idle in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="idle"):
            sparse_copy(table, idle)
    with pytest.raises(InputError, match="0xC3"):
        sparse_copy(count_bigrams(["né e"]), 0.5)
    for blocks in ([], [""], ["a"]):
        with pytest.raises(InputError, match="fewer than two characters"):
            count_bigrams(blocks)
    task = bigram_backcopy(table, "t")
    for wrong in ({"length": 1}, {"windows": 0}, {"val_windows": 0}, {"seed": -1}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            prepare_task(task, {}, tmp_path / "x", **{"length": 4, "windows": 2, "val_windows": 1} | wrong)  # fmt: skip
    assert not any(tmp_path.iterdir())
