"""Text to token files: every document comes back, whatever it was packed in and however many processes worked on it."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
import lzma
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sysout_jax.data import documents
from sysout_jax.data import prepare as preparing
from sysout_jax.data import tokenizers as ours
from sysout_jax.data.documents import Source, pieces
from sysout_jax.data.encoding import encode_in_order, encoder_of
from sysout_jax.data.prepare import prepare
from sysout_jax.errors import InputError

END = "<|endoftext|>"
WORDS = ["the", "year", "Bäume", "naïve", "don't", "1923", "語", "🙂", "x_1", "—", "(b)", "e.g."]
GAPS = [" ", " ", " ", "  ", "\n", "\n\n", "\r\n", "\t", ", ", "...\n", END]


def random_text(rng: np.random.Generator, words: int) -> str:
    return "".join(rng.choice(WORDS) + rng.choice(GAPS) for _ in range(words))


def random_documents(rng: np.random.Generator, count: int, longest: int = 200) -> list[str]:
    return [random_text(rng, int(rng.integers(1, longest))) for _ in range(count)]


def write_lines(path: Path, texts: list[str], field: str = "text") -> Path:
    lines = [json.dumps({"n": i, field: text}) + "\n" for i, text in enumerate(texts)]
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def bpe_file(tmp_path_factory) -> Path:
    """A byte-level BPE of GPT-2's kind with 400 entries."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(random_documents(np.random.default_rng(7), 30), trainer)
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    backend.save(str(path))
    return path


def read_documents(directory: Path, split: str) -> list[str]:
    """As nanoGPT reads: the file is ids and nothing else. Independent of the library but for the names in meta.json."""
    meta = json.loads((directory / "meta.json").read_text())
    ids = np.fromfile(directory / f"{split}.bin", dtype=meta["dtype"])
    assert len(ids) == meta["splits"][split]["tokens"]
    backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert ids[-1] == meta["eos_id"] == backend.token_to_id(END)
    ends = np.flatnonzero(ids == meta["eos_id"])
    assert len(ends) == meta["splits"][split]["documents"]
    cuts = itertools.pairwise([-1, *ends])
    return [backend.decode(ids[a + 1 : b], skip_special_tokens=False) for a, b in cuts]


def same_files(one: Path, other: Path) -> bool:
    return all((one / f).read_bytes() == (other / f).read_bytes() for f in ("train.bin", "val.bin"))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_every_document_comes_back_whole_and_in_order(kind, seed, bpe_file, tmp_path):
    """Spelled-out special tokens included: they stay letters, so that no text can end its document."""
    texts = random_documents(np.random.default_rng(), 40)
    source = Source(write_lines(tmp_path / "a.jsonl", texts))
    name = "bytes" if kind == "bytes" else str(bpe_file)
    prepare([source], name, tmp_path / "out", val_fraction=0.3, seed=seed)
    train, val = (read_documents(tmp_path / "out", split) for split in ("train", "val"))
    assert sorted(train + val) == sorted(texts)
    for part in (train, val):
        rest = iter(texts)
        assert all(text in rest for text in part), "documents keep their order"


@pytest.mark.parametrize("kind", ["gpt2", "llama2"])
def test_ids_are_those_of_the_whole_documents(kind, shared_data, tmp_path):
    """Longer than a piece, so that GPT-2's are encoded in parts and LLaMA's, whose parts would not join, are not."""
    with lzma.open(shared_data / "text" / "books.jsonl.xz") as books:
        texts = [
            json.loads(line)["text"][:900_000] for line, _ in zip(books, range(3), strict=False)
        ]
    assert max(map(len, texts)) > 1.5 * preparing.TASK_SIZE
    file = shared_data / f"{kind}-tokenizer" / "tokenizer.json"
    source = Source(write_lines(tmp_path / "books.jsonl", texts))
    meta = prepare([source], str(file.parent), tmp_path / "out", val_fraction=0)
    backend = Tokenizer.from_file(str(file))
    end = backend.token_to_id(END if kind == "gpt2" else "</s>")
    expected = [[*backend.encode(text, add_special_tokens=False).ids, end] for text in texts]
    written = np.fromfile(tmp_path / "out" / "train.bin", "<u2")
    np.testing.assert_array_equal(written, np.concatenate(expected))
    assert (meta.eos_id, meta.dtype, meta.vocab_size) == (end, "uint16", backend.get_vocab_size())
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("size", [1, 7, 300])
def test_pieces_join_and_their_ids_too(size, bpe_file, monkeypatch):
    rng = np.random.default_rng()
    text = random_text(rng, 3000)
    cuts = np.sort(rng.integers(0, len(text), 5))
    blocks = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
    parts = list(pieces(blocks, size))
    assert "".join(parts) == text and len(parts) > 5
    assert all(len(part) > size for part in parts[:-1])
    backend = Tokenizer.from_file(str(bpe_file))
    backend.encode_special_tokens = True
    assert [i for part in parts for i in backend.encode(part).ids] == backend.encode(text).ids
    # a text without the end of a word is cut where a piece becomes too long
    monkeypatch.setattr(documents, "LONGEST_PIECE", 1000)
    assert [len(part) for part in pieces(["—" * 700, "—" * 1800], size)] == [1000, 1000, 500]


