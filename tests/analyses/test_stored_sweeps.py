"""What a sweep's report holds is read back as it was measured; several reports are one sweep; what is no report is refused in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from analyze import variants
from sysout_jax.analyses.variants.snapshots import Snapshot, over_runs
from sysout_jax.analyses.variants.snapshots_page import sweep_markdown, write_sweep_report
from sysout_jax.analyses.variants.stored import read_sweeps
from sysout_jax.errors import InputError

REPOSITORY = Path(__file__).parents[2]


def run(variant: str, seed: int) -> Snapshot:
    rng = np.random.default_rng([len(variant), seed])
    values = {
        "val_loss": rng.random(1),
        "h_ratio": 5 + rng.random(3),
        "value_drain": np.array([0.2, np.nan, 1.0]),
    }
    return Snapshot(f"/x/seed={seed},variant={variant}", None, f"{variant}{seed}", values, {"down": rng.random(3)})  # fmt: skip


def stored(tmp_path: Path, seeds) -> Path:
    out = tmp_path / str(seeds)
    groups = {f"variant={v}": [run(v, seed) for seed in seeds] for v in ("gate", "default")}
    write_sweep_report(out, "test", groups, "seed", {})
    return out / "variants_sweep.json"


def test_reports_together_are_one_sweep(tmp_path):
    over, groups = read_sweeps([stored(tmp_path, (0,)), stored(tmp_path, (1, 2))])
    assert over == "seed" and list(groups) == ["variant=default", "variant=gate"]
    found = over_runs(groups["variant=gate"])
    wanted = over_runs([run("gate", seed) for seed in range(3)])
    for name, mean in wanted.items():
        np.testing.assert_array_equal(found[name].mean, mean.mean)
        np.testing.assert_array_equal(found[name].half_width, mean.half_width)
        assert found[name].count == 3


def test_what_is_no_such_report(tmp_path):
    good = stored(tmp_path, (0,))
    with pytest.raises(InputError, match="is in .* too; name each run once"):
        read_sweeps([good, stored(tmp_path / "again", (0, 1))])
    with pytest.raises(InputError, match="no such file"):
        read_sweeps([tmp_path / "nowhere.json"])
    report = json.loads(good.read_text())
    for change in (
        {"over": ["seed"]},
        {"settings_of_runs": 3},
        {"settings_of_runs": [{"setting": "a"}]},
        {"settings_of_runs": [{"setting": "a", "runs": [{"path": "b"}]}]},
        {"settings_of_runs": [{"setting": "a", "runs": [{**_first(report), "values": {"h_ratio": "x"}}]}]},
        {"settings_of_runs": [{"setting": "a", "runs": [{**_first(report), "values": {"val_loss": [1.0]}}]}]},
    ):  # fmt: skip
        bad = tmp_path / "bad.json"
        bad.write_text(json.dumps(report | change))
        with pytest.raises(InputError, match="is no report of a sweep") as told:
            read_sweeps([bad])
        assert "\n" not in str(told.value)
    report["settings_of_runs"][0]["runs"][0]["values"]["h_ratio"] = [10**400]
    (tmp_path / "bad.json").write_text(json.dumps(report))
    with pytest.raises(InputError, match="not readable JSON .a number of 401 digits"):
        read_sweeps([tmp_path / "bad.json"])
    report = json.loads(good.read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps(report | {"over": "lr"}))
    with pytest.raises(InputError, match="average over seed, lr"):
        read_sweeps([good, other])


def _first(report) -> dict:
    return report["settings_of_runs"][0]["runs"][0]


def test_the_command(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    files = [str(stored(tmp_path, (0,))), str(stored(tmp_path, (1,)))]
    monkeypatch.setattr(sys, "argv", ["analyze.variants", "--read", *files, "--out", str(out)])
    variants.main()
    assert "4 runs in 2 settings" in capsys.readouterr().out
    assert {p.name for p in out.iterdir()} >= {"report.html", "variants_sweep.json", "variants_sweep.md", "figures"}  # fmt: skip
    again = read_sweeps([out / "variants_sweep.json"])[1]
    assert (out / "variants_sweep.md").read_text() == sweep_markdown(again) + "\n"
    monkeypatch.setattr(sys, "argv", ["analyze.variants", "--read", *files, "--ckpt", "planted"])
    with pytest.raises(InputError, match="give no other flag but --out"):
        variants.main()


@pytest.mark.parametrize("part", ["variants", "settings", "long"])
def test_the_tables_of_the_documentation_are_those_of_its_files(part):
    files = sorted((REPOSITORY / "docs" / "section5" / part).glob("*.json"))
    page = (REPOSITORY / "docs" / "section5.md").read_text(encoding="utf-8")
    assert files and sweep_markdown(read_sweeps(files)[1]) in page


@pytest.mark.parametrize("part", ["settings", "long"])
def test_where_attention_goes_is_told_as_it_was_measured(part):
    section5 = REPOSITORY / "docs" / "section5"
    files = sorted((section5 / "attention" / part).glob("*.json"))
    command = [sys.executable, str(section5 / "where_attention_goes.py"), "--read", *map(str, files)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    page = (REPOSITORY / "docs" / "section5.md").read_text(encoding="utf-8")
    assert files and done.stdout in page


@pytest.mark.parametrize("value", ["1e400", "1e308", "-1e308", "null", '"inf"'])
def test_numbers_that_cannot_be_averaged(value, tmp_path, recwarn):
    """Whoever wrote them: they are n/a, and nothing warns."""
    file = stored(tmp_path, (0, 1))
    report = json.loads(file.read_text())
    report["settings_of_runs"][0]["runs"][0]["values"]["h_ratio"][1] = "HERE"
    file.write_text(json.dumps(report).replace('"HERE"', value))
    _, groups = read_sweeps([file])
    assert np.isfinite(
        over_runs(groups[report["settings_of_runs"][0]["setting"]])["h_ratio"].mean
    ).tolist() == [True, False, True]
    table = sweep_markdown(groups)
    assert "n/a" in table and "nan" not in table and "inf" not in table
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]
