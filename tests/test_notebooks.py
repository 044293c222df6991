"""The notebooks run from top to bottom and hold what they show: text, tables and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from tests.notebook import main, run

pytestmark = pytest.mark.optimised  # real models: most of the time goes to computing

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


def code(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stored(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    outputs = [output for cell in code(notebook) for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "<Figure size" not in json.dumps(outputs)
    plain = ["".join(output.get("data", output).get("text/plain", "")) for output in outputs]
    assert "/tmp/" not in json.dumps(outputs) and max(map(len, plain)) < 2_000
    # first: where it runs on Colab, and how it is installed there
    first = "".join(notebook["cells"][0]["source"])
    assert "colab.research.google.com" in first and "pip install" in "".join(
        code(notebook)[0]["source"]
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_owner_is_written_by_one_command(path, tmp_path, monkeypatch):
    """Until then a remark says what OWNER is, and the first cell asks for it where it would be needed."""
    text = path.read_text(encoding="utf-8")
    assert "*`OWNER` in the badge's link" in text
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="Write into OWNER"):
        exec("".join(code(json.loads(text))[0]["source"]), {})
    copy = tmp_path / path.name
    copy.write_text(text, encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["notebook", "--owner", "someone", str(copy)])
    main()
    named = json.loads(copy.read_text(encoding="utf-8"))
    assert f"github/someone/sysout_jax/blob/main/notebooks/{path.name})" in "".join(named["cells"][0]["source"])  # fmt: skip
    assert "/OWNER/" not in copy.read_text(encoding="utf-8") and "`OWNER`" not in copy.read_text(encoding="utf-8")  # fmt: skip
    called = []
    monkeypatch.setattr("subprocess.run", lambda command, check: called.append(command[-1]))
    exec("".join(code(named)[0]["source"]), {})
    assert called == ["git+https://github.com/someone/sysout_jax"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(path.read_text(encoding="utf-8"))
    kinds = [[output["output_type"] for output in cell["outputs"]] for cell in code(notebook)]
    shown = run(notebook)
    assert any(isinstance(value, Figure) for values in shown for value in values)
    # what is stored is of the same kind as what this run shows
    assert [[o["output_type"] for o in cell["outputs"]] for cell in code(notebook)] == kinds