def test_packing_format_and_number_of_workers_change_nothing(bpe_file, tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "TASK_SIZE", 3000)
    texts = random_documents(np.random.default_rng(), 30)
    plain = write_lines(tmp_path / "a.jsonl", texts)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(plain.read_bytes()))
    renamed = write_lines(tmp_path / "b.jsonl", texts, "content")
    files = []
    for i, text in enumerate(texts):
        files.append(tmp_path / f"{i}.{'txt' if i % 2 else 'md'}")
        files[-1].write_bytes(text.encode())
    runs = {
        "plain": ([Source(plain)], 1),
        "two workers": ([Source(plain)], 2),
        "gz": ([Source(tmp_path / "a.jsonl.gz")], 1),
        "xz": ([Source(tmp_path / "a.jsonl.xz")], 1),
        "other field": ([Source(renamed, "content")], 1),
        "a file each": ([Source(file) for file in files], 2),
    }
    for name, (sources, workers) in runs.items():
        counted: list[int] = []
        prepare(
            sources,
            str(bpe_file),
            tmp_path / name,
            val_fraction=0.3,
            workers=workers,
            on_bytes=counted.append,
        )
        assert same_files(tmp_path / "plain", tmp_path / name), name
        assert sum(counted) == sum(source.size for source in sources) and min(counted) >= 0


def test_a_worker_needs_no_file_to_begin(bpe_file, tmp_path, monkeypatch):
    """One that starts when an interrupt has cleared the output has its tokenizer all the same."""
    given = []

    def in_order(tasks, encoder, arguments, workers):
        given.append(arguments)
        return encode_in_order(tasks, encoder, arguments, 1)

    monkeypatch.setattr(preparing, "encode_in_order", in_order)
    file, text = tmp_path / "bpe.json", random_text(np.random.default_rng(), 50)
    shutil.copy(bpe_file, file)
    source = Source(write_lines(tmp_path / "a.jsonl", [text]))
    prepare([source], str(file), tmp_path / "out", val_fraction=0)
    written = np.fromfile(tmp_path / "out/train.bin", "<u2")
    file.unlink()
    shutil.rmtree(tmp_path / "out")
    (arguments,) = given
    np.testing.assert_array_equal(encoder_of(*arguments).encode(text), written[:-1])


def test_split_is_of_each_text_alone(tmp_path):
    """A text keeps its side whatever stands beside it, equal texts share a side, the share is about what was asked for."""
    rng = np.random.default_rng()
    texts = random_documents(rng, 600, longest=8)
    texts = list(dict.fromkeys(texts))
    first = Source(write_lines(tmp_path / "a.jsonl", texts))
    prepare([first], "bytes", tmp_path / "a", val_fraction=0.25)
    val = set(read_documents(tmp_path / "a", "val"))
    sigma = np.sqrt(len(texts) * 0.25 * 0.75)
    assert abs(len(val) - 0.25 * len(texts)) < 6 * sigma

    shuffled = [texts[i] for i in rng.permutation(len(texts))[:200]] * 2
    prepare(
        [Source(write_lines(tmp_path / "b.jsonl", shuffled))],
        "bytes",
        tmp_path / "b",
        val_fraction=0.25,
    )
    assert read_documents(tmp_path / "b", "val") == [text for text in shuffled if text in val]

    prepare([Source(first.path)], "bytes", tmp_path / "c", val_fraction=0.25, seed=1)
    assert set(read_documents(tmp_path / "c", "val")) != val
    prepare([Source(first.path)], "bytes", tmp_path / "d", val_fraction=0.1)
    assert set(read_documents(tmp_path / "d", "val")) < val, "a smaller share is part of a larger"


@pytest.mark.parametrize("val_fraction", [0.01, 0.2, 0.99])
def test_one_document_is_cut_at_its_end(val_fraction, tmp_path):
    text = random_text(np.random.default_rng(), 500)
    (tmp_path / "a.txt").write_bytes(text.encode())
    meta = prepare([Source(tmp_path / "a.txt")], "bytes", tmp_path / "o", val_fraction=val_fraction)
    train, val = (np.fromfile(tmp_path / "o" / f"{s}.bin", "<u2") for s in ("train", "val"))
    assert [*train, *val] == [*text.encode(), 256]
    assert len(val) == round(val_fraction * (len(text.encode()) + 1))
    assert meta.split_rule["rule"] == "tail"
    assert meta.splits["train"] == {"tokens": len(train), "documents": 1}
    assert meta.splits["val"] == {"tokens": len(val), "documents": 0}


