"""Statistics as files that other programs read: numpy archives, tables, and a mask of outlier tokens and dims."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.calls import check_kind
from sysout_jax.errors import InputError
from sysout_jax.outliers import definitions as rules
from sysout_jax.statistics.collect import Stats
from sysout_jax.storage.serialise import plain
from sysout_jax.storage.staging import write_file

FORMATS = ("npz", "csv")
WIDEST = 64  # values of a layer that become columns of the table; what is wider is in the archive


def arrays(stats: Stats) -> dict[str, np.ndarray]:
    """Every array of `stats` by its name, `h.top_values` (L, K) for one, and `tokens` (N, T) and `tau`; shapes as in the docstrings."""
    arrays = {"tokens": stats.tokens, "tau": np.array(stats.tau)}
    for name, gathered in stats.gathered.items():
        for field in dataclasses.fields(gathered):
            value = getattr(gathered, field.name)
            if isinstance(value, dict):
                arrays |= {f"{name}.{field.name}.{key}": part for key, part in value.items()}
            elif value is not None:
                arrays[f"{name}.{field.name}"] = np.asarray(value)
    return arrays | {f"{name}.ratio": getattr(stats, name).ratio for name in ("h", "x_down")}


def table(stats: Stats) -> tuple[list[str], list[list[Any]]]:
    """Header and one row for each layer, counted from 0: everything that has at most `WIDEST` numbers in a layer."""
    L = len(stats.h.ratio)
    columns: dict[str, np.ndarray] = {"layer": np.arange(L)}
    for name, values in arrays(stats).items():
        if (
            values.ndim == 0
            or len(values) != L
            or name == "tokens"
            or values.dtype.kind not in "biuf"
        ):
            continue
        if values.ndim == 1:
            columns[name] = values
        elif values[0].size <= WIDEST:
            for place in np.ndindex(values.shape[1:]):
                columns[".".join([name, *map(str, place)])] = values[(slice(None), *place)]
    return list(columns), [[values[l].item() for values in columns.values()] for l in range(L)]


def mask(stats: Stats, texts: Sequence[Sequence[str]] | None = None) -> dict[str, Any]:
    """JSON-ready: which tokens and dims hold outliers, by rule, for training or quantising around them.

    `tokens` lists `[sequence, position]` of tokens that a rule marks in any layer, `dims` the dims of h and channels of x_down over τ by
    layer; all counted from 0. `token_ids` are the sequences themselves, `texts` theirs as text where they are given.
    """
    h, x_down, attention = stats.h, stats.x_down, stats.attention
    massive = h.token_max > rules.massive_bound(h.sequence_median)[..., None]
    marked = {
        "activation outlier in h": h.outlier_tokens(stats.tau),
        "activation outlier in x_down": x_down.outlier_tokens(stats.tau),
        "massive activation": massive,
        "attention outlier in some head": attention.key_heads > 0,
        "attention outlier by the published code": attention.code_outlier_tokens,
    }
    result = {
        "tau": stats.tau,
        "token_ids": stats.tokens,
        "tokens": {rule: np.argwhere(mask.any(axis=0)) for rule, mask in marked.items()},
        "dims": {
            name: {
                l: np.flatnonzero(row)
                for l, row in enumerate(place.outlier_channels(stats.tau))
                if row.any()
            }
            for name, place in (("h", h), ("x_down", x_down))
        },
    }
    return plain(result | ({} if texts is None else {"texts": texts}))


def files(format: str) -> tuple[str, str]:
    """Names of what `export` writes: the statistics and the mask."""
    return f"statistics.{format}", "mask.json"


def export(
    out: Path, stats: Stats, format: str, texts: Sequence[Sequence[str]] | None = None
) -> list[Path]:
    """Write `statistics.npz` or `statistics.csv` and `mask.json` into the directory `out`, each in one step; returns their paths.

    The archive holds `arrays`, the table `table`, the mask `mask`. Raises InputError for another format, OSError where nothing can be written.
    """
    check_kind("stats", stats, Stats)
    if format not in FORMATS:
        raise InputError(f"format {format!r}: unknown; expected {' or '.join(FORMATS)}")
    if format == "npz":
        archive = io.BytesIO()
        np.savez_compressed(archive, **arrays(stats))  # type: ignore[arg-type]
        content = archive.getvalue()
    else:
        text = io.StringIO()
        header, rows = table(stats)
        csv.writer(text, lineterminator="\n").writerows([header, *rows])
        content = text.getvalue().encode()
    places = [out / name for name in files(format)]
    marked = (json.dumps(mask(stats, texts)) + "\n").encode()
    for path, data in zip(places, (content, marked), strict=True):
        write_file(path, data)
    return places
