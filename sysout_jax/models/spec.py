"""What a layer is made of, as a value: every model is built from it, and every analysis reads it.

Letters for shapes as in `config.py`. All of it is frozen and hashable, so that equal layers share one compilation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sysout_jax.attention.spec import PLAIN, AttentionSpec
from sysout_jax.rope_scaling import RopeScaling


@dataclass(frozen=True)
class NormSpec:
    """RMSNorm, or with `centred` LayerNorm, of width D."""

    eps: float
    centred: bool = False
    bias: bool = False
    scale: bool = True
    """False: nothing is multiplied after normalising (OLMo 1)."""
    offset: float = 0.0
    """Added to the stored scale (Gemma: 1)."""


@dataclass(frozen=True)
class Rotary:
    """Rotary positions on the first `dims` of every head (Su et al. 2021)."""

    dims: int
    theta: float
    scaling: RopeScaling | None = None


@dataclass(frozen=True)
class HeadsSpec:
    """The linear layers around attention."""

    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    o_bias: bool = False
    fused: bool = False
    """q, k and v are one linear layer, `qkv_proj`, with as many heads each."""
    norm: NormSpec | None = None
    """Of q and k, before rotation."""
    norm_over: Literal["head", "all"] = "head"
    """One norm for every head's Dh numbers (Qwen 3), or for all heads together (OLMo 2)."""
    clip: float | None = None
    """q, k and v are cut to ± this (OLMo 1, MPT)."""
    sink: bool = False
    """A learned logit b per head takes part in the softmax without a value: what attention gives is multiplied by 1 − σ(b − lse) (gpt-oss)."""


@dataclass(frozen=True)
class ExpertsSpec:
    """Many MLPs side by side, of which a router chooses a few for every token (Shazeer et al. 2017).

    What the chosen ones give is added up, each times its weight: the router's softmax over all of them.
    """

    count: int
    used: int
    normalised: bool = True
    """The weights of the chosen ones are divided by their sum."""
    router_bias: bool = False
    shared: int = 0
    """So many more, after the others, that every token goes through; all of them weighted by one gate's σ. A wide one counts as several."""

    @property
    def total(self) -> int:
        """Shared ones included."""
        return self.count + self.shared


@dataclass(frozen=True)
class MlpSpec:
    """x_down = act(gate) · up, or act(up) without a gate; `width` is F.

    With `experts` their matrices lie side by side as those of one MLP: a channel, and with it a column of W_down, is expert · F + unit, and
    the mean of a row of W_down goes over all experts. A token has values in the channels of its chosen experts only.
    """

    width: int
    gated: bool
    activation: str
    up_bias: bool = False
    down_bias: bool = False
    experts: ExpertsSpec | None = None
    limit: float | None = None
    """The gate is cut to at most this, `up` to ± this (gpt-oss)."""
    up_offset: float = 0.0
    """Added to `up` before it is multiplied (gpt-oss: 1)."""

    @property
    def linear_in_up(self) -> bool:
        """Is x_down a multiple of `up`?"""
        return self.gated and self.limit is None and not self.up_offset

    @property
    def rows(self) -> int:
        """R: in how many experts a token has values; 1 without experts."""
        return 1 if self.experts is None else self.experts.used + self.experts.shared

    @property
    def channels(self) -> int:
        """Inputs of W_down, those of all experts together."""
        return self.width * (1 if self.experts is None else self.experts.total)

    @property
    def expert_width(self) -> int | None:
        """F with experts, None without."""
        return None if self.experts is None else self.width


@dataclass(frozen=True)
class Matrix:
    """One of the paper's matrices in a layer's parameters."""

    name: str
    """q, k, v, o, gate, up or down."""
    path: str
    """Of its linear layer: `attn/q_proj`."""
    fed_by: str | None
    """What multiplies its input channel by channel: a norm (`attn_norm`), a linear layer (`mlp/up_proj`), or None where nothing does."""
    part: int = 0
    parts: int = 1
    """It is the `part`-th of equal parts side by side along the outputs."""
    experts: int = 1
    """It is made of those of so many experts, side by side along `expert_axis` of its kernel."""
    expert_axis: int = 1

    def of(self, params: dict) -> Any:
        """Its kernel (I, O) among a layer's parameters."""
        for key in self.path.split("/"):
            params = params[key]
        kernel = params["kernel"]
        if self.parts == 1:
            return kernel
        if kernel.ndim == 3:  # as it lies on a mesh that cuts heads
            return kernel[:, self.part]
        width = kernel.shape[1] // self.parts
        return kernel[:, self.part * width : (self.part + 1) * width]

    def replaced(self, params: dict, kernel: Any) -> dict:
        """A layer's parameters with another kernel in its place; of a matrix that is a linear layer by itself."""
        group, name = self.path.split("/")
        layer = params[group][name] | {"kernel": kernel}
        return params | {group: params[group] | {name: layer}}


