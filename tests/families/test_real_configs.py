"""config.json files as they are published, of the families that `tests/convert/test_config_in_the_wild.py` does not read."""

from __future__ import annotations

import json

import pytest

from sysout_jax.checkpoints.formats.hf_config import read_config
from sysout_jax.errors import InputError
from tests.convert import test_config_in_the_wild as in_the_wild

#: directory → what our config must say
REAL = {
    "mixtral-8x7b-v0.1": {"family": "mixtral", "num_experts": 8, "experts_used": 2, "d_ff": 14336, "num_layers": 32, "num_kv_heads": 8, "rope_theta": 1e6, "sliding_window": None, "normalised": True},
    "qwen3-30b-a3b": {"family": "qwen3_moe", "num_experts": 128, "experts_used": 8, "d_ff": 768, "normalised": True, "num_layers": 48, "head_dim": 128, "sliding_window": None},
    "gpt-j-6b": {"family": "gptj", "num_layers": 28, "d_ff": 16384, "head_dim": 256, "rotary_dims": 64, "vocab_size": 50400, "activation": "gelu_tanh", "tied_embeddings": False},
    "aya-23-8b": {"family": "cohere", "d_ff": 14336, "num_kv_heads": 8, "head_scale": 0.0625, "tied_embeddings": True, "norm_eps": 1e-5},
    "gpt-oss-20b": {"family": "gpt_oss", "num_experts": 32, "experts_used": 4, "d_ff": 2880, "sliding_window": 128, "gate_limit": 7.0, "qkv_bias": True, "head_dim": 64, "rope_theta": 150_000.0},
    "internlm2-7b-native-format": {"family": "internlm2", "num_kv_heads": 8, "d_ff": 14336, "rope_theta": 1e6, "vocab_size": 92544},
    "mimo-7b-base": {"family": "qwen2", "num_layers": 36, "head_dim": 128, "rope_theta": 640_000.0, "sliding_window": None, "qkv_bias": True, "o_bias": False},
    "ministral3-3b-2512": {"family": "llama", "num_layers": 26, "head_dim": 128, "d_model": 3072, "rope_theta": 1e6, "sliding_window": None, "tied_embeddings": True},
    "minicpm-2b": {"family": "minicpm", "embed_scale": 12, "residual_scale": 1.4 / 40**0.5, "head_scale": 256 / 2304, "tied_embeddings": False, "rope_scaling": None},
    "baichuan-7b": {"family": "baichuan", "num_layers": 32, "num_kv_heads": 32, "vocab_size": 125696, "tied_embeddings": False},
    "internlm-7b": {"family": "llama", "qkv_bias": True, "o_bias": True, "mlp_bias": False, "vocab_size": 103168},
    "gemma-3-1b-it": {"family": "gemma3", "num_layers": 26, "num_kv_heads": 1, "head_dim": 256, "rope_theta": 1e6, "local_rope_theta": 1e4, "sliding_window": 512, "attention_scale": 1 / 16, "tied_embeddings": True},
    "olmo-3.1-32b-instruct": {"family": "olmo3", "num_layers": 64, "num_heads": 40, "rope_theta": 5e5, "local_rope_theta": 5e5, "sliding_window": 4096, "vocab_size": 100278},
    "phi-3.5-mini-instruct": {"family": "phi3", "context_length": 131072, "sliding_window": 262144, "head_dim": 96, "rotary_dims": None},
    "falcon-7b-RefinedWebModel": {"family": "falcon", "num_layers": 32, "d_model": 4544, "num_heads": 71, "num_kv_heads": 1, "head_dim": 64, "d_ff": 18176, "parallel": True, "vocab_size": 65024, "tied_embeddings": True},
    "gemma-2-2b": {"family": "gemma2", "num_layers": 26, "d_model": 2304, "num_heads": 8, "num_kv_heads": 4, "head_dim": 256, "d_ff": 9216, "sliding_window": 4096, "softcap": 50.0, "final_softcap": 30.0, "attention_scale": 1 / 16, "tied_embeddings": True},
    "gemma-2-9b": {"family": "gemma2", "num_layers": 42, "d_model": 3584, "num_heads": 16, "num_kv_heads": 8, "d_ff": 14336, "softcap": 50.0, "attention_scale": 1 / 16},
    "mpt-7b-instruct-style": {"family": "mpt", "num_layers": 32, "d_model": 4096, "num_heads": 32, "d_ff": 16384, "context_length": 2048, "vocab_size": 50432, "clip_qkv": None, "alibi_max": 8},
    "olmo-1b-hf": {"family": "olmo", "num_layers": 16, "d_model": 2048, "num_heads": 16, "d_ff": 8192, "clip_qkv": None, "norm_eps": 1e-5, "tied_embeddings": True, "rope_theta": 1e4},
    "olmo-2-7b": {"family": "olmo2", "num_layers": 32, "d_model": 4096, "num_kv_heads": 32, "d_ff": 11008, "rope_theta": 5e5, "norm_eps": 1e-6, "tied_embeddings": False},
    "olmo-2-32b": {"family": "olmo2", "num_layers": 64, "d_model": 5120, "num_heads": 40, "num_kv_heads": 8, "d_ff": 27648},
    "opt-6.7b": {"family": "opt", "num_layers": 32, "d_model": 4096, "num_heads": 32, "d_ff": 16384, "activation": "relu", "tied_embeddings": True, "context_length": 2048, "vocab_size": 50272},
    "phi-1_5-msft-old-format": {"family": "phi", "num_layers": 24, "d_model": 2048, "num_kv_heads": 32, "d_ff": 8192, "rotary_dims": 32, "activation": "gelu_tanh", "tied_embeddings": False},
    "phi-2-msft-old-format": {"family": "phi", "num_layers": 32, "d_model": 2560, "num_kv_heads": 32, "d_ff": 10240, "rotary_dims": 32, "vocab_size": 51200},
    "pythia-12b-deduped": {"family": "gpt_neox", "num_layers": 36, "d_model": 5120, "num_heads": 40, "d_ff": 20480, "rotary_dims": 32, "parallel": True, "activation": "gelu", "tied_embeddings": False},
    "redpajama-incite-3b-gpt_neox": {"family": "gpt_neox", "num_layers": 32, "d_model": 2560, "d_ff": 10240, "rotary_dims": None, "parallel": False, "vocab_size": 50432},
    "qwen3-0.6b": {"family": "qwen3", "num_layers": 28, "d_model": 1024, "num_heads": 16, "num_kv_heads": 8, "head_dim": 128, "d_ff": 3072, "rope_theta": 1e6, "sliding_window": None, "qkv_bias": False, "tied_embeddings": True},
    "qwen3-8b": {"family": "qwen3", "num_layers": 36, "d_model": 4096, "d_ff": 12288, "context_length": 40960, "tied_embeddings": False},
    "qwen3-32b-fp8": {"family": "qwen3", "num_layers": 64, "d_model": 5120, "num_heads": 64, "head_dim": 128, "d_ff": 25600},
    "stablelm-3b-4e1t-style": {"family": "stablelm", "num_layers": 32, "d_model": 2560, "num_kv_heads": 32, "d_ff": 6912, "rotary_dims": 20, "parallel": False, "qkv_bias": False, "norm_eps": 1e-5},
    "starcoder2-7b": {"family": "starcoder2", "num_layers": 32, "d_model": 4608, "num_heads": 36, "num_kv_heads": 4, "d_ff": 18432, "sliding_window": 4096, "activation": "gelu_tanh", "rope_theta": 1e6, "context_length": 16384},
}  # fmt: skip
#: Of families that do not load.
REFUSED = {"deepseek-moe-16b", "deepseek-v3", "gemma-4-26b-a4b", "llama-3_3-nemotron-super-49b-deci", "qwen3.5-27b"}  # fmt: skip
#: directory → kind, factor, original context, magnitude of its scaled positions
SCALED = {
    "ministral3-3b-2512": ("yarn", 16.0, 16384, 1.0),
    "gpt-oss-20b": ("yarn", 32.0, 4096, 1.3465735902799727),
    "olmo-3.1-32b-instruct": ("yarn", 8.0, 8192, 1.2079441541679836),
    "phi-3.5-mini-instruct": ("longrope", 32.0, 4096, 1.190238),
}


