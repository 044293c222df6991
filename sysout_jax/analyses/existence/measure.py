"""`so.existence`: what outliers look like in one sequence, at the layers and channels where they are (paper Figures 1, 13–22)."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from sysout_jax.attention import AttentionSpec, attention_map
from sysout_jax.calls import check_arguments
from sysout_jax.engine import Stream
from sysout_jax.language_model import LanguageModel
from sysout_jax.nonfinite import finite_or
from sysout_jax.numerics.pooling import Pooled, pool_lines, pool_matrix
from sysout_jax.outliers.definitions import TAU, candidate_level, level_of, ratio
from sysout_jax.printable import Told
from sysout_jax.statistics.activations import channel_label
from sysout_jax.statistics.collect import Stats, at_hand
from sysout_jax.storage.serialise import plain

SHOWN = 16  # tokens drawn at most
ELEMENTS = 8  # outliers named per place
BINS = 400  # points that a line over channels has at most
CHUNK = 512  # channels of W_down that are read at once
MATRIX_LINES = 64  # lines over the rows of W_down at most


@dataclass(frozen=True)
class Element:
    """One value of a place: a token (position) or a row of W_down, and a channel, dim or column."""

    line: int
    channel: int
    label: str  # how the channel is called: its number, with experts `expert:unit`
    value: float
    ratio: float  # over the mean magnitude of the sequence; of W_down of the row or, without an outlier at τ, of the column


@dataclass(frozen=True)
class Surface:
    """A place drawn over its channels: magnitudes that keep every peak, and its largest elements."""

    layer: int
    found: bool  # at τ
    level: float  # τ, or a share of the largest ratio where there is no outlier
    pooled: Pooled  # magnitudes; one line per shown token, or per group of rows of W_down
    elements: tuple[Element, ...]  # those over `level`, largest ratio first, at most `ELEMENTS`
    channels: int  # before pooling
    lines: int


@dataclass(frozen=True)
class Attention:
    """The head-mean attention of a layer between the shown tokens."""

    layer: int
    map: np.ndarray  # (W, W) queries × keys
    received: np.ndarray  # (W,) head-mean column sum over all queries of the sequence, divided by T


@dataclass(frozen=True)
class Existence(Told):
    """The report. Positions, channels and layers are 0-based."""

    model: str
    tau: float
    num_layers: int
    length: int
    sequence: int  # which of the given ones: that of the largest |h| over its mean
    shown: (
        np.ndarray
    )  # (W,) positions drawn, ascending: outlier tokens, their neighbours, and the beginning
    outliers: np.ndarray  # (W,) bool: shown tokens that hold an element of h over its level
    x_down: Surface
    w_down: Surface
    h: Surface
    attention: Attention
    stats: Stats

    @property
    def found(self) -> bool:
        """Is there an activation outlier at τ, in h or x_down?"""
        return self.h.found or self.x_down.found

    def to_dict(self) -> dict:
        """JSON-ready numbers without the surfaces themselves."""
        names = "model tau num_layers length sequence shown outliers found attention".split()
        result = {name: getattr(self, name) for name in names}
        result["nonfinite"] = self.stats.nonfinite
        result["tokens"] = self.stats.tokens[self.sequence][self.shown]
        for name in ("x_down", "w_down", "h"):
            surface = vars(getattr(self, name))
            result[name] = {key: value for key, value in surface.items() if key != "pooled"}
        return plain(result)


def existence(
    lm: LanguageModel,
    tokens,
    tau: float = TAU,
    *,
    stats: Stats | None = None,
) -> Existence:
    """What the strongest outliers among `tokens` (N, T) look like, at threshold τ; two passes, the second over one sequence.

    h, x_down and attention are shown in the layer of their largest ratio in that sequence, W_down in the layer of the birth: the first
    in which the sequence holds an outlier of h, or what stands for one where there is none. `stats` are those of `collect` on the same tokens.
    Raises InputError for bad tokens.
    """
    check_arguments(lm, tau=tau)
    stats = at_hand(stats, lm, tokens, tau)
    sequence, ratios = _strongest_sequence(stats)
    levels = {name: level_of(float(ratio_LxT.max()), tau) for name, ratio_LxT in ratios.items()}
    layers = {name: int(ratio_LxT.max(axis=1).argmax()) for name, ratio_LxT in ratios.items()}
    # where what is drawn of h comes from
    layers["w_down"] = int((ratios["h"].max(axis=1) > levels["h"]).argmax())
    layers["attention"] = int(stats.attention.head_mean[:, sequence].max(axis=1).argmax())
    over = {
        name: ratio_LxT[layers[name]] / max(levels[name], 1e-30)
        for name, ratio_LxT in ratios.items()
    }
    shown = choose_tokens(np.maximum(over["h"], over["x_down"]))
    seen, kernel = _look(lm, stats.tokens[sequence], shown, layers)
    mean = {name: getattr(stats, name).sequence_mean[layers[name], sequence] for name in ratios}
    return Existence(
        model=lm.name,
        tau=float(tau),
        num_layers=lm.num_layers,
        length=stats.tokens.shape[1],
        sequence=sequence,
        shown=shown,
        outliers=over["h"][shown] > 1,
        x_down=_activations(
            seen["x_down"],
            layers["x_down"],
            shown,
            mean["x_down"],
            levels["x_down"],
            tau,
            stats.x_down.expert_width,
        ),
        w_down=_weights(kernel, stats, layers["w_down"], tau, stats.x_down.expert_width),
        h=_activations(seen["h"], layers["h"], shown, mean["h"], levels["h"], tau),
        attention=Attention(
            layer=layers["attention"],
            map=seen["attention"],
            received=stats.attention.head_mean[layers["attention"], sequence, shown]
            / stats.tokens.shape[1],
        ),
        stats=stats,
    )


def _strongest_sequence(stats: Stats) -> tuple[int, dict[str, np.ndarray]]:
    """The sequence of the largest |h| against its mean, and the ratios (L, T) of its tokens in h and x_down."""
    ratios = {}
    for name in ("h", "x_down"):
        place = getattr(stats, name)
        ratios[name] = ratio(place.token_max, place.sequence_mean[..., None])
    sequence = int(ratios["h"].max(axis=(0, 2)).argmax())
    return sequence, {name: ratio_LxNxT[:, sequence] for name, ratio_LxNxT in ratios.items()}


def choose_tokens(strength_T: np.ndarray, most: int = SHOWN) -> np.ndarray:
    """Positions to draw, ascending: tokens over 1 strongest first up to half of them, their neighbours, the beginning."""
    strong = np.flatnonzero(strength_T > 1)
    strong = strong[np.argsort(-strength_T[strong], kind="stable")][: most // 2]
    wanted = [*strong, *(t + d for t in strong for d in (-1, 1)), *range(len(strength_T))]
    chosen = dict.fromkeys(int(t) for t in wanted if 0 <= t < len(strength_T))
    return np.sort(list(chosen)[:most])


def _look(
    lm: LanguageModel, tokens_T: np.ndarray, shown: np.ndarray, layers: dict[str, int]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The shown rows of h, x_down and the attention map in their layers, and the kernel (F, D) of W_down in its layer."""
    observes = [_Rows(lm.attention(l, len(tokens_T))) for l in range(lm.num_layers)]
    stream = Stream(lm, tokens_T[None])
    shown_rows: dict[str, np.ndarray] = {}
    kernel, places = None, ("h", "x_down", "attention")
    extra = [shown[None].astype(np.int32)] * lm.num_layers
    for layer, params, seen in stream.layers(observes, extra):
        shown_rows |= {name: seen[name][0] for name in places if layers[name] == layer}
        if layers["x_down"] == layer and "expert" in seen:
            mlp = lm.config.layer(layer).mlp
            shown_rows["x_down"] = _side_by_side(
                shown_rows["x_down"], seen["expert"][0], mlp.channels
            )
        if layer == layers["w_down"]:
            kernel = np.asarray(lm.config.layer(layer).matrix("down").of(params))
    assert kernel is not None
    return shown_rows, kernel


