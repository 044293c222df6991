"""Planted models: given, drawn at random, and the one that the commands analyse when no checkpoint is given."""

from __future__ import annotations

import numpy as np

from sysout_jax.data.demo import byte_tokenizer
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.language_model import LanguageModel
from sysout_jax.testing.circuit import Build, calm_params, plant_birth, plant_death, plant_sink
from sysout_jax.testing.draw import draw, draw_births, draw_sinks
from sysout_jax.testing.truth import (
    Birth,
    Placement,
    Planted,
    PlantedTruth,
    Wanted,
    draw_tokens,
)
from sysout_jax.weights import InMemory

ROPE_THETA = 1e6
ALMOST, CERTAIN = 600.0, 3000.0  # strengths between them give ratios too near τ = 1000


def planted_llama(
    seed: int = 0,
    *,
    num_layers: int = 6,
    d_model: int = 128,
    d_ff: int = 192,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    vocab_size: int = 64,
    context_length: int = 512,
    births: tuple[Birth, ...] = (Birth(),),
    sinks: tuple[tuple[int, int], ...] | int = 3,
    qk_dims: Wanted | None = None,
    death_layer: int | None = -2,
    death_channels: Wanted = 1,
    outlier_tokens: tuple[int, ...] = (0,),
    placement: Placement = "first",
    strength: float = 5000.0,
    name: str = "planted",
) -> Planted:
    """A LLaMA with a planted life of outliers; `seed` draws the weights, signs, shares and whatever is not given.

    `sinks` are (layer, head) pairs, or how many to draw; `qk_dims` the dims of each, or how many (None: one or two).
    `death_layer` may count from the end, None lets the outliers survive. `strength` is h[d*] over the calm mean|h|: 0 plants
    nothing, up to 600 no outlier at τ = 1000, from 3000 on outliers. Raises ValueError for a plan that cannot work.
    """
    config = LlamaConfig(
        num_layers=num_layers,
        d_model=d_model,
        d_ff=d_ff,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        context_length=context_length,
        rope_theta=ROPE_THETA,
    )
    if strength != 0 and not (0 < strength <= ALMOST or strength >= CERTAIN):
        raise ValueError(
            f"strength {strength:g} is too near the threshold; give 0, at most {ALMOST:g}, or at least {CERTAIN:g}"
        )
    rng = np.random.default_rng(seed)
    if strength == 0:
        births, sinks, death_layer = (), (), None
    death = death_layer if death_layer is None or death_layer >= 0 else num_layers + death_layer
    born = draw_births(rng, config, births, death)
    free = np.setdiff1d(np.arange(d_model), [dim for birth in born for dim in birth.dims])
    const, trigger = (int(dim) for dim in rng.choice(free, 2, replace=False))
    truth = PlantedTruth(
        has_outlier=bool(born) and strength >= CERTAIN,
        strength=float(strength),
        outlier_tokens=tuple(outlier_tokens),
        births=born,
        sinks=draw_sinks(rng, config, born, sinks, qk_dims, death),
        death_layer=death,
        death_channels=() if death is None else draw(rng, death_channels, d_ff),
    )
    tokens = draw_tokens(rng, vocab_size, outlier_tokens, "both", (2, min(64, context_length)))
    params = calm_params(rng, truth, config, const, trigger)
    build = Build(rng, config, params, truth, tokens, np.zeros((num_layers, d_model)))
    for birth in born:
        plant_birth(build, birth, trigger)
    for sink in truth.sinks:
        plant_sink(build, sink, const)
    if death is not None:
        plant_death(build, death)
    return Planted(LanguageModel(config, InMemory(params), name=name), truth, placement)


def random_plant(seed: int) -> Planted:
    """A plant drawn over all cases: births, channels, dims, placement, grouping of heads, death; 256 tokens suffice.

    Three of sixteen plants have no outlier at τ = 1000 with a largest ratio of 300 to 600, two have nothing planted.
    """
    rng = np.random.default_rng([seed, 1])
    placement: tuple[Placement, ...] = ("first", "middle", "both")
    strength = float(rng.uniform(4000, 6000))
    if seed % 16 in (4, 9, 15):
        strength = float(rng.uniform(400, 560))
    if seed % 16 in (7, 13):
        strength = 0.0
    layers = [int(rng.integers(0, 3))]
    if rng.random() < 0.4:
        layers.append(int(rng.integers(layers[0] + 1, 4)))
    return planted_llama(
        seed,
        num_kv_heads=(4, 2, 1)[seed % 3],
        births=tuple(
            Birth(layer, int(rng.integers(1, 3)), int(rng.integers(1, 4))) for layer in layers
        ),
        sinks=int(rng.integers(2, 5)),
        death_layer=int(rng.integers(layers[-1] + 2, 6)) if rng.random() < 0.6 else None,
        death_channels=int(rng.integers(1, 3)),
        outlier_tokens=tuple(
            int(t) for t in rng.choice(64, int(rng.integers(1, 4)), replace=False)
        ),
        placement=placement[seed // 3 % 3],
        strength=strength,
        name=f"random-plant-{seed}",
    )


def demo_plant() -> Planted:
    """A planted LLaMA over bytes, for `sysout_jax.data.demo.demo_text`: its outlier tokens are the line end and BOS."""
    tokenizer = byte_tokenizer()
    (line_end,) = tokenizer.encode("\n")
    assert tokenizer.bos_id is not None
    planted = planted_llama(
        num_layers=8,
        d_model=256,
        d_ff=688,
        num_heads=8,
        num_kv_heads=4,
        head_dim=32,
        vocab_size=tokenizer.vocab_size,
        births=(Birth(layer=2, dims=2, channels=1),),
        sinks=((3, 1), (3, 6), (4, 0), (4, 3), (4, 5), (5, 2), (5, 4), (5, 7), (6, 1)),
        outlier_tokens=(line_end, tokenizer.bos_id),
        placement="both",
        name="planted",
    )
    planted.lm.tokenizer = tokenizer
    return planted


def demo_model() -> LanguageModel:
    """The model of `demo_plant`: `--ckpt planted`."""
    return demo_plant().lm
