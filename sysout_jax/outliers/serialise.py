"""Reports as plain JSON-ready values."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from sysout_jax.outliers.definitions import TAUS

if TYPE_CHECKING:
    from sysout_jax.outliers.lifecycle import Lifecycle


def plain(value: Any) -> Any:
    """Dataclasses, arrays and tuples to dicts, lists and numbers; NaN and inf become None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def lifecycle_to_dict(report: Lifecycle) -> dict:
    """Everything a reader of lifecycle.json needs; the raw trace and per-token arrays stay out."""
    left_out = ("stats", "trace", "candidate")
    fields = {
        f.name: getattr(report, f.name)
        for f in dataclasses.fields(report)
        if f.name not in left_out
    }
    result = plain(fields)
    result["birth"] |= {"layers": plain(report.birth.layers), "dims": plain(report.birth.dims)}
    result["birth"] |= {
        "channels": plain(report.birth.channels),
        "tokens": plain(report.birth.tokens),
    }
    if report.cause is not None:
        result["cause"] |= {
            "outliers_gone": report.cause.outliers_gone,
            "outliers_gone_in_control": report.cause.outliers_gone_in_control,
        }
    result["statistics"] = _statistics(report)
    if report.candidate is not None:
        candidate = lifecycle_to_dict(report.candidate)
        result["candidate"] = {
            name: candidate[name] for name in ("tau", "birth", "spread", "death")
        }
    return result


def _statistics(report: Lifecycle) -> dict:
    def place(stats) -> dict:
        names = """top_values top_signs top_sequences top_tokens top_channels mean median ratio massive
        neuron_kurtosis excess_kurtosis nonfinite first_nonfinite""".split()
        return {name: plain(getattr(stats, name)) for name in names}

    stats = report.stats
    return {
        "h": place(stats.h),
        "x_down": place(stats.x_down),
        "weights": {
            "modules": list(stats.weights.modules),
            **{
                name: plain(getattr(stats.weights, name))
                for name in ("column_ratio", "column", "row_ratio", "row", "nonfinite")
            },
            "counts": {
                f"{tau:g}": plain(stats.weights.counts[..., i]) for i, tau in enumerate(TAUS)
            },
        },
        "attention": {
            name: plain(getattr(stats.attention, name))
            for name in (
                "sink_rate",
                "outlier_keys",
                "overlap",
                "overlap_code",
                "iou",
                "iou_code",
                "nonfinite",
            )
        }
        | {
            "first_token_share": plain(stats.attention.cumulative[:, :, 0] / stats.tokens.shape[1]),
            "code_outlier_tokens": plain(stats.attention.code_outlier_tokens.sum(axis=(1, 2))),
        },
    }
