"""The documentation builds without a warning, and its command lines name commands and flags that exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from analyze.commands import COMMANDS
from sysout_jax.families import FAMILIES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.slow
def test_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "--site-dir",
            tmp_path / "site",
        ],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "site" / "api" / "index.html").read_text()
    assert "streaming pass" in api or "one layer at a time" in api  # docstrings are there
    assert not re.search(
        r"(src|href)=\"https?://(?!arxiv|squidfunk|www\.mkdocs)[^\"]*\.(js|css|woff2?)\"", api
    )


def test_readme_names_every_family():
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Analyses")[0]
    for name in FAMILIES:
        assert f"`{name}`" in text, name


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_files_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"python -m analyze\.(\w+)", text):
        assert name in COMMANDS, name
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert (page.parent / target).exists(), target