def test_no_validation(tmp_path):
    (tmp_path / "a.txt").write_text("one text")
    meta = prepare([Source(tmp_path / "a.txt")], "bytes", tmp_path / "o", val_fraction=0)
    assert meta.splits["val"]["tokens"] == 0 and meta.splits["train"]["tokens"] == 9


def test_separators(tmp_path):
    """The tokenizer's own, another by name, or none where it has none."""
    source = write_lines(tmp_path / "a.jsonl", ["ab", "", "c"])
    backend = Tokenizer(models.WordLevel({"ab": 0, "c": 1, "?": 2}, unk_token="?"))
    backend.save(str(tmp_path / "none.json"))
    backend.add_special_tokens(["<eos>", "[SEP]"])
    backend.save(str(tmp_path / "two.json"))

    def ids(name: str, eos: str | None = None) -> list[int]:
        out = tmp_path / f"{name}-{eos}"
        meta = prepare([Source(source)], str(tmp_path / name), out, eos=eos, val_fraction=0)
        assert meta.eos_token == (None if meta.eos_id is None else eos or "<eos>")
        assert meta.sources[0]["documents"] == 2 and meta.sources[0]["empty"] == 1
        return np.fromfile(out / "train.bin", "<u2").tolist()

    assert ids("none.json") == [0, 1]
    assert ids("two.json") == [0, 3, 1, 3]
    assert ids("two.json", "[SEP]") == [0, 4, 1, 4]
    with pytest.raises(InputError, match="'</s>' is no token of the vocabulary"):
        ids("none.json", "</s>")


def test_large_vocabularies_take_four_bytes(tmp_path):
    """65,536 ids fit two bytes, one more does not; an id counts even where lower ones are missing."""
    source = write_lines(tmp_path / "a.jsonl", ["low high"] * 2)
    for highest, dtype in ((65_535, "uint16"), (65_536, "uint32")):
        backend = Tokenizer(models.WordLevel({"?": 0, "low": 5, "high": highest}, unk_token="?"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        backend.save(str(tmp_path / f"{dtype}.json"))
        name, out = str(tmp_path / f"{dtype}.json"), tmp_path / dtype
        meta = prepare([Source(source)], name, out, val_fraction=0)
        assert (meta.dtype, meta.vocab_size) == (dtype, highest + 1)
        assert np.fromfile(out / "train.bin", dtype).tolist() == [5, highest] * 2


def test_what_a_tokenizer_file_asks_for_is_not_done_to_documents(bpe_file, tmp_path):
    """Truncation and padding were meant for the model that the file belongs to."""
    backend = Tokenizer.from_file(str(bpe_file))
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    backend.save(str(tmp_path / "tokenizer.json"))
    source = write_lines(tmp_path / "a.jsonl", ["a text of more than four tokens"])
    prepare([Source(source)], str(tmp_path), tmp_path / "out", val_fraction=0)
    prepare([Source(source)], str(bpe_file), tmp_path / "plain", val_fraction=0)
    assert (tmp_path / "out/train.bin").read_bytes() == (tmp_path / "plain/train.bin").read_bytes()


def test_byte_tokenizer_is_one_for_the_existing_code(tmp_path):
    tokenizer = ours.byte_tokenizer()
    text = random_text(np.random.default_rng(), 300).replace(END, "")
    assert tokenizer.encode(text) == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text
    ours.copy("bytes", tmp_path / "tokenizer.json")
    loaded = ours.Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert loaded.encode(text + END) == [*text.encode(), 256] and loaded.vocab_size == 257
    assert [loaded.token(i) for i in (10, 32, 65, 200)] == ["\\n", "_", "A", "<0xC8>"]
    assert tokenizers.Tokenizer.from_str(loaded.backend.to_str()).id_to_token(256) == END


def test_meta_records_the_run(tmp_path):
    source = Source(write_lines(tmp_path / "a.jsonl", ["one", "two"]))
    meta = prepare([source], "bytes", tmp_path / "out", val_fraction=0.5, seed=3)
    assert json.loads((tmp_path / "out" / "meta.json").read_text()) == dataclasses.asdict(meta)
    assert meta.sources == [
        {"path": str(source.path), "bytes": source.size, "documents": 2, "empty": 0}
    ]
    assert meta.split_rule["val_fraction"] == 0.5 and meta.split_rule["seed"] == 3
    assert {"python", "sysout_jax", "tokenizers", "numpy"} <= set(meta.versions)
