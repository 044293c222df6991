"""nanoGPT checkpoints open without torch and compute what the paper's model files compute."""

from __future__ import annotations

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import sysout_jax as so
from sysout_jax.checkpoints.formats.nanogpt import PAPER_MODELS
from tests.convert.command import assert_same_model, everything_below, refusal, run_here
from tests.convert.nanogpt_reference import ARGS, MODEL_TYPES, logits, random_weights
from tests.convert.torch_writer import Raw, Tensor, view, write_torch
from tests.parity_cases import FIXTURES

COMPILED = "_orig_mod."
SEED = itertools.count(int(np.random.SeedSequence().entropy) % 2**31)


def checkpoint(model_type: object, state: dict, **args) -> dict:
    """What train.py saves."""
    moments = {"exp_avg": np.zeros((3, 3), np.float32), "step": np.array(7.0, np.float32)}
    config = {"out_dir": "results", "learning_rate": 6e-4, "compile": True}
    return {
        "model": state,
        "optimizer": {"state": {0: moments}, "param_groups": [{"lr": 6e-4, "params": [0]}]},
        "model_args": ARGS | args,
        "iter_num": 50_000,
        "best_val_loss": np.array(2.9, np.float32),
        "config": config | ({"model_type": model_type} if model_type else {}),
    }


def write(path: Path, model_type: object, state: dict, **args) -> Path:
    return write_torch(path, checkpoint(model_type, state, **args))


def assert_computes(path: Path, model_type: str, weights: dict[str, np.ndarray]) -> None:
    tokens = np.random.default_rng(0).integers(0, ARGS["vocab_size"], (3, 13))
    got, _ = so.capture(so.load(path), tokens, ())
    want = np.stack([logits(model_type, weights, row) for row in tokens])
    # float32 against float64, logits of about 5
    np.testing.assert_allclose(got, want, rtol=0, atol=5e-5)


@pytest.mark.parametrize(("bias", "prefix"), [(False, ""), (True, COMPILED)])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_variant_computes_its_formula(tmp_path, model_type, bias, prefix):
    weights = random_weights(model_type, next(SEED), bias)
    state = {prefix + name: array for name, array in weights.items()}
    path = write(tmp_path / "ckpt.pt", model_type, state, bias=bias)
    assert_computes(path, model_type, weights)
    config = so.load(path).config
    assert config.attention == PAPER_MODELS[model_type] and config.tied_embeddings
    assert config.sigmoid_bias == ("length" if model_type == "gpt2_sigmoid" else "context")


def test_all_variants_differ():
    """Guards the references: a variant that is taken for another would show."""
    tokens = np.arange(9)
    weights = {}
    for model_type in MODEL_TYPES:
        weights |= random_weights(model_type, 3)
    # one vector per head in either shape, so that all variants can read one set of weights
    found = [logits(model_type, weights, tokens) for model_type in MODEL_TYPES]
    for a, b in itertools.combinations(found, 2):
        assert np.abs(a - b).max() > 1e-2


def test_the_same_weights_as_a_directory_are_the_same_model(tmp_path):
    directory = FIXTURES / "nanogpt"
    tensors = load_file(directory / "model.safetensors")
    lm = so.load(directory)
    args = {"n_head": 4, "n_embd": 16, "block_size": 64, "vocab_size": 32}
    path = write(tmp_path / "ckpt.pt", None, tensors, **args)
    assert_same_model(so.load(path), lm)

    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run_here(monkeypatch, "--src", path, "--out", out) == 0
    assert_same_model(so.load(out), lm)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_converted_equals_direct(tmp_path, monkeypatch, model_type):
    path = write(tmp_path / "ckpt.pt", model_type, random_weights(model_type, next(SEED)))
    assert run_here(monkeypatch, "--src", path, "--out", tmp_path / "out") == 0
    assert_same_model(so.load(path), so.load(tmp_path / "out"))


@pytest.mark.parametrize("shape", [(1, 4, 1, 4), (16,), (4, 4)])
def test_a_vector_per_head_may_lie_flat(tmp_path, shape):
    """The published (b) holds (768,), which cannot be added to its heads; side by side they are what was meant."""
    weights = random_weights("gpt2_vbias", next(SEED))
    state = {n: a.reshape(shape) if "v_bias" in n else a for n, a in weights.items()}
    assert_computes(write(tmp_path / "x.pt", "gpt2_vbias", state), "gpt2_vbias", weights)


@pytest.mark.parametrize("model_type", ["gpt2_default", "gpt2_vbias", "gpt2_ca_softmax"])
def test_variants_are_told_by_their_tensors_where_no_name_is_given(tmp_path, model_type):
    weights = random_weights(model_type, next(SEED))
    path = write(tmp_path / "x.pt", None, weights)
    assert so.load(path).config.attention == PAPER_MODELS[model_type]
    assert_computes(path, model_type, weights)


