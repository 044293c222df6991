"""Layouts that transformers has no class for: the tensors of a LLaMA or Qwen 2 under their names."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import sysout_jax as so
from sysout_jax.checkpoints.formats.hf_config import read_config
from sysout_jax.errors import InputError
from sysout_jax.families import baichuan
from sysout_jax.weights import InMemory
from tests.families.cases import NEW, random_tokens
from tests.families.test_families import config_of, model_of
from tests.random_models import random_params


def _written(directory, fields: dict, tensors: dict[str, np.ndarray]):
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(fields))
    contiguous = {name: np.ascontiguousarray(np.asarray(x)) for name, x in tensors.items()}
    save_file(contiguous, directory / "model.safetensors")
    return so.load(directory)


def _same_logits(lm, other):
    tokens = random_tokens(7)
    want, found = (so.capture(model, tokens, ())[0] for model in (other, lm))
    np.testing.assert_allclose(found, want, atol=1e-5 * np.abs(want).max())


def _tensors_of(
    plain: so.LanguageModel, parts: tuple[str, ...] = ("attn", "mlp")
) -> dict[str, np.ndarray]:
    """Its parameters under the names of transformers' LLaMA."""
    tensors = {}
    for end, name in (("embed", "model.embed_tokens"), ("final_norm", "model.norm")):
        tensors[f"{name}.weight"] = next(iter(plain.params[end].values()))
    tensors["lm_head.weight"] = plain.params["lm_head"]["kernel"].T
    names = {part: {"attn": "self_attn", "mlp": "mlp"}[part] for part in parts}
    for l in range(plain.num_layers):
        layer, name = plain.params[f"layer_{l}"], f"model.layers.{l}"
        tensors[f"{name}.input_layernorm.weight"] = layer["attn_norm"]["scale"]
        tensors[f"{name}.post_attention_layernorm.weight"] = layer["mlp_norm"]["scale"]
        for group, theirs in names.items():
            for matrix, held in layer[group].items():
                tensors[f"{name}.{theirs}.{matrix}.weight"] = held["kernel"].T
                if "bias" in held:
                    tensors[f"{name}.{theirs}.{matrix}.bias"] = held["bias"]
    return {name: np.asarray(x) for name, x in tensors.items()}


@pytest.mark.parametrize("second", [False, True])
def test_baichuan(second, tmp_path, monkeypatch):
    """Baichuan 2 multiplies by the rows of its head over their lengths, which is all that tells it from Baichuan."""
    config = dataclasses.replace(config_of("llama"), num_kv_heads=4)
    plain = so.LanguageModel(config, InMemory(random_params(config, 0, std=0.3, scale=1.0)))
    tensors = _tensors_of(plain)
    for l in range(plain.num_layers):
        attn = f"model.layers.{l}.self_attn"
        rows = [tensors.pop(f"{attn}.{part}_proj.weight") for part in "qkv"]
        tensors[f"{attn}.W_pack.weight"] = np.concatenate(rows)
    fields = {k: v for k, v in NEW.items() if k != "num_key_value_heads"}
    fields |= {"model_type": "baichuan", "model_max_length": 64, "rms_norm_eps": 1e-6}
    if second:
        monkeypatch.setattr(baichuan, "VOCAB_OF_2", NEW["vocab_size"])

        def of_length_1(head):
            kernel_DxV = np.asarray(head["kernel"])
            return {"kernel": kernel_DxV / np.linalg.norm(kernel_DxV, axis=0)}

        plain = plain.with_edits({"lm_head": of_length_1})
    _same_logits(_written(tmp_path / "b", fields, tensors), plain)
    del fields["max_position_embeddings"]
    with pytest.raises(InputError, match="ALiBi is not implemented; expected Baichuan 7B"):
        read_config(fields, "config.json")


