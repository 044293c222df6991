"""The weights of a planted model.

The weights are random and calm; the circuit is written into a few of them. Readers see the residual stream after RMSNorm.

* Embedding. Three kinds of reserved dims, calm everywhere else: `const` is 1 in every token, `trigger` is large in the outlier
  tokens only, and the outlier dims d* start near zero. All embeddings of one kind have the same norm, so a reader of
  `const` or `trigger` sees the same number in every such token.
* Birth. Gate and up of the channels c* read `trigger`, hence x_down[c*] is large at outlier tokens only, and W_down[d*, c*]
  turns it into h[d*] of `strength` times the calm mean|h|. From here on RMSNorm leaves an outlier token nothing but d*:
  it points along a fixed direction u with norm √D. A second birth reads u, because `trigger` is washed out.
* Spread. In a sink head, one or two dims of q read `const` and the same dims of k read u, so that every ordinary query
  prefers outlier tokens by `SINK_LOGIT`. The dims belong to rotary pairs that hardly turn within the context. The
  rows of W_v that read d* are made small for the head's values (value drain).
* Death. Gate and up of the channels c_e read u, and their columns of W_down hold minus what outlier tokens carry.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np

from sysout_jax.engine import capture
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.language_model import LanguageModel
from sysout_jax.models import parameter_shapes
from sysout_jax.testing.draw import Rng, draw_shares, slow_dims
from sysout_jax.testing.truth import BirthTruth, PlantedTruth, SinkTruth
from sysout_jax.weights import InMemory

WEIGHT_STD = 0.23  # times 1/√D: 0.02 at D = 128
UPDATE_SCALE = 0.25  # of the matrices that write into the residual stream, as GPT-2 is initialised
EMBED_STD = 0.15
TRIGGER = 4.0  # of the outlier tokens' embedding; 33 times the calm mean|h|, below any threshold
QUIET = 0.02  # factor on background weights next to planted ones: what ordinary tokens leak is squared by later readers
DRAIN = 0.1  # factor on what values of sink heads read of outlier tokens
SINK_LOGIT = 14.0  # lead of an outlier token; e^14 against a context of a few hundred tokens
KEY = 8.0  # of an outlier token's key in a planted dim
X_DOWN_SHARE = 0.02  # x_down[c*] in units of the strength


def calm_params(
    rng: Rng, truth: PlantedTruth, config: LlamaConfig, const: int, trigger: int
) -> dict:
    """Random weights that keep the residual stream calm, quiet in and around everything that is reserved."""
    params = jax.tree.map(
        lambda leaf: (
            rng.normal(0, WEIGHT_STD / config.d_model**0.5, leaf.shape).astype(np.float32)
            if leaf.ndim == 2
            else np.ones(leaf.shape, np.float32)
        ),
        parameter_shapes(config),
    )
    reserved = [const, trigger, *truth.dims]
    embedding_VxD = params["embed"]["embedding"]
    embedding_VxD[:, reserved] *= QUIET
    embedding_VxD *= (
        EMBED_STD * config.d_model**0.5 / np.linalg.norm(embedding_VxD, axis=1)[:, None]
    )
    embedding_VxD[:, const] = 1.0
    embedding_VxD[list(truth.outlier_tokens), trigger] = TRIGGER
    slow = np.array(slow_dims(config), int)
    for layer in range(config.num_layers):
        attn, mlp = params[f"layer_{layer}"]["attn"], params[f"layer_{layer}"]["mlp"]
        for kernel_IxD in (attn["o_proj"]["kernel"], mlp["down_proj"]["kernel"]):
            kernel_IxD *= UPDATE_SCALE
            kernel_IxD[:, reserved] *= QUIET
        for proj in ("q_proj", "k_proj"):
            attn[proj]["kernel"].reshape(config.d_model, -1, config.head_dim)[..., slow] *= QUIET
    return params


@dataclass(frozen=True, eq=False)
class Build:
    """A model under construction, and what outlier tokens carry into each of its layers."""

    rng: Rng
    config: LlamaConfig
    params: dict
    truth: PlantedTruth
    tokens: np.ndarray  # (N, T) to calibrate on
    carried_LxD: np.ndarray

    def mlp(self, layer: int) -> dict[str, np.ndarray]:
        return {name: p["kernel"] for name, p in self.params[f"layer_{layer}"]["mlp"].items()}

    def direction(self, layer: int) -> np.ndarray:
        """(D,) unit vector u: what an outlier token is after the RMSNorm of a layer, up to the factor √D."""
        return self.carried_LxD[layer] / np.linalg.norm(self.carried_LxD[layer])

    def at_outliers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Run it as it is: mean h_mid (L, D) and x_down (L, F) of outlier tokens, and mean|h| (L,) of the others."""
        lm = LanguageModel(self.config, InMemory(self.params))
        _, taps = capture(lm, self.tokens, ("h", "h_mid", "x_down"))
        mask = np.isin(self.tokens, self.truth.outlier_tokens)
        calm_L = np.abs(taps["h"][:, ~mask]).mean((1, 2))
        return taps["h_mid"][:, mask].mean(1), taps["x_down"][:, mask].mean(1), calm_L


