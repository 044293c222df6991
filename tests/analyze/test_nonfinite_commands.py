"""Every command on models with NaN, inf or float16 overflow in them, and on the smallest inputs: no traceback, no warning, no "nan", one line that says so."""

from __future__ import annotations

import importlib
import itertools
import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sysout_jax as so
from sysout_jax.analyses.length.measure import SENTENCES
from tests.analyze.command import call, words
from tests.parameters import mostly_endurance

pytestmark = pytest.mark.slow

COMMANDS = (
    "lifecycle positions consistency existence length compression intervene variants census".split()
)
MORE = {
    "compression": ["--methods", "w8_tensor", "smooth_static", "prune_model", "--attribute", "w8_tensor", "--seeds", 1],
    "intervene": ["--seeds", 1],
    "census": ["--count", 1],
}  # fmt: skip
DOWN = "model.layers.1.mlp.down_proj.weight"


def at(name: str, index, value: float) -> Callable[[dict], None]:
    def damage(tensors: dict) -> None:
        tensors[name][index] = value

    return damage


def everywhere(tensors: dict) -> None:
    for tensor in tensors.values():
        tensor[...] = np.nan


def loud(tensors: dict) -> None:
    """An MLP whose output leaves float16 at some tokens."""
    for name in ("gate", "up", "down"):
        tensors[f"model.layers.1.mlp.{name}_proj.weight"] *= 300


#: What is wrong with a model, its dtype of compute, and what the one line holds.
DAMAGES = {
    "layer": (at(DOWN, (3, 5), np.nan), "float32", "NaN or inf: 1 stored weight in layer 2 mlp/down_proj"),
    "final norm": (at("model.norm.weight", 2, np.nan), "float32", "NaN or inf: 1 stored weight in the final norm"),
    "embedding": (at("model.embed_tokens.weight", (ord("r"), 4), np.nan), "float32", "NaN or inf: 1 stored weight in the embedding"),
    "everything": (everywhere, "float32", "NaN or inf: 13,520 stored weights in 21 tensors, first in the embedding"),
    "inf": (at(DOWN, (3, 5), np.inf), "float32", "NaN or inf: 1 stored weight in layer 2 mlp/down_proj"),
    "head": (at("lm_head.weight", (7, 1), np.nan), "float32", "NaN or inf: 1 stored weight in the head"),
    "cast": (at(DOWN, (3, 5), 1e6), "float16", "float16 overflow: 1 weight in layer 2 mlp/down_proj"),
    "activations": (loud, "float16", "float16 overflow: "),
}  # fmt: skip


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """One of the four sentences that are read at a length of their own each."""
    monkeypatch.setitem(so.by_length.__kwdefaults__, "sentences", SENTENCES[:1])


def run(monkeypatch, capsys, command: str, model: Path, out: Path, *flags) -> tuple[int, str, str]:
    """Status, printed text and stderr; fails where anything warns."""
    main = importlib.import_module(f"analyze.{command}").main
    given = ["--ckpt", model, "--out", out, *MORE.get(command, []), *flags]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        status = call(monkeypatch, main, *given)
    told = [str(w.message) for w in caught if not issubclass(w.category, DeprecationWarning)]
    assert not told
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def text_of(page: str) -> str:
    """What a reader sees of a report, and the descriptions of its pictures."""
    hidden = r'src="[^"]*"|<(style|script|pre)\b[^>]*>.*?</\1>'
    page = re.sub(hidden, "", page, flags=re.DOTALL)
    return words(page)


def check_text(text: str) -> None:
    """No number printed as Python prints what is none."""
    for said in ("NaN or inf", "not finite"):
        text = text.replace(said, "")
    found = re.findall(r".{0,40}(?:\bnan\b|\binf\b|∞).{0,40}", text)
    assert not found


def read_report(out: Path, command: str) -> tuple[dict, str]:
    fields = json.loads(
        (out / f"{command}.json").read_text(), parse_constant=lambda c: pytest.fail(f"{c} in JSON")
    )
    return fields, text_of((out / "report.html").read_text())


