"""Undamaged things, small: models of every format, a training run and its data, texts. `python -m tests.adversary.originals DIR` writes them."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.adversary import actions
from tests.analyze.command import CONFIG, write_model

TEXT = "Summer is warm. Winter is cold.\nThe first sentence was short, and so is this one.\n" * 6
TINY = """from pathlib import Path
from sysout_jax.families.gpt2 import Gpt2Config
from sysout_jax.training.config import OptimizerConfig, TrainConfig

config = TrainConfig(
    model=Gpt2Config(num_layers=1, d_model=8, num_heads=2, d_ff=16, vocab_size=257, context_length=16, bias=False),
    data=Path("data"), steps=6, batch_size=2, seq_len=16, dtype="float32", loss_chunk=16,
    optimizer=OptimizerConfig(lr=1e-2, min_lr=1e-3, warmup_steps=1, decay_steps=6),
    eval_every=2, eval_sequences=2, log_every=1, save_every=2, keep=9, monitor_every=0,
)
"""
GRID = """
import dataclasses
from pathlib import Path
from sysout_jax.training.config import load_config
from sysout_jax.training.sweep import Sweep

sweep = Sweep({"seed": range(2)}, lambda seed: dataclasses.replace(load_config(Path("tiny.py")), seed=seed, steps=2))
"""
STEPS = 4  # of the run that lies there; its config wants 6


def build(root: Path) -> None:
    """Write all originals, each a directory below `root`."""
    hf = write_model(_folder(root / "hf") / "model")
    tensors = load_file(hf / "model.safetensors")
    _sharded(_folder(root / "sharded") / "model", hf, tensors)
    _nanogpt(_folder(root / "nanogpt"), hf)
    _llama2c(_folder(root / "llama2c"), tensors)
    _converted(_folder(root / "converted") / "model", hf)
    _gguf(_folder(root / "gguf"), hf)
    _vocabulary(_folder(root / "vocabulary") / "model", hf)
    _pieces(_folder(root / "pieces") / "model", hf)
    _sources(_folder(root / "sources"), hf)
    shutil.copytree(root / "sources", root / "hf", dirs_exist_ok=True, ignore=lambda *_: {"tokenizer.json"})  # fmt: skip
    _run(_folder(root / "run"))
    _reports(_folder(root / "reports"), hf, root / "run")
    everything = _folder(root / "everything")
    shutil.copytree(hf, everything / "model")
    for part in ("sources", "run", "reports"):
        shutil.copytree(root / part, everything, dirs_exist_ok=True)
    classes = {"strong delimiter": ["."], "weak semantic": ["the"]}
    (everything / "classes.json").write_text(json.dumps(classes))
    (everything / "text.txt").write_text(TEXT)


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def _sharded(model: Path, hf: Path, tensors: dict[str, np.ndarray]) -> None:
    model.mkdir()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}  # fmt: skip
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, model / file)
    weight_map = {name: file for file, held in parts.items() for name in held}
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}  # fmt: skip
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    for file in ("config.json", "tokenizer.json"):
        shutil.copy(hf / file, model / file)


def _nanogpt(directory: Path, hf: Path) -> None:
    from tests.convert.torch_writer import write_torch

    rng = np.random.default_rng(1)
    D, V, T = 8, 300, 32

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    state = {"transformer.wte.weight": normal(V, D), "transformer.wpe.weight": normal(T, D)}
    for h in ("transformer.h.0.", "transformer.h.1."):
        shapes = {"ln_1": (D,), "ln_2": (D,), "attn.c_attn": (3 * D, D), "attn.c_proj": (D, D), "mlp.c_fc": (4 * D, D), "mlp.c_proj": (D, 4 * D)}  # fmt: skip
        state |= {f"{h}{name}.weight": normal(*shape) for name, shape in shapes.items()}
    state["transformer.ln_f.weight"] = normal(D)
    args = {"n_layer": 2, "n_head": 2, "n_embd": D, "block_size": T, "bias": False, "vocab_size": V, "dropout": 0.0}  # fmt: skip
    root = {"model": state, "model_args": args, "iter_num": 5, "config": {"model_type": "gpt2_default"}}  # fmt: skip
    write_torch(directory / "ckpt.pt", root)
    shutil.copy(hf / "tokenizer.json", directory)


def _llama2c(directory: Path, tensors: dict[str, np.ndarray]) -> None:
    from tests.convert.test_llama2c import model_file

    config = CONFIG | {"head_dim": 8, "tie_word_embeddings": False}
    for version in (0, 1):
        folder = _folder(directory / f"v{version}")
        (folder / "model.bin").write_bytes(model_file(config, tensors, version))
        pieces = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{b:02X}>" for b in range(256)), *(chr(97 + i) for i in range(26)), *"ABCDE", "he", "in", "er", "an", " ", "th", ".", "is", "on", "at"]  # fmt: skip
        assert len(pieces) == CONFIG["vocab_size"]
        body = b"".join(struct.pack("<fI", -float(i), len(p.encode())) + p.encode() for i, p in enumerate(pieces))  # fmt: skip
        (folder / "tokenizer.bin").write_bytes(struct.pack("<I", 6) + body)


def _gguf(directory: Path, hf: Path) -> None:
    from tests.convert.gguf_writer import write_gguf

    spec = json.loads((hf / "tokenizer.json").read_text())["model"]
    tokens = sorted(spec["vocab"], key=spec["vocab"].get)
    tokens += ["<|endoftext|>", "th", *(f"[PAD{i}]" for i in range(258, CONFIG["vocab_size"]))]
    keys = {
        "add_tokenizer_model": "gpt2",
        "add_tokenizer_pre": "gpt-2",
        "add_token_list": tokens,
        "add_token_types": [1] * 256 + [3, 1] + [5] * (len(tokens) - 258),
        "add_token_merges": ["t h"],
        "add_bos_token_id": 256,
    }
    write_gguf(hf, directory / "model.gguf", keys=keys)


def _vocabulary(model: Path, hf: Path) -> None:
    """A tokenizer of many files, as GPT-2's was first published."""
    shutil.copytree(hf, model)
    spec = json.loads((hf / "tokenizer.json").read_text())["model"]
    (model / "tokenizer.json").unlink()
    (model / "vocab.json").write_text(json.dumps(spec["vocab"] | {"<|endoftext|>": 256, "th": 257}))
    (model / "merges.txt").write_text("#version: 0.2\nt h\n")
    fields = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|endoftext|>", "add_bos_token": True, "add_prefix_space": False, "added_tokens_decoder": {"258": {"content": "<x>", "special": True}}}  # fmt: skip
    (model / "tokenizer_config.json").write_text(json.dumps(fields))
    special = {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|endoftext|>"}}
    (model / "special_tokens_map.json").write_text(json.dumps(special))
    (model / "added_tokens.json").write_text(json.dumps({"<y>": 259}))


def _pieces(model: Path, hf: Path) -> None:
    """A tokenizer of sentencepiece."""
    from tests.convert.test_hf_tokenizer import sentencepiece

    shutil.copytree(hf, model)
    (model / "tokenizer.json").unlink()
    held = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    held += [(f"<0x{b:02X}>", 0.0, 6) for b in range(256)]
    held += [(piece, -float(i), 1) for i, piece in enumerate(["▁", *"etaoinshr", "th", "the", "▁the"])]  # fmt: skip
    (model / "tokenizer.model").write_bytes(sentencepiece(held))
    (model / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True}))