def test_two_variants_with_the_same_tensors_need_a_name(tmp_path):
    path = write(tmp_path / "x.pt", None, random_weights("gpt2_cabias", 0))
    assert "'gpt2_cabias' or 'gpt2_attn_bias'" in refusal(path)


def test_tied_and_untied_heads(tmp_path):
    weights = random_weights("gpt2_default", next(SEED))
    embedding = weights["transformer.wte.weight"]
    assert so.load(write(tmp_path / "a.pt", None, weights)).config.tied_embeddings
    copied = weights | {"lm_head.weight": embedding.copy()}
    assert so.load(write(tmp_path / "b.pt", None, copied)).config.tied_embeddings
    absent = {name: array for name, array in weights.items() if name != "lm_head.weight"}
    assert so.load(write(tmp_path / "c.pt", None, absent)).config.tied_embeddings

    # the same storage, and yet another matrix
    flipped = view(embedding)._replace(shape=(29, 16), strides=(1, 29))
    path = write(
        tmp_path / "d.pt",
        None,
        weights
        | {
            "transformer.wte.weight": Tensor(flipped.storage, (29, 16), (16, 1)),
            "lm_head.weight": flipped,
        },
    )
    lm = so.load(path)
    assert not lm.config.tied_embeddings
    head = embedding.reshape(16, 29).T
    np.testing.assert_array_equal(lm.params["lm_head"]["kernel"], head.T)
    assert_computes(path, "gpt2_default", weights | {"lm_head.weight": head})


def test_a_tokenizer_beside_the_file_is_used(tmp_path, shared_data):
    path = write(tmp_path / "x.pt", None, random_weights("gpt2_default", 0))
    assert so.load(path).tokenizer is None
    source = shared_data / "gpt2-tokenizer" / "tokenizer.json"
    (tmp_path / "tokenizer.json").write_bytes(source.read_bytes())
    tokenizer = so.load(path).tokenizer
    assert tokenizer and tokenizer.decode(tokenizer.encode("Summer is warm.")) == "Summer is warm."


def test_weights_of_another_precision(tmp_path):
    weights = random_weights("gpt2_default", next(SEED))
    half = {name: array.astype("float16") for name, array in weights.items()}
    half["lm_head.weight"] = half["transformer.wte.weight"]
    path = write(tmp_path / "x.pt", None, half)
    assert so.load(path).source.stored_dtype == "float16"  # type: ignore[attr-defined]
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(so.load(path).params))


# --- bad input

BAD = {
    "unknown tensor": (lambda w, a: w.update({"transformer.h.0.attn.r_bias": w["transformer.wte.weight"]}), "unexpected tensors: transformer.h.0.attn.r_bias"),
    "missing tensor": (lambda w, a: w.pop("transformer.h.1.mlp.c_fc.weight"), "missing tensors: transformer.h.1.mlp.c_fc.weight"),
    "wrong shape": (lambda w, a: w.update({"transformer.ln_f.weight": np.ones(15, np.float32)}), "wrong shapes: transformer.ln_f.weight is (15,), the config implies (16,)"),
    "conv1d": (lambda w, a: w.update({"transformer.h.0.attn.c_attn.weight": np.ones((16, 48), np.float32)}), "is (16, 48), the config implies (48, 16)"),
    "integers": (lambda w, a: w.update({"transformer.ln_f.weight": np.ones(16, np.int8)}), "transformer.ln_f.weight is int8"),
    "too few layers": (lambda w, a: a.update(n_layer=1), "unexpected tensors: transformer.h.1."),
    "a billion layers": (lambda w, a: a.update(n_layer=10**9), "n_layer is 1000000000; expected"),
    "more layers than tensors": (lambda w, a: a.update(n_layer=10_000), "implies 10000 layers"),
    "a huge vocabulary": (lambda w, a: a.update(vocab_size=2**31 - 1), "wrong shapes: transformer.wte.weight"),
    "a huge width": (lambda w, a: a.update(n_embd=2**24), "wrong shapes: transformer.wte.weight"),
    "an impossible width": (lambda w, a: a.update(n_embd=2**62), "n_embd is 4611686018427387904; expected"),
    "no heads": (lambda w, a: a.update(n_head=0), "n_head is 0; expected"),
    "heads that do not divide": (lambda w, a: a.update(n_head=5), "multiple of num_heads 5"),
    "layers in words": (lambda w, a: a.update(n_layer="two"), "'two'"),
    "a tensor as a number": (lambda w, a: a.update(n_layer=np.ones(1, np.float32)), "model_args.n_layer is a TorchTensor"),
    "a list without end": (lambda w, a: a.update(n_layer=Raw(b"]" * 10**5 + b"a" * (10**5 - 1))), "model_args.n_layer is a list"),
    "an unknown setting": (lambda w, a: a.update(rotary=True), "rotary=True"),
    "no width": (lambda w, a: a.pop("n_embd"), "field n_embd is missing"),
    "no context": (lambda w, a: a.pop("block_size"), "unknown"),
    "a name that is no text": (lambda w, a: a.update({True: 3}), "a setting is called True"),
    "llama": (lambda w, a: a.update(model_type="llama"), "model_args"),
    "a view beyond its storage": (lambda w, a: w.update({"transformer.ln_f.weight": Tensor(np.ones(8, np.float32), (16,), (1,))}), "does not fit its storage"),
    "no tensors": (lambda w, a: w.clear(), "holds 0 tensors"),
    "no names": (lambda w, a: w.update({3: np.ones(1, np.float32)}), "model holds 3"),
    "not a tensor": (lambda w, a: w.update({"x": 3}), "model holds 'x': int"),
}  # fmt: skip


