"""The kinds of cases: what is damaged, by which edits, and which command then meets it."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from random import Random

from tests.adversary import arguments
from tests.adversary.arguments import SMALL
from tests.adversary.edits import UNPACK, Edit, named
from tests.adversary.nasty import (
    INTEGERS,
    TEXTS,
    bytes_edit,
    file_edit,
    json_edit,
    zip_edit,
)

Draw = Callable[[Random, Path], list[Edit]]
Command = list[str]


@dataclass(frozen=True)
class Case:
    """One copy of an original, damaged by `edits`, met by `command`; `allowed` are the statuses besides 0 and 2."""

    kind: str
    seed: int | None
    original: str
    edits: list[Edit]
    command: Command
    same_values: tuple[str, ...] = ()
    """Commands, as printed, whose values are right; empty: any values are."""
    allowed: tuple[int, ...] = ()
    status: int | None = None
    """The only right one, where that is known."""
    reason: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.seed}" if self.seed is not None else f"corpus:{self.reason}"


@dataclass(frozen=True)
class Kind:
    """How cases of a kind are drawn. Each of `commands` is as likely as the times it stands there."""

    original: str
    draw: Draw
    commands: tuple[str, ...] = ("load",)
    share: int = 4  # of all cases, in relation to the other kinds
    checked: str = ""  # pattern of files whose damage may not change a value in silence
    right: tuple[
        str, ...
    ] = ()  # commands whose undamaged values are right; default: the same command
    allowed: tuple[int, ...] = ()
    more_edits: float = 0.15  # how often a case has a second edit


def _bytes_of(*names: str) -> Draw:
    return lambda rng, root: [file_edit(rng, root, rng.choice(names))]


def _json_of(name: str, raw: float = 0.15) -> Draw:
    """Mostly values of a JSON file, sometimes its bytes."""

    def draw(rng: Random, root: Path) -> list[Edit]:
        if rng.random() < raw:
            return [file_edit(rng, root, name)]
        return [json_edit(rng, "json", name, json.loads((root / name).read_text()))]

    return draw


def _header(rng: Random, root: Path) -> list[Edit]:
    name = "model/model.safetensors"
    data = (root / name).read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    return [json_edit(rng, "header", name, json.loads(data[8 : 8 + length]))]


def _shards(rng: Random, root: Path) -> list[Edit]:
    """The files that an index names: missing, exchanged, another kind of thing, one tensor in two of them."""
    index = "model/model.safetensors.index.json"
    files = sorted(p.name for p in (root / "model").glob("*.safetensors"))
    first = f"model/{files[0]}"
    return [rng.choice([["remove", first], ["swap", first, files[1]], ["folder", first], ["link", first, files[1]], ["link", first, "nowhere"], ["link", first, files[0]], ["write", first, ""], ["remove", index], ["folder", index], ["write", f"model/{rng.choice(['model', 'x'])}.safetensors", ""], file_edit(rng, root, first)])]  # fmt: skip


def _files_below(folder: str) -> Draw:
    """Bytes of a file below a folder, the file itself, or something that does not belong there."""

    def draw(rng: Random, root: Path) -> list[Edit]:
        files = sorted(named(root, p) for p in (root / folder).rglob("*") if p.is_file())
        file = rng.choice(files)
        parent = str(Path(file).parent)
        match rng.choice("bytes bytes bytes bytes bytes json remove write folder link add drop".split()):  # fmt: skip
            case "bytes":
                return [file_edit_at(rng, root, file)]
            case "json" if Path(file).name in ("_METADATA", "_sharding", "_CHECKPOINT_METADATA", "metadata", "metrics"):  # fmt: skip
                return [json_edit(rng, "json", file, json.loads((root / file).read_text()))]
            case "remove":
                return [["remove", file]]
            case "drop" if parent != folder:
                return [["remove", parent]]
            case "folder":
                return [["remove", file], ["folder", file]]
            case "link":
                return [["link", file, rng.choice(["nowhere", Path(file).name, "../metadata", "/dev/null"])]]  # fmt: skip
            case "add":
                return [rng.choice([["write", f"{parent}/stray", "x"], ["folder", f"{parent}/stray"], ["folder", f"{folder}/999"], ["write", f"{folder}/1000", ""], ["folder", f"{folder}/{2**70}"]])]  # fmt: skip
        return [["write", file, rng.choice(["", "x", "{}", "[]", [["[", 100_000]]])]]

    return draw


def file_edit_at(rng: Random, root: Path, name: str) -> Edit:
    """`file_edit` for a name that stands for a random one."""
    from tests.adversary.edits import located

    return bytes_edit(rng, "splice", name, located(root, name).read_bytes())


def _header_integers(rng: Random, root: Path) -> list[Edit]:
    """One of the integers at the head of a llama2.c model, or any of its bytes."""
    name = rng.choice(("v0/model.bin", "v1/model.bin"))
    if rng.random() < 0.4:
        return [file_edit(rng, root, name)]
    at = 4 * rng.randrange(7) + (8 if name.startswith("v1") else 0) * (rng.random() < 0.9)
    return [["splice", name, at, 4, struct.pack("<I", rng.choice(INTEGERS) % 2**32).hex()]]


def _gguf(rng: Random, root: Path) -> list[Edit]:
    """Its header: counts, lengths, types, names, tokens; sometimes what lies behind it."""
    name = "model.gguf"
    data = (root / name).read_bytes()
    head = data.rindex(b"output_norm.weight") + 400
    return [bytes_edit(rng, "splice", name, data[:head] if rng.random() < 0.85 else data)]


def _vocabulary(rng: Random, root: Path) -> list[Edit]:
    name = rng.choice(("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"))  # fmt: skip
    if name == "merges.txt":
        return [file_edit(rng, root, f"model/{name}")]
    return _json_of(f"model/{name}")(rng, root)


def _line(rng: Random, root: Path) -> list[Edit]:
    """A line of .jsonl: its values, or the bytes of its file."""
    name = rng.choice(("b.jsonl", "c.jsonl.gz", "d.jsonl.xz"))
    if rng.random() < 0.5:
        return [file_edit(rng, root, rng.choice((name, "a.txt", "e.md.gz")))]
    unpack, _ = UNPACK.get(Path(name).suffix, (bytes, bytes))
    lines = unpack((root / name).read_bytes()).splitlines()
    number = rng.randrange(len(lines))
    return [json_edit(rng, "line", name, json.loads(lines[number]), number)]


def _metrics(rng: Random, root: Path) -> list[Edit]:
    name = "run/metrics.jsonl"
    lines = (root / name).read_bytes().splitlines()
    if rng.random() < 0.5:
        return [file_edit(rng, root, name)]
    number = rng.randrange(len(lines))
    return [json_edit(rng, "line", name, json.loads(lines[number]), number)]


def _text(rng: Random, root: Path) -> list[Edit]:
    if rng.random() < 0.3:
        return [["write", "text.txt", rng.choice([[[text, 2000]] for text in TEXTS])]]
    return [file_edit(rng, root, "text.txt")]


def _either(*draws: Draw) -> Draw:
    return lambda rng, root: rng.choice(draws)(rng, root)


LOADS = lambda path: (f"load {path}",) * 5 + (f"collect {path}",) * 2 + (f"convert --src {path} --out new",)  # fmt: skip # noqa: E731
PREPARE = "train.prepare --source a.txt b.jsonl c.jsonl.gz d.jsonl.xz e.md.gz --out new --tokenizer"
RESUME = "train --config tiny.py --workdir run"
RUN_VALUES = ("load run/checkpoints/2", "load run/checkpoints/4")

KINDS: dict[str, Kind] = {
    "config": Kind("hf", _json_of("model/config.json"), (*LOADS("model") * 4, f"analyze.lifecycle --ckpt model {SMALL} --out new"), 12),
    "weights": Kind("hf", _bytes_of("model/model.safetensors"), (*LOADS("model") * 4, f"analyze.consistency --ckpt model {SMALL} --out new"), 6),
    "header": Kind("hf", _header, LOADS("model"), 6),
    "index": Kind("sharded", _json_of("model/model.safetensors.index.json"), LOADS("model"), 6),
    "shards": Kind("sharded", _shards, LOADS("model"), 3),
    "tokenizer": Kind("hf", _json_of("model/tokenizer.json"), (*LOADS("model") * 2, f"analyze.existence --ckpt model {SMALL} --out new", f"{PREPARE} model"), 6),
    "vocabulary": Kind("vocabulary", _vocabulary, (*LOADS("model"), f"analyze.existence --ckpt model {SMALL} --out new"), 4),
    "sentencepiece": Kind("pieces", _either(_bytes_of("model/tokenizer.model"), _json_of("model/tokenizer_config.json")), LOADS("model"), 3),
    "gguf": Kind("gguf", _gguf, LOADS("model.gguf"), 8),
    "nanogpt": Kind("nanogpt", lambda rng, root: [zip_edit(rng, root, "ckpt.pt")], LOADS("ckpt.pt"), 14),
    "llama2c": Kind("llama2c", _header_integers, ("load v0/model.bin", "load v1/model.bin", "collect v0/model.bin", "convert --src v1/model.bin --out new"), 5),
    "pieces": Kind("llama2c", _bytes_of("v0/tokenizer.bin", "v1/tokenizer.bin"), ("load v0/model.bin", "load v1/model.bin", "convert --src v1/model.bin --out new"), 4),
    "model-json": Kind("converted", _json_of("model/model.json"), (*LOADS("model")[:-1], "convert --src model --out new --format hf"), 8),
    "params": Kind("converted", _files_below("model/params"), ("load model",) * 4 + ("collect model", "convert --src model --out new --format hf"), 12, "model/params/*", more_edits=0),
    "checkpoints": Kind("run", _files_below("run/checkpoints"), ("load run",) * 3 + ("collect run", "load run/checkpoints/2", "convert --src run --out new"), 6, "run/checkpoints/*", RUN_VALUES, more_edits=0),
    "resume": Kind("run", _files_below("run/checkpoints"), (RESUME,), 6, "run/checkpoints/*", allowed=(1,), more_edits=0),
    "train-json": Kind("run", _either(_json_of("run/train.json"), _json_of("run/model.json")), (RESUME, RESUME, "load run"), 4),
    "metrics": Kind("run", _metrics, (RESUME, f"analyze.variants --ckpt run {SMALL} --out new"), 3, "run/metrics.jsonl"),
    "data": Kind("run", _either(_json_of("data/meta.json"), _bytes_of("data/train.bin", "data/val.bin")), (f"{RESUME}2 --steps 2",), 5, allowed=(1,)),
    "other-data": Kind("run", _bytes_of("data/train.bin", "data/val.bin"), (RESUME,), 2, "data/*", more_edits=0),
    "prepared": Kind("run", _json_of("data/meta.json"), ("analyze.consistency --ckpt run --data data --num-seqs 1 --out new",), 2),
    "init": Kind("run", _files_below("run/checkpoints"), ("train --config tiny.py --workdir new --init run --steps 2",), 2, allowed=(1,)),
    "reports": Kind("reports", _json_of("first/lifecycle.json"), ("analyze.compare --runs first second --out new",), 3),
    "sweeps": Kind("reports", _json_of("stored/variants_sweep.json"), ("analyze.variants --read stored/variants_sweep.json --out new",), 3),
    "sources": Kind("sources", _line, (f"{PREPARE} bytes", f"{PREPARE} ."), 10),
    "text": Kind("everything", _text, (f"analyze.consistency --ckpt model --text text.txt {SMALL} --out new",), 3),
    "classes": Kind("everything", _json_of("classes.json"), (f"analyze.positions --ckpt model --token-classes classes.json {SMALL} --out new",), 2),
    "arguments": Kind("everything", lambda rng, root: [], tuple(arguments.BASE), 12),
}  # fmt: skip


def draw(kind: str, seed: int, originals: Path) -> Case:
    """The case that (kind, seed) names."""
    how, rng = KINDS[kind], Random(f"{kind}:{seed}")
    root = originals / how.original
    command = rng.choice(how.commands).split(" ")
    edits = how.draw(rng, root)
    if kind == "arguments":
        command = arguments.mutated(rng, command)
    if rng.random() < how.more_edits:
        edits += how.draw(rng, root)
    right: tuple[str, ...] = ()
    if how.checked and all(fnmatch(edit[1], how.checked) for edit in edits):
        right = how.right or (" ".join(command),)
    return Case(kind, seed, how.original, edits, command, right, how.allowed)


def schedule(count: int, seed: int, only: list[str] | None = None) -> list[tuple[str, int]]:
    """(kind, seed) of `count` cases, every kind by its share, in an order that mixes them."""
    names = [name for name in KINDS if not only or name in only]
    total = sum(KINDS[name].share for name in names)
    chosen = [(name, seed * 1_000_000 + i) for name in names for i in range(math.ceil(count * KINDS[name].share / total))]  # fmt: skip
    Random(seed).shuffle(chosen)
    return chosen