def _converted(model: Path, hf: Path) -> None:
    from sysout_jax import loading
    from sysout_jax.checkpoints import checkpoint

    opened = loading.open_checkpoint(hf)
    checkpoint.save(model, opened.config, opened.source, "float32", opened.tokenizer, opened.bos_id)


def _sources(directory: Path, hf: Path) -> None:
    rng = np.random.default_rng(2)
    rows = ["".join(rng.choice(list("etaoin shrdlu\n"), 60)) for _ in range(40)]
    lines = "".join(json.dumps({"text": row, "source": "none"}) + "\n" for row in rows).encode()
    (directory / "a.txt").write_text(TEXT)
    (directory / "b.jsonl").write_bytes(lines)
    (directory / "c.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    (directory / "d.jsonl.xz").write_bytes(lzma.compress(lines))
    (directory / "e.md.gz").write_bytes(gzip.compress(TEXT.encode(), mtime=0))
    shutil.copy(hf / "tokenizer.json", directory)


def _run(directory: Path) -> None:
    import dataclasses

    from sysout_jax.data.documents import Source
    from sysout_jax.data.prepare import prepare
    from sysout_jax.training.config import load_config
    from sysout_jax.training.loop import fit

    os.chdir(directory)  # the config names its data relative to there
    Path("tiny.py").write_text(TINY)
    Path("grid.py").write_text(GRID)
    Path("text.txt").write_text(TEXT * 2)
    prepare([Source(Path("text.txt"))], "bytes", Path("data"), val_fraction=0.3)
    Path("text.txt").unlink()
    fit(dataclasses.replace(load_config(Path("tiny.py")), steps=STEPS), Path("run"))


def _reports(directory: Path, hf: Path, run: Path) -> None:
    """Reports that other commands read, and the sweep behind one of them."""
    from tests.adversary.arguments import SMALL

    actions.make_fast()
    os.chdir(run)
    shutil.copy("grid.py", directory)
    _call(f"train.sweep grid.py --workdir {directory / 'sweep'}")
    os.chdir(directory)
    for name, flags in (("first", SMALL), ("second", "--prompt word")):
        _call(f"analyze.lifecycle --ckpt {hf} {flags} --out {name}")
    _call(f"analyze.variants --ckpt sweep --over seed {SMALL} --out stored")
    for figures in directory.glob("*/figures"):
        shutil.rmtree(figures)


def _call(command: str) -> None:
    from sysout_jax.commands import cli

    sys.argv = command.split(" ")
    try:
        cli.run(actions.main_of(sys.argv[0]))
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{command}: ends with status {end.code}") from None


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    jax.config.update("jax_disable_most_optimizations", True)  # as workers do: the same rounding
    build(Path(sys.argv[1]).absolute())