@pytest.mark.parametrize("problem", BAD)
def test_bad_checkpoints(tmp_path, monkeypatch, capsys, problem):
    damage, said = BAD[problem]
    weights, root = random_weights("gpt2_default", 0), checkpoint(None, {})
    damage(weights, root["model_args"])
    path = write_torch(tmp_path / "ckpt.pt", root | {"model": weights})
    assert said in refusal(path)
    before = everything_below(tmp_path)
    assert run_here(monkeypatch, "--src", path, "--out", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(path) in err
    assert everything_below(tmp_path) == before


@pytest.mark.parametrize(
    "root", [[], 3, {}, {"model": 3, "model_args": {}}, {"model": {}}, {"state_dict": {}}], ids=str
)
def test_what_is_no_nanogpt_checkpoint(tmp_path, root):
    assert "not a nanoGPT checkpoint" in refusal(write_torch(tmp_path / "x.pt", root))


def test_unknown_model_type(tmp_path):
    path = write(tmp_path / "x.pt", "gpt2_new", random_weights("gpt2_default", 0))
    message = refusal(path)
    assert "'gpt2_new' is unknown" in message and all(name in message for name in PAPER_MODELS)
    path = write(tmp_path / "x.pt", ["gpt2_default"], random_weights("gpt2_default", 0))
    assert "a list of 1 is unknown" in refusal(path)
    path = write(tmp_path / "x.pt", "gpt2_default", random_weights("gpt2_vbias", 0))
    assert "unexpected tensors: transformer.h.0.attn.v_bias" in refusal(path)


def test_an_exploit_in_a_checkpoint(tmp_path, monkeypatch, capsys):
    witness = tmp_path / "witness"
    text = f"touch {witness}".encode()
    call = Raw(b"cos\nsystem\nX" + len(text).to_bytes(4, "little") + text + b"\x85R")
    root = checkpoint(None, random_weights("gpt2_default", 0)) | {"config": call}
    path = write_torch(tmp_path / "ckpt.pt", root)
    before = everything_below(tmp_path)
    assert run_here(monkeypatch, "--src", path, "--out", tmp_path / "out") == 2
    assert "asks for os.system" in capsys.readouterr().err
    assert everything_below(tmp_path) == before


@pytest.mark.parity
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_file_that_torch_wrote(tmp_path, model_type):
    torch = pytest.importorskip("torch", reason="torch writes the files of this test")
    for prefix in ("", COMPILED):
        weights = random_weights(model_type, next(SEED))
        modules = torch.nn.ModuleDict()  # a real state dict, with its metadata
        for name, array in weights.items():
            at = modules
            *parents, leaf = (prefix + name).split(".")
            for parent in parents:
                if parent not in at._modules:
                    at.add_module(parent, torch.nn.Module())
                at = at._modules[parent]
            at.register_parameter(leaf, torch.nn.Parameter(torch.from_numpy(array)))
        optimizer = torch.optim.AdamW(modules.parameters())
        sum(p.sum() for p in modules.parameters()).backward()
        optimizer.step()
        root = checkpoint(model_type, {}) | {
            "model": modules.state_dict(),
            "optimizer": optimizer.state_dict(),
            "best_val_loss": torch.tensor(2.9),
        }
        torch.save(root, tmp_path / "ckpt.pt")
        now = {n.removeprefix(prefix): p.detach().numpy() for n, p in modules.state_dict().items()}
        assert_computes(tmp_path / "ckpt.pt", model_type, now)