@pytest.mark.parametrize(
    ("command", "kind"),
    mostly_endurance(
        itertools.product(COMMANDS, DAMAGES),
        usual=[
            *(("consistency", kind) for kind in DAMAGES),
            *((command, "layer") for command in COMMANDS if command != "consistency"),
            *((command, "everything") for command in COMMANDS if command != "consistency"),
        ],
    ),
)
def test_damaged_models(command, kind, model, tmp_path, monkeypatch, capsys):
    damage, dtype, line = DAMAGES[kind]
    tensors = load_file(model / "model.safetensors")
    damage(tensors)
    save_file(tensors, model / "model.safetensors")
    (tmp_path / "text.txt").write_text("Summer is warm. " * 4)
    flags = ["--text", tmp_path / "text.txt", "--seq-len", 12, "--num-seqs", 2, "--dtype", dtype]
    out = tmp_path / "out"
    status, printed, err = run(monkeypatch, capsys, command, model, out, *flags)
    if command == "intervene" and kind in ("everything", "embedding"):
        assert status == 2 and err.count("\n") == 1
        assert "nothing to intervene on" in err and "0 times" not in err
        return
    assert status == 0 and err == ""
    fields, page = read_report(out, command)
    check_text(words(printed))
    check_text(page)
    assert words(printed).count(line) == 1 and line in page
    assert words(printed).count("Statistics leave them out.") == 1
    for found in fields.get("models", [fields]):
        nonfinite = found["nonfinite"]
        assert nonfinite["weights"] or sum(nonfinite["h"]["nan"]) + sum(nonfinite["h"]["inf"])
        assert nonfinite["dtype"] == dtype
    if kind == "everything":
        first = words(printed.splitlines()[0])
        assert "times the mean" not in first
        wanted = "n/a (NaN)" if command == "compression" else "nothing could be measured"
        assert wanted in words(printed) and wanted in page


@pytest.mark.parametrize("command", ["absorb", "all"])
@pytest.mark.parametrize("kind", ["layer", "everything"])
def test_commands_with_several_reports(command, kind, model, tmp_path, monkeypatch, capsys):
    """Two models beside each other, and an index: each says what is not finite."""
    damage, _, line = DAMAGES[kind]
    tensors = load_file(model / "model.safetensors")
    damage(tensors)
    save_file(tensors, model / "model.safetensors")
    (tmp_path / "text.txt").write_text("Summer is warm. " * 8)
    flags = ["--text", tmp_path / "text.txt", "--seq-len", 12, "--num-seqs", 2]
    more = {"absorb": ["--prefix", 3], "all": ["--skip", "compression", "intervene", "length", "existence"]}  # fmt: skip
    out = tmp_path / "out"
    status, printed, err = run(monkeypatch, capsys, command, model, out, *flags, *more[command])
    assert status == 0 and err == ""
    fields, page = read_report(out, command)
    check_text(words(printed))
    check_text(page)
    assert line in words(printed) and line in page
    for found in (fields["before"], fields["after"]) if command == "absorb" else (fields,):
        assert found["nonfinite"]["weights"]
    if kind == "everything":
        assert "nothing could be measured" in words(printed)
        assert " 0 times" not in words(printed)


@pytest.mark.parametrize("kind", ["layer", "everything"])
def test_checkpoints_beside_each_other(kind, model, tmp_path, monkeypatch, capsys):
    """Of which one is damaged: the others' numbers stand, and that one is named."""
    damage, _, line = DAMAGES[kind]
    for step in (1, 2):
        shutil.copytree(model, tmp_path / "folder" / f"step-{step}")
    file = tmp_path / "folder" / "step-2" / "model.safetensors"
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file)
    (tmp_path / "text.txt").write_text("Summer is warm. " * 4)
    flags = ["--text", tmp_path / "text.txt", "--seq-len", 12, "--num-seqs", 2, "--steps", "all"]
    folder, out = tmp_path / "folder", tmp_path / "out"
    status, printed, err = run(monkeypatch, capsys, "variants", folder, out, *flags)
    assert status == 0 and err == ""
    fields, page = read_report(out, "variants_steps")
    check_text(words(printed))
    check_text(page)
    assert words(printed).count(f"step-2: {line}") == 1 and f"step-2: {line}" in page
    assert [bool(each["nonfinite"]["weights"]) for each in fields["checkpoints"]] == [False, True]


@pytest.mark.parametrize(
    ("command", "tau"),
    mostly_endurance(
        itertools.product(COMMANDS, (1000, 2)),
        usual=[("existence", 1000), *((command, 2) for command in COMMANDS)],
    ),
)
def test_sound_models_of_one_layer_and_head_on_one_token(
    command, tau, model, tmp_path, monkeypatch, capsys
):
    tensors = load_file(model / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if ".layers.1." not in name}
    q, o = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "qo")
    kept[q], kept[o] = kept[q][:8].copy(), kept[o][:, :8].copy()
    save_file(kept, model / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    config |= {"num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 8}
    (model / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    flags = ["--prompt", "a", "--tau", tau]
    status, printed, err = run(monkeypatch, capsys, command, model, out, *flags)
    if command in ("compression", "census"):
        assert status == 2 and "one token predict nothing" in err and err.count("\n") == 1
        return
    assert status == 0 and err == ""
    fields, page = read_report(out, command)
    check_text(words(printed))
    check_text(page)
    assert "NaN" not in printed and "NaN" not in page
    for found in fields.get("models", [fields]):
        nonfinite = found["nonfinite"]
        assert nonfinite["weights"] == [] and nonfinite["h"]["first"] is None
        assert sum(nonfinite["h"]["nan"]) + sum(nonfinite["h"]["inf"]) == 0
