"""Layouts that transformers has no class for: the tensors of a LLaMA or Qwen 2 under their names."""

from __future__ import annotations

import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.checkpoints.formats.hf_config import read_config
from sysout_jax.errors import InputError
from sysout_jax.families import baichuan
from tests.families.cases import NEW, OTHERS, random_tokens
from tests.families.other_layouts import (
    baichuan_tensors,
    internlm2_tensors,
    llama_tensors,
    plain_model,
    write,
)
from tests.families.test_families import model_of


def _written(directory, fields: dict, tensors: dict[str, np.ndarray]) -> so.LanguageModel:
    return so.load(write(directory, fields, tensors))


def _same_logits(lm, other):
    tokens = random_tokens(7)
    want, found = (so.capture(model, tokens, ())[0] for model in (other, lm))
    np.testing.assert_allclose(found, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("second", [False, True])
def test_baichuan(second, tmp_path, monkeypatch):
    """Baichuan 2 multiplies by the rows of its head over their lengths, which is all that tells it from Baichuan."""
    fields = OTHERS["baichuan"].settings | {"model_type": "baichuan"}
    plain = plain_model(fields)
    tensors = baichuan_tensors(plain)
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
    fields = OTHERS["internlm2"].settings | {"model_type": "internlm2"}
    plain = plain_model(fields)
    lm = _written(tmp_path / "model", fields, internlm2_tensors(plain))
    assert lm.config.family == "internlm2"
    _same_logits(lm, plain)


def test_mimo(tmp_path):
    """Layers that predict further tokens are left out."""
    plain = model_of("qwen2")
    tensors = llama_tensors(plain)
    tensors["model.mtp_layers.0.input_layernorm.weight"] = np.ones(plain.config.d_model, "f")
    fields = NEW | {"model_type": "mimo", "attention_bias": True, "num_nextn_predict_layers": 1}
    lm = _written(tmp_path / "model", fields, tensors)
    _same_logits(lm, plain)


def test_minicpm(tmp_path):
    """Its scales are those of a LLaMA whose embedding, output projections and head are larger or smaller; what reports read of an MLP adds up."""
    fields = OTHERS["minicpm"].settings | {"model_type": "minicpm"}
    plain = plain_model(fields)
    lm = _written(tmp_path / "model", fields, llama_tensors(plain))
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
    tensors = llama_tensors(lm, ("attn",))
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
