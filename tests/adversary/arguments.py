"""Command lines with nasty values: every flag of every command, found in their dataclasses."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from random import Random
from typing import Any

SMALL = "--num-seqs 1 --seq-len 12"

#: Commands that work, to be spoiled.
BASE: list[str] = [
    f"analyze.lifecycle --ckpt model --text text.txt {SMALL} --out new",
    "analyze.lifecycle --ckpt model --prompt word --out new",
    f"analyze.positions --ckpt model --text text.txt {SMALL} --out new",
    f"analyze.consistency --ckpt model --text text.txt {SMALL} --out new",
    f"analyze.existence --ckpt model --text text.txt {SMALL} --out new",
    f"analyze.length --ckpt model --text text.txt {SMALL} --out new",
    f"analyze.variants --ckpt run --compare run --text text.txt {SMALL} --out new",
    f"analyze.intervene --ckpt model --text text.txt {SMALL} --seeds 1 --what zero --where birth --out new",
    f"analyze.compression --ckpt model --text text.txt {SMALL} --seeds 1 --methods w8_tensor --attribute w8_tensor --out new",
    f"analyze.absorb --ckpt model --text text.txt {SMALL} --prefix 3 --out new",
    f"analyze.absorb --ckpt model --text text.txt {SMALL} --prefix 3 --out new --save saved",
    f"analyze.all --ckpt model --text text.txt {SMALL} --skip compression intervene length --out new",
    f"analyze.census --ckpt model --text text.txt {SMALL} --count 1 --out new",
    "analyze.compare --runs first second --out new",
    "analyze.consistency --ckpt run --data data --num-seqs 1 --out new",
    f"analyze.variants --ckpt run --steps all --text text.txt {SMALL} --out new",
    f"analyze.variants --ckpt sweep --over seed --text text.txt {SMALL} --out new",
    "analyze.variants --read stored/variants_sweep.json --out new",
    "convert --src model --out new",
    "convert --src model --out new --format hf",
    "train.prepare --source a.txt b.jsonl --tokenizer bytes --out new",
    "train.prepare --source c.jsonl.gz d.jsonl.xz --tokenizer tokenizer.json --out new --val-fraction 0.2",
    "train.prepare --task bigram-backcopy --source text.txt --windows 40 --bos-every 8 --out new",
    "train.sweep grid.py --workdir new",
    "train --config tiny.py --workdir new --steps 2",
    "train --config tiny.py --workdir run --steps 4",
    "train --config tiny.py --workdir new --init run --steps 2",
]
if importlib.util.find_spec("libtpu"):  # nothing can be planned without
    BASE += [
        "train.plan --config tiny.py --batch-size 4 --topology v5e:2x2",
        "train.plan --config tiny.py --batch-size 4 --topology v5e:2x2 --analyze",
    ]

NUMBERS = ["0", "-1", "1", "2", "3", "nan", "inf", "-inf", "1e308", "1e300", "-1e308", "1e-320", "1e400", "0.5", "1.5", "-0.0", "2147483647", "2147483648", "9223372036854775808", "18446744073709551616", str(10**30), str(10**70), "1" * 5000, "0x10", "1_0", "١", "", " "]  # fmt: skip
WORDS = ["", " ", "x", "None", "True", "false", "--", "-", "-x", "a\nb", "\x1b[31mred", "\udcff", "\udc80abc", "\u202e", "ä", "🙂", "%s", "{}", "[x]", "*", "\\", "'", "w" * 3000, "a" * 300_000]  # fmt: skip
PATHS = ["model", "run", "text.txt", "nowhere", "nowhere/deep/er", "text.txt/below", ".", "", "/dev/null", "/dev/null/x", "/dev/full", "/proc/self/x", "[x]", "a\\b", "a b", "ä", "\udcff", "new\n", "x" * 300, "y/" * 2000 + "z", "model/config.json", "data", "a/b", "~nobody/x", "tiny.py", "classes.json"]  # fmt: skip
TOPOLOGIES = ["v5e:2x4", "v4:2x2x2", "v4:2x2", "v5e:2x2x2", "v5e:0x0", "v5e:3x5", "v5e:16x16", "v5e:99999x99999", f"v5p:{'2x' * 2000}2", "v5e:2x", "v5e:-2x2", "v5e:٢x٢", "v7:2x2", "v5e", "cpu:2x2"]  # fmt: skip

#: Flags that ask for work in proportion to their value: large ones are no mistakes and take for ever.
WORK = ("seeds", "longest", "windows", "count", "steps", "tokens", "accumulate", "eval_sequences", "monitor_sequences", "batch_size", "workers", "num_layers", "d_model", "d_ff", "num_heads", "vocab_size", "context_length", "head_dim", "num_kv_heads")  # fmt: skip
PATH_FLAGS = ("ckpt", "text", "out", "src", "source", "tokenizer", "config", "workdir", "compare", "calibration", "token_classes", "data", "save", "runs", "read", "init")  # fmt: skip
NOT_TO_WRITE = (
    "/dev/null",
    "/proc/self/x",
    "~nobody/x",
)  # places for --out would be outside the case's own


@functools.cache
def flags(command: str) -> dict[str, str]:
    """Every flag of a command and the type it is declared with."""
    from tests.adversary.actions import MODULES

    if command not in ("train", "train.plan"):
        return dict(_fields(importlib.import_module(MODULES[command]).Args))
    from sysout_jax.families.gpt2 import Gpt2Config
    from sysout_jax.training.config import TrainConfig

    settings = dict(_fields(TrainConfig)) | {f"model.{n}": t for n, t in _fields(Gpt2Config)}
    own = {"workdir": "Path"} if command == "train" else {"topology": "str", "analyze": "bool"}
    return settings | {"config": "Path"} | own


def _fields(cls: Any, prefix: str = ""):
    for field in dataclasses.fields(cls):
        nested = {"mesh": "MeshConfig", "optimizer": "OptimizerConfig"}.get(field.name)
        if nested == "MeshConfig":
            yield from ((f"{prefix}mesh.{axis}", "int") for axis in ("data", "fsdp", "tensor"))
        elif nested:
            from sysout_jax.training.config import OptimizerConfig

            yield from _fields(OptimizerConfig, "optimizer.")
        elif field.name != "model":
            yield f"{prefix}{field.name}", str(field.type)


def mutated(rng: Random, command: list[str]) -> list[str]:
    """The command with one to three things about its flags spoiled."""
    command = list(command)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        match rng.choice("set set set set set set set drop cut twice unknown near junk".split()):
            case "drop" if len(command) > 2:
                del command[rng.randrange(1, len(command))]
            case "cut" if len(command) > 2:
                del command[rng.randrange(1, len(command)) :]
            case "twice" if len(command) > 2:
                command += command[1 : rng.randrange(2, len(command) + 1)]
            case "unknown":
                command += ["--" + rng.choice(WORDS).replace("\0", ""), rng.choice(WORDS)]
            case "near":
                name = rng.choice(list(flags(command[0])))
                command += [f"--{name}"[: rng.randrange(3, len(name) + 2)], "1"]
            case "junk":
                command.insert(rng.randrange(1, len(command) + 1), rng.choice(WORDS + PATHS))
            case _:
                _set(rng, command)
    reads_models = command[0].startswith("analyze.") and command[0] != "analyze.compare"
    if reads_models and not {"--num-seqs", "--prompt", "--read"} & set(command):
        command += SMALL.split()  # cut away, it leaves a whole job, which is no mistake
    return command


def _set(rng: Random, command: list[str]) -> None:
    """Give a flag a nasty value, in place of the one it has or new, as `--flag value` or `--flag=value`."""
    name, kind = rng.choice(list(flags(command[0]).items()))
    value = _value(rng, name, kind)
    flag = "--" + (name if rng.random() < 0.05 else name.replace("_", "-"))
    if flag in command[:-1]:
        command[command.index(flag) + 1] = value
    elif rng.random() < 0.2:
        command.append(f"{flag}={value}")
    elif "bool" in kind and rng.random() < 0.7:
        command.append(flag if rng.random() < 0.5 else flag.replace("--", "--no-"))
    else:
        command += [flag, value, *([_value(rng, name, kind)] if "tuple" in kind else [])]


def _value(rng: Random, name: str, kind: str) -> str:
    last = name.split(".")[-1]
    if last in PATH_FLAGS or "Path" in kind:
        paths = [
            p for p in PATHS if p not in NOT_TO_WRITE or last not in ("out", "workdir", "save")
        ]
        return rng.choice(paths)
    if last in WORK:
        return rng.choice([n for n in NUMBERS if n not in ("2147483647", "2147483648", "9223372036854775808", "18446744073709551616", str(10**30), str(10**70))] + WORDS)  # fmt: skip
    if last == "topology":
        return rng.choice(TOPOLOGIES + WORDS)
    if rng.random() < 0.1:
        return rng.choice(NUMBERS + WORDS + PATHS)
    return rng.choice(NUMBERS if "int" in kind or "float" in kind else WORDS + NUMBERS[:6])