@dataclass(frozen=True)
class Writer:
    """A part of a layer that adds to the residual stream: `added` = W · `input`, times `gain` where there is one. All are taps.

    With experts `input` has a row for each chosen one, which is multiplied by its `weight`: W · Σ_r weight_r · input_r.
    """

    part: Literal["attention", "mlp"]
    matrix: str
    input: str
    added: str
    gain: str | None = None
    """What each of the matrix's outputs is multiplied with, by a norm or a scale after it, (B, T, D)."""
    weight: str | None = None
    """What the router multiplies each chosen expert with, (B, T, R)."""


@dataclass(frozen=True)
class LayerSpec:
    """One layer. `x` is the residual stream; a norm that is None does nothing.

    sequential   mid = x + attn_post(attn(attn_norm(x))),  h = mid + mlp_post(mlp(mlp_norm(mid)))
    parallel     h = x + attn(attn_norm(x)) + mlp(mlp_norm(x)); without a `mlp_norm` both read attn_norm(x)
    """

    heads: HeadsSpec
    mlp: MlpSpec
    attn_norm: NormSpec | None
    mlp_norm: NormSpec | None
    attn_post_norm: NormSpec | None = None
    mlp_post_norm: NormSpec | None = None
    parallel: bool = False
    residual_scale: float | None = None
    """Both parts are multiplied by it before they are added (MiniCPM)."""
    attention: AttentionSpec = PLAIN
    rotary: Rotary | None = None

    @property
    def wiring(self) -> str:
        """sequential, parallel, sandwich (norms before and after) or post-only."""
        if self.parallel:
            return "parallel"
        if self.mlp_post_norm is None:
            return "sequential"
        return "post-only" if self.mlp_norm is None else "sandwich"

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """In the paper's order."""
        reads = None if self.attn_norm is None else "attn_norm"
        if self.heads.fused:
            qkv = [Matrix(name, "attn/qkv_proj", reads, i, 3) for i, name in enumerate("qkv")]
        else:
            qkv = [Matrix(name, f"attn/{name}_proj", reads) for name in "qkv"]
        shared = self.parallel and self.mlp_norm is None
        mlp_reads = reads if shared else None if self.mlp_norm is None else "mlp_norm"
        into = ["gate", "up"] if self.mlp.gated else ["up"]
        count = 1 if self.mlp.experts is None else self.mlp.experts.total
        return (
            *qkv,
            Matrix("o", "attn/o_proj", None),
            *(Matrix(name, f"mlp/{name}_proj", mlp_reads, experts=count) for name in into),
            # between `up` and `down` of an ungated MLP lies an activation function
            Matrix(
                "down",
                "mlp/down_proj",
                "mlp/up_proj" if self.mlp.linear_in_up else None,
                experts=count,
                expert_axis=0,
            ),
        )

    def matrix(self, name: str) -> Matrix:
        """The one of that name; KeyError without."""
        return {matrix.name: matrix for matrix in self.matrices}[name]

    @property
    def writers(self) -> tuple[Writer, ...]:
        """In the order in which they add."""
        gains = self.mlp_post_norm is not None or self.residual_scale is not None
        gain = "down_gain" if gains else None
        weight = None if self.mlp.experts is None else "expert_weight"
        return (
            Writer("attention", "o", "attn_heads", "attn_out"),
            Writer("mlp", "down", "x_down", "down", gain, weight),
        )


@dataclass(frozen=True)
class EndsSpec:
    """What stands before the first layer and after the last one."""

    final_norm: NormSpec | None
    positions: int | None = None
    """Learned positions: how many rows of their table come before that of position 0 (OPT: 2). None: none."""
    embed_scale: float | None = None
    """Embeddings are multiplied by it, rounded to the compute dtype (Gemma: √D)."""
    head_bias: bool = False
    head_scale: float | None = None
    """Logits are multiplied by it (Cohere)."""
    softcap: float | None = None
    """Logits stay within ± this (Gemma 2)."""
