"""An outlier written into one entry of W_down is found with its layer, dim, channel and tokens, however a layer is wired."""

from __future__ import annotations

import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.weights import InMemory
from tests.families.cases import random_tokens
from tests.families.test_families import config_of
from tests.random_models import random_params

TAU, LAYER, DIM, VALUE = 8.0, 0, 3, 500.0
#: What is special about each.
WIRINGS = {
    "gpt2": "no gate",
    "phi": "parallel, one norm",
    "gpt_neox": "parallel, two norms",
    "mpt": "ALiBi",
    "olmo2": "a norm after the MLP",
    "gemma2": "norms before and after",
    "mistral-window": "a window",
    "mixtral": "experts",
}


def planted(name: str, tokens: np.ndarray) -> tuple[so.LanguageModel, int]:
    """The model, and the channel whose entry W_down[DIM, channel] writes the outlier."""
    config = config_of(name)
    params = random_params(config, 0, std=0.1, scale=1.0)
    lm = so.LanguageModel(config, InMemory(params), name=name)
    mlp = config.layer(LAYER).mlp
    names = ["x_down"] + ["expert"] * (mlp.experts is not None)
    _, taps = so.capture(lm, tokens, names)
    x_down = np.asarray(taps["x_down"][LAYER])
    strongest = np.unravel_index(np.abs(x_down).argmax(), x_down.shape)
    channel, strength = int(strongest[-1]), float(x_down[strongest])
    if mlp.experts is not None:
        channel += int(taps["expert"][LAYER][strongest[:-1]]) * mlp.expert_width
    down = config.layer(LAYER).matrix("down")
    layer = params[f"layer_{LAYER}"]
    kernel = np.array(down.of(layer))
    kernel[channel, DIM] = VALUE / strength
    layer = down.replaced(layer, kernel)
    if "mlp_post_norm" in layer:  # which would shrink it to √D
        scale = np.array(layer["mlp_post_norm"]["scale"])
        scale[DIM] = VALUE
        layer = layer | {"mlp_post_norm": layer["mlp_post_norm"] | {"scale": scale}}
    params = {**params, f"layer_{LAYER}": layer}
    return so.LanguageModel(config, InMemory(params), name=name), channel


@pytest.mark.slow
@pytest.mark.parametrize("name", WIRINGS)
def test_planted_outlier(name):
    tokens = random_tokens(4)
    lm, channel = planted(name, tokens)
    _, taps = so.capture(lm, tokens, ("h",))
    magnitude = np.abs(np.asarray(taps["h"][LAYER], np.float64))
    flagged = magnitude > TAU * magnitude.mean((1, 2), keepdims=True)
    assert flagged.any() and set(np.nonzero(flagged)[2]) == {DIM}

    report = so.lifecycle(lm, tokens, TAU)
    event = report.birth.events[0]
    assert report.birth.layer == event.layer == LAYER and event.dims == (DIM,)
    assert event.channels[0].index == channel and event.channels[0].share > 0.8
    want = {(int(n), int(t)) for n, t, _ in np.argwhere(flagged)}
    assert set(event.tokens) == want
    assert report.cause.edits["element"].effect.outliers < report.cause.baseline.outliers
    assert (
        report.cause.edits["element"].controls["random"].outliers
        >= report.cause.baseline.outliers - 1
    )