@pytest.mark.parametrize("name", REAL)
def test_values(name, shared_data):
    file = shared_data / "configs" / name / "config.json"
    config = read_config(json.loads(file.read_text()), name).config
    assert {field: getattr(config, field) for field in REAL[name]} == REAL[name]
    scaling = getattr(config, "rope_scaling", None)
    assert (scaling is not None) == (name in SCALED)
    if scaling:
        kind, factor, original, magnitude = SCALED[name]
        assert (scaling.kind, scaling.factor, scaling.original_context) == (kind, factor, original)
        assert scaling.magnitude == pytest.approx(magnitude, rel=1e-6)


def test_every_file_is_read_or_of_an_unknown_family(shared_data):
    for file in sorted((shared_data / "configs").glob("*/config.json")):
        name, fields = file.parent.name, json.loads(file.read_text())
        if name in REFUSED:
            with pytest.raises(
                InputError, match=f"architecture '{fields['model_type']}' is unknown"
            ):
                read_config(fields, name)
        else:
            read_config(fields, name)
            classes = set(fields.get("architectures") or ())
            assert name in REAL or name in in_the_wild.REAL or classes & in_the_wild.KNOWN, name


def test_layers_with_a_window(shared_data):
    def config(name):
        file = shared_data / "configs" / name / "config.json"
        return read_config(json.loads(file.read_text()), name).config

    gemma, olmo = config("gemma-3-1b-it"), config("olmo-3.1-32b-instruct")
    assert [l for l in range(26) if gemma.window(l) is None] == [5, 11, 17, 23]
    assert [gemma.rotary(l).theta for l in (4, 5)] == [1e4, 1e6]
    assert [l for l in range(64) if olmo.window(l) is None] == list(range(3, 64, 4))
    assert [olmo.rotary(l).scaling is None for l in (2, 3)] == [True, False]
