"""Exported statistics are those in memory; the mask is the definition applied to raw tensors."""

import csv
import json

import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.statistics.export import arrays, export, mask, table
from tests.outliers import rules
from tests.random_models import random_model

TAU = 3.0


@pytest.fixture(scope="module")
def case():
    lm = random_model("llama-gqa", seed=0)
    tokens = np.random.default_rng(0).integers(0, lm.config.vocab_size, (2, 24))
    return lm, tokens, so.collect(lm, tokens, TAU)


def test_archive_and_table_hold_the_statistics(case, tmp_path):
    _, tokens, stats = case
    export(tmp_path, stats, "npz")
    with np.load(tmp_path / "statistics.npz") as archive:
        assert set(archive) == set(arrays(stats))
        np.testing.assert_array_equal(archive["tokens"], tokens)
        np.testing.assert_array_equal(archive["h.token_max"], stats.h.token_max)
        np.testing.assert_array_equal(archive["attention.sums"], stats.attention.sums)
        np.testing.assert_array_equal(
            archive["weights.column_ratios.down"], stats.weights.down_column_ratios
        )
    export(tmp_path, stats, "csv")
    rows = list(csv.DictReader((tmp_path / "statistics.csv").open()))
    assert [int(row["layer"]) for row in rows] == list(range(len(stats.h.ratio)))
    for l, row in enumerate(rows):
        assert float(row["h.severity"]) == stats.h.severity[l]
        assert float(row["h.top_values.1"]) == pytest.approx(stats.h.top_values[l, 1])
    assert "h.token_max.0.0" in rows[0] and len(table(stats)[0]) == len(rows[0])
    assert {p.name for p in tmp_path.iterdir()} == {"statistics.npz", "statistics.csv", "mask.json"}


def test_mask_marks_what_the_rules_mark(case, tmp_path):
    lm, tokens, stats = case
    _, taps = so.capture(lm, tokens, names=("h", "attn_map"))
    export(tmp_path, stats, "csv", texts=[["a"] * 24] * 2)
    found = json.loads((tmp_path / "mask.json").read_text())
    assert found["token_ids"] == tokens.tolist() and found["texts"] == [["a"] * 24] * 2
    h = np.asarray(taps["h"], np.float64)
    flagged = np.stack([[rules.activation_outliers(s, TAU) for s in layer] for layer in h])
    assert (
        found["tokens"]["activation outlier in h"]
        == np.argwhere(flagged.any((0, 3))).tolist()
        != []
    )
    for l, layer in enumerate(flagged):
        assert found["dims"]["h"].get(str(l), []) == np.flatnonzero(layer.any((0, 1))).tolist()
    sums = np.asarray(taps["attn_map"], np.float64).sum(3)
    code = (sums.mean(2) >= 0.1 * tokens.shape[1]).any(0)
    assert found["tokens"]["attention outlier by the published code"] == np.argwhere(code).tolist()
    assert mask(stats)["dims"] == found["dims"]


def test_unknown_formats_and_notebooks(case, tmp_path):
    *_, stats = case
    with pytest.raises(so.InputError, match="expected npz or csv"):
        export(tmp_path, stats, "xlsx")
    assert not list(tmp_path.iterdir())
    assert stats._repr_html_().count("<tr>") == 1 + len(stats.h.ratio)
