"""What knows what: no room of the library imports one that imports it back, none is most of the code, and each does only its own work."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TREES = {
    path.relative_to(ROOT): ast.parse(path.read_text())
    for package in ("sysout_jax", "analyze", "train")
    for path in sorted((ROOT / package).rglob("*.py"))
}
FILES = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in TREES}
#: No room may be a larger part of all lines.
SHARE = 0.15


def room(module: str) -> str:
    """A package of the library, each analysis apart, or a module that lies beside them; of the command lines all together."""
    package, *rest = module.split(".")
    if package != "sysout_jax" or not rest:
        return package
    analysis = rest[0] == "analyses" and (ROOT / "/".join([package, *rest[:2]])).is_dir()
    return ".".join(rest[:2] if analysis else rest[:1])


def imports(tree: ast.Module) -> set[str]:
    """Modules that running it needs, those inside functions included; not what only types name."""
    found: set[str] = set()
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name if name in FILES else node.module for name in inside}
    return found


def of(*folders: str) -> dict[Path, ast.Module]:
    return {path: tree for path, tree in TREES.items() if path.is_relative_to(Path(*folders))}


def test_no_arrow_upwards():
    """Rooms can be drawn in an order in which each imports only what stands before it."""
    below = defaultdict(set)
    for path, tree in TREES.items():
        own = room(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
        below[own] |= {room(name) for name in imports(tree) if name in FILES} - {own}
    while below:
        lowest = [name for name, others in below.items() if not others & below.keys()]
        assert lowest, {name: sorted(others & below.keys()) for name, others in below.items()}
        for name in lowest:
            del below[name]


def test_no_room_is_most_of_the_code():
    lines: Counter[str] = Counter()
    for path in TREES:
        module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        lines[room(module)] += len((ROOT / path).read_text().splitlines())
    shares = {name: count / lines.total() for name, count in lines.items()}
    assert max(shares.values()) < SHARE, {n: s for n, s in shares.items() if s >= SHARE}


def test_only_command_lines_parse_and_print():
    command_lines = {**of("sysout_jax", "commands"), **of("sysout_jax", "convert")}
    for path in of("sysout_jax").keys() - command_lines.keys():
        assert not imports(TREES[path]) & {"argparse", "tyro"}, path
        calls = (n.func for n in ast.walk(TREES[path]) if isinstance(n, ast.Call))
        assert "print" not in {getattr(called, "id", "") for called in calls}, path


def test_messages_of_the_library_name_no_flags():
    """Flags are the fields of the command lines' dataclasses; docstrings may say what they lead to."""
    command_lines = {**of("sysout_jax", "commands"), **of("sysout_jax", "convert")}
    fields = {
        node.target.id
        for tree in {**command_lines, **of("analyze"), **of("train")}.values()
        for outer in ast.walk(tree)
        if isinstance(outer, ast.ClassDef)
        for node in outer.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    assert {"ckpt", "num_seqs", "accept_setting", "over"} <= fields
    flags = re.compile("--(" + "|".join(name.replace("_", "-") for name in fields) + r")\b")
    for path in of("sysout_jax").keys() - command_lines.keys():
        nodes = list(ast.walk(TREES[path]))
        docstrings = [node.value for node in nodes if isinstance(node, ast.Expr)]
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named = flags.search(node.value)
                assert not named or node in docstrings, (path, node.lineno, named)


@pytest.mark.parametrize("optional", ["torch", "transformers", "huggingface_hub", "wandb"])
def test_what_is_optional_is_imported_where_it_is_used(optional):
    for path, tree in TREES.items():
        top = {alias.name for n in tree.body if isinstance(n, ast.Import) for alias in n.names}
        top |= {n.module or "" for n in tree.body if isinstance(n, ast.ImportFrom)}
        assert optional not in {name.split(".")[0] for name in top}, path
