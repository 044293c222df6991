"""Runs notebooks without Jupyter, and stores what their cells show: `python -m tests.notebook notebooks/*.ipynb`.

`python -m tests.notebook --owner NAME notebooks/*.ipynb` runs nothing: it writes into links and first cells which GitHub account holds the repository.

A cell shows what it prints and its last expression, a figure as a picture. Where a run takes place (paths, times) does not matter to what is stored: a
notebook should not print it.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure


def run(notebook: dict) -> list[list[Any]]:
    """Execute all code cells in order and replace their outputs; returns what every code cell showed as its last expression."""
    matplotlib.use("agg")
    names: dict = {}
    shown = []
    for number, cell in enumerate(_code(notebook), 1):
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(tree, f"cell {number}", "exec"), names)
            value = None
            if last is not None:
                value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
        cell["outputs"] = _outputs(printed.getvalue(), value, number)
        cell["execution_count"] = number
        shown.append([] if value is None else [value])
    return shown


def _code(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def _outputs(printed: str, value: Any, number: int) -> list[dict]:
    outputs: list[dict] = []
    if printed:
        outputs.append(
            {"output_type": "stream", "name": "stdout", "text": printed.splitlines(True)}
        )
    if value is not None:
        data: dict[str, Any] = {"text/plain": repr(value).splitlines(True)}
        if isinstance(value, Figure):
            picture = io.BytesIO()
            value.savefig(picture, format="png", dpi=72)
            data = {
                "image/png": base64.b64encode(picture.getvalue()).decode(),
                "text/plain": ["a figure"],
            }
        elif hasattr(value, "_repr_html_"):
            # the table is what is seen; the arrays behind it would be most of the file
            data = {
                "text/html": value._repr_html_().splitlines(True),
                "text/plain": [type(value).__name__],
            }
        outputs.append(
            {
                "output_type": "execute_result",
                "data": data,
                "metadata": {},
                "execution_count": number,
            }
        )
    return outputs


def set_owner(notebook: dict, owner: str) -> None:
    """Put the account where none is named yet, and take away the remark that says so."""
    for cell in notebook["cells"]:
        lines = [line for line in cell["source"] if not line.startswith("*`OWNER`")]
        cell["source"] = [
            line.replace("/OWNER/", f"/{owner}/").replace('OWNER = ""', f'OWNER = "{owner}"')
            for line in lines
        ]


def main() -> None:
    names, owner = sys.argv[1:], ""
    if names[:1] == ["--owner"]:
        owner, names = names[1], names[2:]
    for name in names:
        path = Path(name)
        notebook = json.loads(path.read_text(encoding="utf-8"))
        if owner:
            set_owner(notebook, owner)
        else:
            run(notebook)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
