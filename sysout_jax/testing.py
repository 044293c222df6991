"""Planted models: small LLaMAs whose outliers are known by construction, to test analyses against the truth.

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

The mean of the definition |h| > τ·mean|h| contains the outliers, so a sequence must be long enough to hold them: with n outlier
elements (tokens times dims) of strength s, the ratio is s / (1 + n·s/(T·D)). `Planted.tokens` asks for a ratio of at least 1500,
that is T·D ≥ 2143·n at the default strength of 5000.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np

from sysout_jax.config import LlamaConfig
from sysout_jax.data.demo import byte_tokenizer
from sysout_jax.engine import capture
from sysout_jax.language_model import LanguageModel
from sysout_jax.models import parameter_shapes
from sysout_jax.models.layers import rotary_frequencies
from sysout_jax.weights import InMemory

WEIGHT_STD = 0.23  # times 1/√D: 0.02 at D = 128
UPDATE_SCALE = 0.25  # of the matrices that write into the residual stream, as GPT-2 is initialised
EMBED_STD = 0.15
TRIGGER = (
    4.0  # of the outlier tokens' embedding; 33 times the calm mean|h|, far below any threshold
)
QUIET = 0.02  # factor on background weights next to planted ones: what ordinary tokens leak is squared by later readers
DRAIN = 0.1  # factor on what values of sink heads read of outlier tokens
SINK_LOGIT = (
    14.0  # lead of an outlier token over the others; e^14 against a context of a few hundred tokens
)
KEY = 8.0  # of an outlier token's key in a planted dim
ROPE_THETA = 1e6
MAX_TURN = 0.2  # radians that a planted q/k dim may turn over the whole context
X_DOWN_SHARE = 0.02  # x_down[c*] in units of the strength
ALMOST, CERTAIN = 600.0, 3000.0  # strengths between them give ratios too near τ = 1000
MIN_RATIO = 1500.0

Rng = np.random.Generator
Placement = Literal["first", "middle", "both"]
Wanted = int | tuple[int, ...]  # how many to draw, or which


@dataclass(frozen=True)
class Birth:
    """Where to plant a birth; `dims` and `channels` are how many to draw, or which."""

    layer: int = 1
    dims: Wanted = 1
    channels: Wanted = 1


@dataclass(frozen=True)
class BirthTruth:
    """A planted birth: channels c* write `sign · value` into dims d* at outlier tokens, each its share of it."""

    layer: int
    dims: tuple[int, ...]
    signs: tuple[int, ...]  # of h[d*]
    channels: tuple[int, ...]
    shares: tuple[float, ...]  # of h[d*], one per channel


@dataclass(frozen=True)
class SinkTruth:
    """A planted sink head and the dims of q and k that carry the logit towards outlier tokens, with their shares of it."""

    layer: int
    head: int
    dims: tuple[int, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class PlantedTruth:
    """Everything planted; layers are 0-based. Where `has_outlier` is False it holds at a threshold below `strength` only."""

    has_outlier: bool  # in h at τ = 1000
    strength: float  # h[d*] over the calm mean|h|
    outlier_tokens: tuple[int, ...]  # token ids
    births: tuple[BirthTruth, ...]  # by layer; none at strength 0
    sinks: tuple[SinkTruth, ...]  # by layer and head
    death_layer: int | None  # first layer after which no outlier is left; None when they survive
    death_channels: tuple[int, ...]

    @property
    def birth_layers(self) -> tuple[int, ...]:
        return tuple(birth.layer for birth in self.births)

    @property
    def dims(self) -> tuple[int, ...]:
        """d* of all births, ascending."""
        return tuple(sorted(dim for birth in self.births for dim in birth.dims))

    @property
    def sink_heads(self) -> frozenset[tuple[int, int]]:
        """(layer, head) of all sinks."""
        return frozenset((sink.layer, sink.head) for sink in self.sinks)

    def dims_after(self, layer: int) -> tuple[int, ...]:
        """Outlier dims of h after `layer`, ascending."""
        if self.death_layer is not None and layer >= self.death_layer:
            return ()
        return tuple(sorted(d for birth in self.births if birth.layer <= layer for d in birth.dims))


@dataclass(frozen=True, eq=False)
class Planted:
    """A planted model, the truth about it, and where its outlier tokens go in the sequences that `tokens` draws."""

    lm: LanguageModel
    truth: PlantedTruth
    placement: Placement = "first"

    def tokens(self, num_sequences: int, length: int, seed: int = 0) -> np.ndarray:
        """(N, T) int32: ordinary tokens with one to three outlier tokens in each sequence.

        Placement first: one at position 0; middle: between T/8 and 3T/4; both: position 0 and one or two in the middle.
        Raises ValueError when T·D is too small for outliers to exceed the threshold (see the module's docstring).
        """
        tokens = _draw_tokens(
            np.random.default_rng(seed),
            self.lm.config.vocab_size,
            self.truth.outlier_tokens,
            self.placement,
            (num_sequences, length),
        )
        elements = int(self.mask(tokens).sum(1).max()) * len(self.truth.dims)
        size, strength = length * self.lm.config.d_model, self.truth.strength
        if self.truth.has_outlier and strength / (1 + elements * strength / size) < MIN_RATIO:
            least = elements / (1 / MIN_RATIO - 1 / strength)
            raise ValueError(
                f"T·D = {size} is too small for {elements} outlier elements of strength {strength:g}; it must be "
                f"at least {least:.0f}, here a length of {int(np.ceil(least / self.lm.config.d_model))}"
            )
        return tokens

    def mask(self, tokens) -> np.ndarray:
        """Bool, True at the outlier tokens."""
        return np.isin(tokens, self.truth.outlier_tokens)


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
    born = _draw_births(rng, config, births, death)
    free = np.setdiff1d(np.arange(d_model), [dim for birth in born for dim in birth.dims])
    const, trigger = (int(dim) for dim in rng.choice(free, 2, replace=False))
    truth = PlantedTruth(
        has_outlier=bool(born) and strength >= CERTAIN,
        strength=float(strength),
        outlier_tokens=tuple(outlier_tokens),
        births=born,
        sinks=_draw_sinks(rng, config, born, sinks, qk_dims, death),
        death_layer=death,
        death_channels=() if death is None else _draw(rng, death_channels, d_ff),
    )
    tokens = _draw_tokens(rng, vocab_size, outlier_tokens, "both", (2, min(64, context_length)))
    params = _calm_params(rng, truth, config, const, trigger)
    build = _Build(rng, config, params, truth, tokens, np.zeros((num_layers, d_model)))
    for birth in born:
        _plant_birth(build, birth, trigger)
    for sink in truth.sinks:
        _plant_sink(build, sink, const)
    if death is not None:
        _plant_death(build, death)
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
        name="demo",
    )
    planted.lm.tokenizer = tokenizer
    return planted


def demo_model() -> LanguageModel:
    """The model of `demo_plant`: what the analyses read when no checkpoint is given."""
    return demo_plant().lm


@dataclass(frozen=True, eq=False)
class _Build:
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


def _draw(rng: Rng, wanted: Wanted, pool: int | list[int] | np.ndarray) -> tuple[int, ...]:
    """`wanted` as given, or that many of `pool` (an array, or the size of a range), ascending."""
    if isinstance(wanted, int):
        return tuple(int(i) for i in np.sort(rng.choice(pool, wanted, replace=False)))
    return tuple(wanted)


def _shares(rng: Rng, count: int) -> tuple[float, ...]:
    """Shares that sum to 1 and differ, none below 0.8 of an equal one."""
    extra = rng.dirichlet(np.ones(count))
    return tuple(float(share) for share in 0.8 / count + 0.2 * extra)


def _draw_births(
    rng: Rng, config: LlamaConfig, births: tuple[Birth, ...], death: int | None
) -> tuple[BirthTruth, ...]:
    layers = [birth.layer for birth in births]
    end = config.num_layers if death is None else death
    if layers != sorted(set(layers)) or any(not 0 <= layer < end for layer in layers):
        raise ValueError(
            f"birth layers {layers} must ascend from 0 and stay below {end}, "
            f"{'the number of layers' if death is None else 'the death layer'}"
        )
    if death is not None and not (births and death < config.num_layers):
        raise ValueError(
            f"death layer {death} needs a birth before it and must lie below {config.num_layers}"
        )
    taken = [d for birth in births if not isinstance(birth.dims, int) for d in birth.dims]
    if len(set(taken)) < len(taken):
        raise ValueError(f"birth dims {taken} must not repeat")
    drawn = []
    for birth in births:
        dims = _draw(rng, birth.dims, np.setdiff1d(np.arange(config.d_model), taken))
        taken.extend(dims)
        channels = _draw(rng, birth.channels, config.d_ff)
        signs = tuple(int(s) for s in rng.choice([-1, 1], len(dims)))
        drawn.append(BirthTruth(birth.layer, dims, signs, channels, _shares(rng, len(channels))))
    return tuple(drawn)


def _draw_sinks(
    rng: Rng,
    config: LlamaConfig,
    births: tuple[BirthTruth, ...],
    sinks: tuple[tuple[int, int], ...] | int,
    qk_dims: Wanted | None,
    death: int | None,
) -> tuple[SinkTruth, ...]:
    first = births[0].layer + 1 if births else config.num_layers
    last = config.num_layers - 1 if death is None else death
    heads = [(layer, h) for layer in range(first, last + 1) for h in range(config.num_heads)]
    if isinstance(sinks, int):
        sinks = tuple(heads[i] for i in _draw(rng, min(sinks, len(heads)), len(heads)))
    if any(sink not in heads for sink in sinks):
        raise ValueError(
            f"sinks {sinks} must be (layer, head) in layers {first} to {last}, heads below {config.num_heads}"
        )
    slow = _slow_dims(config)
    drawn = []
    for layer, head in sorted(sinks):
        wanted = int(rng.integers(1, 3)) if qk_dims is None else qk_dims
        dims = _draw(rng, wanted, slow)
        if not set(dims) <= set(slow):
            raise ValueError(f"q/k dims {dims} turn too far within the context; choose from {slow}")
        drawn.append(SinkTruth(layer, head, dims, _shares(rng, len(dims))))
    return tuple(drawn)


def _slow_dims(config: LlamaConfig) -> list[int]:
    turn = rotary_frequencies(config.head_dim, config.rope_theta, None) * config.context_length
    slow = np.flatnonzero(turn < MAX_TURN)
    return [int(i) for i in slow] + [int(i) + config.head_dim // 2 for i in slow]


def _calm_params(
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
    slow = np.array(_slow_dims(config), int)
    for layer in range(config.num_layers):
        attn, mlp = params[f"layer_{layer}"]["attn"], params[f"layer_{layer}"]["mlp"]
        for kernel_IxD in (attn["o_proj"]["kernel"], mlp["down_proj"]["kernel"]):
            kernel_IxD *= UPDATE_SCALE
            kernel_IxD[:, reserved] *= QUIET
        for proj in ("q_proj", "k_proj"):
            attn[proj]["kernel"].reshape(config.d_model, -1, config.head_dim)[..., slow] *= QUIET
    return params


def _draw_tokens(
    rng: Rng,
    vocab_size: int,
    special: tuple[int, ...],
    placement: Placement,
    shape: tuple[int, int],
) -> np.ndarray:
    T = shape[1]
    tokens = rng.choice(np.setdiff1d(np.arange(vocab_size), special), shape)
    for row in tokens:
        if placement != "first":
            middle = np.arange(max(T // 8, 1), 3 * T // 4)
            count = int(rng.integers(1, 4 if placement == "middle" else 3))
            row[rng.choice(middle, count, replace=False)] = rng.choice(special, count)
        if placement != "middle":
            row[0] = rng.choice(special)
    return tokens.astype(np.int32)


def _plant_birth(build: _Build, birth: BirthTruth, trigger: int) -> None:
    """Readers and writers of one birth; from the next layer on outlier tokens carry its values."""
    if birth == build.truth.births[0]:
        build.carried_LxD[: birth.layer + 1, trigger] = TRIGGER
    _plant_readers(build, birth.layer, birth.channels)
    _, x_LxF, calm_L = build.at_outliers()
    value_P = build.truth.strength * calm_L[birth.layer] * np.array(birth.signs)
    x_C = x_LxF[birth.layer, list(birth.channels)]
    _plant_writers(build, birth.layer, birth.channels, birth.shares / x_C, birth.dims, value_P)
    build.carried_LxD[birth.layer + 1 :, list(birth.dims)] = value_P


def _plant_sink(build: _Build, sink: SinkTruth, const: int) -> None:
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


def _plant_death(build: _Build, layer: int) -> None:
    """Readers of u whose writers take away what outlier tokens hold when they reach this MLP."""
    channels, dims = build.truth.death_channels, build.truth.dims
    _plant_readers(build, layer, channels)
    h_mid_LxD, x_LxF, _ = build.at_outliers()
    shares = _shares(build.rng, len(channels))
    x_C = x_LxF[layer, list(channels)]
    _plant_writers(build, layer, channels, shares / x_C, dims, -h_mid_LxD[layer, list(dims)])


def _plant_readers(build: _Build, layer: int, channels: tuple[int, ...]) -> None:
    """Gate and up of `channels` read u, each √x strong, so that their |x_down| at outlier tokens is about x."""
    amplitude = (X_DOWN_SHARE * build.truth.strength / build.config.d_model) ** 0.5
    for channel in channels:
        for proj, sign in (("gate_proj", 1), ("up_proj", build.rng.choice([-1, 1]))):
            column_D = build.mlp(layer)[proj][:, channel]
            column_D[:] = QUIET * column_D + sign * amplitude * build.direction(layer)


def _plant_writers(build: _Build, layer: int, channels, factor_C, dims, value_P) -> None:
    """W_down[dims, channels] such that x_down = 1 / factor adds up to `value_P`, shared over the channels."""
    build.mlp(layer)["down_proj"][np.ix_(channels, dims)] = np.outer(factor_C, value_P)
