"""Elements of h that an intervention edits: outliers of the unedited model, random others, and donors of values."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from sysout_jax.engine import Stream
from sysout_jax.language_model import LanguageModel
from sysout_jax.outliers.definitions import exceeds
from sysout_jax.statistics.collect import Stats

READ_AT_LEAST = 16  # dims of one pass: one shape, hence one compilation, for any number up to this


@dataclass(frozen=True)
class Elements:
    """K elements of h, the same in every layer, and the layers in whose output each one is edited."""

    places: np.ndarray  # (K, 3) int: sequence, token, dim
    active: np.ndarray  # (L, K) bool

    def only(self, layers: tuple[int, ...]) -> Elements:
        """The same elements, edited in these layers alone."""
        chosen = np.isin(np.arange(len(self.active)), layers)
        return Elements(self.places, self.active & chosen[:, None])


def find_outliers(
    lm: LanguageModel,
    stats: Stats,
    tau: float,
    dims: np.ndarray,
) -> tuple[Elements, np.ndarray, np.ndarray]:
    """Every element of `dims` (P,) that is an outlier in some layer, active where it is one.

    Beside them their values (L, K), and the mean of h over all sequences and positions (L, D). One pass.
    """
    N = len(stats.tokens)
    at = np.argwhere(stats.h.outlier_tokens(tau).any(0))  # (A, 2): no other token can hold one
    wanted = np.resize(dims, max(len(dims), READ_AT_LEAST)).astype(np.int32)
    extra = [np.broadcast_to(wanted, (N, len(wanted)))] * lm.num_layers
    values, mean = [], []
    for _, _, seen in Stream(lm, stats.tokens).layers(_read_dims, extra):
        values.append(seen["at"][at[:, 0], at[:, 1], : len(dims)])
        mean.append(seen["sum"].sum(0, dtype=np.float64) / np.maximum(seen["finite"].sum(0), 1))
    values_LxAxP = np.stack(values)
    mean_LxAx1 = stats.h.sequence_mean[:, at[:, 0], None]
    active = exceeds(np.abs(values_LxAxP), mean_LxAx1, tau) & np.isfinite(values_LxAxP)
    token, dim = np.nonzero(active.any(0))
    places = np.column_stack([at[token], dims[dim]]).astype(int)
    return Elements(places, active[:, token, dim]), values_LxAxP[:, token, dim], np.stack(mean)


def draw_others(
    rng: np.random.Generator, outliers: Elements, length: int, dims: np.ndarray
) -> Elements:
    """As many random elements in the same sequences and layers, in `dims` that never hold an outlier.

    Every outlier has one counterpart, edited where it is; uniform over tokens and dims, without repetition. Fewer only where a
    sequence has no more of them.
    """
    places, active = [], []
    for n in np.unique(outliers.places[:, 0]):
        of_sequence = np.flatnonzero(outliers.places[:, 0] == n)
        size = length * len(dims)
        flat = rng.choice(size, min(len(of_sequence), size), replace=False)
        token, dim = np.divmod(flat, len(dims)) if len(dims) else (flat, flat)
        places.append(np.column_stack([np.full(len(flat), n), token, dims[dim]]))
        active.append(outliers.active[:, of_sequence[: len(flat)]])
    return Elements(np.concatenate(places).astype(int), np.concatenate(active, axis=1))


def draw_donors(
    rng: np.random.Generator, elements: Elements, ordinary_NxT: np.ndarray
) -> np.ndarray:
    """(K, 3): for every element the same dim of a random `ordinary` token, of another sequence where there is one."""
    pool = np.argwhere(ordinary_NxT)
    donors = elements.places.copy()
    for n in np.unique(elements.places[:, 0]):
        mine = elements.places[:, 0] == n
        others = pool[pool[:, 0] != n]
        donors[mine, :2] = rng.choice(others if len(others) else pool, mine.sum())
    return donors


def read_elements(
    lm: LanguageModel,
    tokens: np.ndarray,
    places: np.ndarray,
) -> np.ndarray:
    """(L, K) values of h at `places` (K, 3), after every layer. One pass."""
    N, T = tokens.shape
    slot, width = _slots(places, N)
    extra = [_packed(places, slot, (N, width), T)] * lm.num_layers
    stream = Stream(lm, tokens)
    values = [seen[places[:, 0], slot] for _, _, seen in stream.layers(_read_elements, extra)]
    return np.stack(values)


def edits(elements: Elements, values_LxK: np.ndarray, shape: tuple[int, int]) -> list[dict]:
    """What `write_elements` needs in each layer to write `values` into the active elements of tokens of `shape` (N, T)."""
    slot, width = _slots(elements.places, shape[0])
    packed = _packed(elements.places, slot, (shape[0], width), shape[1])
    layers = []
    for active, values in zip(elements.active, values_LxK, strict=True):
        tokens, written = packed["tokens"].copy(), np.zeros((shape[0], width), np.float32)
        n = elements.places[:, 0]
        tokens[n[~active], slot[~active]] = shape[1]
        written[n, slot] = values
        layers.append({"tokens": tokens, "dims": packed["dims"], "values": written})
    return layers


def write_elements(name: str, h_BxTxD: jax.Array, extra: dict[str, jax.Array]) -> jax.Array:
    """The `Write` of elements: h[b, tokens[b, k], dims[b, k]] = values[b, k]; a token beyond the sequence sets nothing."""
    if name != "h":
        return h_BxTxD
    rows = jnp.arange(len(h_BxTxD))[:, None]
    values = extra["values"].astype(h_BxTxD.dtype)
    return h_BxTxD.at[rows, extra["tokens"], extra["dims"]].set(values, mode="drop")


def _read_dims(x_in, taps, dims_BxP):
    h = taps["h"].astype(jnp.float32)
    return {
        "at": jnp.take_along_axis(h, dims_BxP[:, None, :], axis=2),
        "sum": jnp.where(jnp.isfinite(h), h, 0.0).sum(1),
        "finite": jnp.isfinite(h).sum(1),
    }


def _read_elements(x_in, taps, extra):
    rows = jnp.arange(len(x_in))[:, None]
    h = taps["h"].astype(jnp.float32)
    return h.at[rows, extra["tokens"], extra["dims"]].get(mode="fill", fill_value=0.0)


def _slots(places: np.ndarray, num_sequences: int) -> tuple[np.ndarray, int]:
    """A place in its sequence's row for every element, and the rows' width: a power of two, so that few shapes compile."""
    counts = np.bincount(places[:, 0], minlength=num_sequences)
    order = np.argsort(places[:, 0], kind="stable")
    slot = np.empty(len(places), int)
    slot[order] = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
    return slot, 1 << max(int(counts.max()) - 1, 0).bit_length()


def _packed(
    places: np.ndarray, slot: np.ndarray, shape: tuple[int, int], beyond: int
) -> dict[str, np.ndarray]:
    """Tokens and dims of the elements as rows per sequence, (N, width) int32; empty slots lie `beyond` the sequence."""
    tokens, dims = np.full(shape, beyond, np.int32), np.zeros(shape, np.int32)
    tokens[places[:, 0], slot] = places[:, 1]
    dims[places[:, 0], slot] = places[:, 2]
    return {"tokens": tokens, "dims": dims}