@dataclass(frozen=True)
class _Rows:
    """The `Observe` that keeps the shown rows."""

    spec: AttentionSpec

    def __call__(self, x_in, taps, shown_BxW):
        def rows(x_BxTxC):
            index = shown_BxW.reshape(*shown_BxW.shape, *[1] * (x_BxTxC.ndim - 2))
            return jnp.take_along_axis(x_BxTxC, index, axis=1)

        lse = taps.get("lse")
        if lse is not None:
            lse = jnp.take_along_axis(lse, shown_BxW[:, None], axis=2)
        maps = attention_map(rows(taps["q"]), rows(taps["k"]), lse, self.spec, shown_BxW)
        experts = {"expert": rows(taps["expert"])} if "expert" in taps else {}
        return experts | {
            "h": rows(taps["h"]).astype(jnp.float32),
            "x_down": rows(taps["x_down"]).astype(jnp.float32),
            "attention": maps.astype(jnp.float32).mean(1),
        }


def _side_by_side(x_WxRxF: np.ndarray, expert_WxR: np.ndarray, channels: int) -> np.ndarray:
    """(W, E·F) the rows of the chosen experts at their channels; NaN in the other experts, where the token has no value."""
    W, _, F = x_WxRxF.shape
    wide = np.full((W, channels // F, F), np.nan, np.float32)
    # NaN and inf count as 0 as everywhere, and stay apart from what is not there
    wide[np.arange(W)[:, None], expert_WxR] = finite_or(x_WxRxF)
    return wide.reshape(W, channels)


def _activations(
    x_WxC: np.ndarray,
    layer: int,
    shown: np.ndarray,
    mean: float,
    level: float,
    tau: float,
    expert_width: int | None = None,
) -> Surface:
    magnitude = _magnitude(x_WxC)
    return Surface(
        layer=layer,
        found=level == tau,
        level=level,
        pooled=pool_lines(np.where(np.isnan(x_WxC), np.nan, magnitude), shown, BINS),
        elements=_elements(
            magnitude / (mean if mean > 0 else np.inf), x_WxC, shown, level, expert_width
        ),
        channels=x_WxC.shape[1],
        lines=len(shown),
    )


def _weights(
    kernel_FxD: np.ndarray, stats: Stats, layer: int, tau: float, expert_width: int | None
) -> Surface:
    """W_down with its outliers by rows or, where it has none, the largest weights of its columns of extremal ratio."""
    F, D = kernel_FxD.shape
    mean_D = np.zeros(D)
    for start in range(0, F, CHUNK):  # never a second matrix
        mean_D += _magnitude(kernel_FxD[start : start + CHUNK]).sum(axis=0, dtype=np.float64) / F
    ratio_D = stats.weights.down_row_ratios[layer]
    has_outliers = bool((ratio_D > tau).any())
    if has_outliers:
        # the largest elements are in the rows of the largest ratios
        rows = np.argsort(-ratio_D, kind="stable")[:ELEMENTS]
        w_RxF = kernel_FxD[:, rows].T.astype(np.float32)
        over_row_mean = ratio(_magnitude(w_RxF), mean_D[rows][:, None])
        elements = _elements(over_row_mean, w_RxF, rows, tau, expert_width)
        level = tau
    else:
        ratio_F = stats.weights.down_column_ratios[layer]
        level = candidate_level(float(ratio_F.max()))
        columns = np.argsort(-ratio_F, kind="stable")[:ELEMENTS]
        w_DxC = kernel_FxD[columns].T.astype(np.float32)
        over_column_mean = ratio(_magnitude(w_DxC), _magnitude(w_DxC).mean(axis=0))
        elements = _elements(
            over_column_mean, w_DxC, np.arange(D), level, expert_width, columns=columns
        )
    return Surface(
        layer=layer,
        found=has_outliers,
        level=level,
        pooled=pool_matrix(kernel_FxD.T, MATRIX_LINES, BINS),
        elements=elements,
        channels=F,
        lines=D,
    )


def _magnitude(values: np.ndarray) -> np.ndarray:
    return finite_or(np.abs(values.astype(np.float32)))


def _elements(
    ratio_XxC: np.ndarray,
    values_XxC,
    lines_X: np.ndarray,
    level: float,
    expert_width: int | None,
    columns: np.ndarray | None = None,
) -> tuple[Element, ...]:
    """The largest ratios over `level`; `columns` are the channels of the second axis where these are not all."""
    flagged = np.argwhere(ratio_XxC > level)
    order = np.argsort(-ratio_XxC[tuple(flagged.T)], kind="stable")[:ELEMENTS]
    return tuple(
        Element(
            int(lines_X[x]),
            channel := int(c if columns is None else columns[c]),
            channel_label(channel, expert_width),
            float(values_XxC[x, c]),
            float(ratio_XxC[x, c]),
        )
        for x, c in flagged[order]
    )