def test_internlm2(tmp_path):
    plain = model_of("llama")
    config, params = plain.config, plain.params
    tensors = {
        "model.tok_embeddings.weight": params["embed"]["embedding"],
        "model.norm.weight": params["final_norm"]["scale"],
        "output.weight": params["lm_head"]["kernel"].T,
    }
    H, K, Dh = config.num_heads, config.num_kv_heads, config.head_dim
    for l in range(config.num_layers):
        layer, name = params[f"layer_{l}"], f"model.layers.{l}"
        q, k, v = (np.asarray(layer["attn"][f"{p}_proj"]["kernel"]).T for p in "qkv")
        rows = []
        for g in range(K):  # the query heads of a key head, the key, the value
            rows += [q[g * H // K * Dh : (g + 1) * H // K * Dh]]
            rows += [k[g * Dh : (g + 1) * Dh], v[g * Dh : (g + 1) * Dh]]
        tensors |= {
            f"{name}.attention.wqkv.weight": np.concatenate(rows),
            f"{name}.attention.wo.weight": layer["attn"]["o_proj"]["kernel"].T,
            f"{name}.attention_norm.weight": layer["attn_norm"]["scale"],
            f"{name}.ffn_norm.weight": layer["mlp_norm"]["scale"],
            f"{name}.feed_forward.w1.weight": layer["mlp"]["gate_proj"]["kernel"].T,
            f"{name}.feed_forward.w2.weight": layer["mlp"]["down_proj"]["kernel"].T,
            f"{name}.feed_forward.w3.weight": layer["mlp"]["up_proj"]["kernel"].T,
        }
    lm = _written(tmp_path / "model", NEW | {"model_type": "internlm2", "bias": False}, tensors)
    assert lm.config.family == "internlm2"
    _same_logits(lm, plain)


def test_mimo(tmp_path):
    """Layers that predict further tokens are left out."""
    plain = model_of("qwen2")
    tensors = _tensors_of(plain)
    tensors["model.mtp_layers.0.input_layernorm.weight"] = np.ones(plain.config.d_model, "f")
    fields = NEW | {"model_type": "mimo", "attention_bias": True, "num_nextn_predict_layers": 1}
    lm = _written(tmp_path / "model", fields, tensors)
    _same_logits(lm, plain)


def test_minicpm(tmp_path):
    """Its scales are those of a LLaMA whose embedding, output projections and head are larger or smaller; what reports read of an MLP adds up."""
    plain = model_of("llama")
    lm = _written(
        tmp_path / "model",
        NEW | {"model_type": "minicpm", "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 4, "rope_scaling": {"type": "dynamic", "factor": 4.0}},
        _tensors_of(plain),
    )  # fmt: skip
    scale = 1.4 / plain.num_layers**0.5

    def times(params: dict, factor: float, *path: str) -> dict:
        key, *rest = path
        inner = times(params[key], factor, *rest) if rest else params[key] * factor
        return params | {key: inner}

    edits = {
        "embed": lambda p: times(p, 12.0, "embedding"),
        "lm_head": lambda p: times(p, 4 / plain.config.d_model, "kernel"),
    }
    for l in range(plain.num_layers):
        edits[f"layer_{l}"] = lambda p: times(
            times(p, scale, "attn", "o_proj", "kernel"), scale, "mlp", "down_proj", "kernel"
        )
    _same_logits(lm, plain.with_edits(edits))
    tokens = random_tokens(8)
    _, taps = so.capture(lm, tokens, ("x_down", "down", "down_gain"))
    kernel = np.asarray(lm.params["layer_0"]["mlp"]["down_proj"]["kernel"])
    added = taps["down_gain"][0] * (taps["x_down"][0] @ kernel)
    np.testing.assert_allclose(added, taps["down"][0], atol=1e-5 * np.abs(added).max())
    report = so.lifecycle(lm, tokens, 4.0)
    life = report if report.found else report.candidate
    assert life.birth.events


def test_internlm_is_llama_with_biases():
    one = read_config(NEW | {"model_type": "internlm", "bias": True}, "c").config
    assert one == read_config(NEW | {"model_type": "llama", "attention_bias": True}, "c").config


def test_experts_that_are_missing_or_of_another_shape(tmp_path):
    """Every expert's tensor is looked for, by its name."""
    lm = model_of("mixtral")
    tensors = _tensors_of(lm, ("attn",))
    E, moe = lm.config.num_experts, "model.layers.{l}.block_sparse_moe"
    for l in range(lm.num_layers):
        mlp, name = lm.params[f"layer_{l}"]["mlp"], moe.format(l=l)
        tensors[f"{name}.gate.weight"] = np.asarray(mlp["router"]).T
        for theirs, ours in (("w1", "gate"), ("w3", "up"), ("w2", "down")):
            kernel = np.asarray(mlp[f"{ours}_proj"]["kernel"])
            for e, part in enumerate(np.split(kernel, E, axis=0 if ours == "down" else 1)):
                tensors[f"{name}.experts.{e}.{theirs}.weight"] = part.T
    fields = NEW | {"model_type": "mixtral", "num_local_experts": E, "num_experts_per_tok": 2}
    _same_logits(_written(tmp_path / "whole", fields, tensors), lm)
    odd = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    left = {name: x for name, x in tensors.items() if name != odd}
    with pytest.raises(InputError, match=f"missing tensors: {odd}; was"):
        _written(tmp_path / "missing", fields, left)
    with pytest.raises(InputError, match=r"w2.weight is \(16, 23\), the config implies \(16, 24\)"):
        _written(tmp_path / "narrow", fields, tensors | {odd: tensors[odd][:, 1:]})
    with pytest.raises(InputError, match=r"unexpected tensors: .*experts.4.w2.weight"):
        more = odd.replace("experts.3", "experts.4")
        _written(tmp_path / "more", fields, tensors | {more: tensors[odd]})