def plant_birth(build: Build, birth: BirthTruth, trigger: int) -> None:
    """Readers and writers of one birth; from the next layer on outlier tokens carry its values."""
    if birth == build.truth.births[0]:
        build.carried_LxD[: birth.layer + 1, trigger] = TRIGGER
    _plant_readers(build, birth.layer, birth.channels)
    _, x_LxF, calm_L = build.at_outliers()
    value_P = build.truth.strength * calm_L[birth.layer] * np.array(birth.signs)
    x_C = x_LxF[birth.layer, list(birth.channels)]
    _plant_writers(build, birth.layer, birth.channels, birth.shares / x_C, birth.dims, value_P)
    build.carried_LxD[birth.layer + 1 :, list(birth.dims)] = value_P


def plant_sink(build: Build, sink: SinkTruth, const: int) -> None:
    """Queries from `const`, keys from u, and quiet values of outlier tokens."""
    attn = build.params[f"layer_{sink.layer}"]["attn"]
    D, Dh = build.config.d_model, build.config.head_dim
    kv_head = sink.head * build.config.num_kv_heads // build.config.num_heads
    u_D = build.direction(sink.layer)
    carried = np.flatnonzero(u_D)
    seen_const = (D / (1.0 + EMBED_STD**2 * D)) ** 0.5  # what an ordinary query sees of `const`
    for dim, share in zip(sink.dims, sink.shares, strict=True):
        query = share * SINK_LOGIT * Dh**0.5 / KEY
        attn["q_proj"]["kernel"][const, sink.head * Dh + dim] = query / seen_const
        attn["k_proj"]["kernel"][carried, kv_head * Dh + dim] = KEY * u_D[carried] / D**0.5
    values_DxDh = attn["v_proj"]["kernel"].reshape(D, -1, Dh)[:, kv_head]
    values_DxDh[carried] *= DRAIN


def plant_death(build: Build, layer: int) -> None:
    """Readers of u whose writers take away what outlier tokens hold when they reach this MLP."""
    channels, dims = build.truth.death_channels, build.truth.dims
    _plant_readers(build, layer, channels)
    h_mid_LxD, x_LxF, _ = build.at_outliers()
    shares = draw_shares(build.rng, len(channels))
    x_C = x_LxF[layer, list(channels)]
    _plant_writers(build, layer, channels, shares / x_C, dims, -h_mid_LxD[layer, list(dims)])


def _plant_readers(build: Build, layer: int, channels: tuple[int, ...]) -> None:
    """Gate and up of `channels` read u, each √x strong, so that their |x_down| at outlier tokens is about x."""
    amplitude = (X_DOWN_SHARE * build.truth.strength / build.config.d_model) ** 0.5
    for channel in channels:
        for proj, sign in (("gate_proj", 1), ("up_proj", build.rng.choice([-1, 1]))):
            column_D = build.mlp(layer)[proj][:, channel]
            column_D[:] = QUIET * column_D + sign * amplitude * build.direction(layer)


def _plant_writers(build: Build, layer: int, channels, factor_C, dims, value_P) -> None:
    """W_down[dims, channels] such that x_down = 1 / factor adds up to `value_P`, shared over the channels."""
    build.mlp(layer)["down_proj"][np.ix_(channels, dims)] = np.outer(factor_C, value_P)
