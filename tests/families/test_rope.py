"""Scaled rotary positions against transformers, at the sizes of real models."""

from __future__ import annotations

import numpy as np
import pytest

from sysout_jax.checkpoints.formats.hf_config import read_config
from sysout_jax.errors import InputError
from sysout_jax.models.layers import rotary_frequencies
from sysout_jax.rope_scaling import RopeScaling

CONTEXT, ORIGINAL, PAIRS = 131072, 4096, 64
_LONG = np.linspace(1.0, 64.0, PAIRS).tolist()
_SHORT = np.linspace(1.0, 2.8, PAIRS).tolist()
SCALINGS = {
    "yarn": {"rope_type": "yarn", "factor": 32.0},
    "yarn-gpt-oss": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
    "yarn-olmo-3": {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.2079441541679836},
    "yarn-deepseek": {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.7},
    "longrope": {"rope_type": "longrope", "long_factor": _LONG, "short_factor": _SHORT},
    "longrope-factor": {"rope_type": "longrope", "long_factor": _LONG, "short_factor": _SHORT, "factor": 8.0},
}  # fmt: skip


def fields(name: str) -> dict:
    scaling = SCALINGS[name] | {"original_max_position_embeddings": ORIGINAL}
    return {
        "hidden_size": 4 * 2 * PAIRS,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "intermediate_size": 8,
        "vocab_size": 8,
        "max_position_embeddings": CONTEXT,
        "rope_theta": 150_000.0,
        "rope_scaling": scaling,
    }


@pytest.mark.parity
@pytest.mark.parametrize("length", [1, ORIGINAL, ORIGINAL + 1, CONTEXT])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies(name, length):
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    theirs = transformers.LlamaConfig(**fields(name))
    kind = SCALINGS[name]["rope_type"]
    want, magnitude = ROPE_INIT_FUNCTIONS[kind](theirs, "cpu", seq_len=length)
    config = read_config({"model_type": "llama", **fields(name)}, name).config
    found = rotary_frequencies(2 * PAIRS, config.rope_theta, config.rope_scaling, length)
    np.testing.assert_allclose(found, want.numpy(), rtol=2e-6)
    assert config.rope_scaling.magnitude == pytest.approx(magnitude, rel=1e-12)


def test_factors_that_do_not_fit():
    one = fields("longrope")
    one["rope_scaling"] = one["rope_scaling"] | {
        "short_factor": _SHORT[:-1],
        "long_factor": _LONG[:-1],
    }
    with pytest.raises(InputError, match="63 factors; expected one for each of the 64 pairs"):
        read_config({"model_type": "llama", **one}, "config.json")
    one["rope_scaling"] = one["rope_scaling"] | {"short_factor": _SHORT}
    with pytest.raises(InputError, match="63 factors and 64 short_factors"):
        read_config({"model_type": "llama", **one}, "config.json")
    one["rope_scaling"] = one["rope_scaling"] | {"short_factor": 2.0}
    with pytest.raises(InputError, match="short_factor is 2.0; expected a list"):
        read_config({"model_type": "llama", **one}, "config.json")
    with pytest.raises(InputError, match="no short ones otherwise"):
        RopeScaling(kind="yarn", factor=2.0, short_factors=(1.0,))
