"""House rules that a linter does not know: sizes, docstrings, forbidden calls, pins."""

from __future__ import annotations

import ast
import re
from importlib.metadata import requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("gossip", "leaves", "node", "router", "simnet")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FILE_LINES_MAX, FUNCTION_LINES_MAX = 600, 70


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_module_is_short_and_says_why_it_exists(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= FILE_LINES_MAX
    assert ast.get_docstring(tree), "no module docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LINES_MAX, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_unpickles_and_nothing_swallows_what_it_cannot_name(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"^\s*(import|from) (pickle|cloudpickle|shelve|marshal)\b", text, re.M)
    assert "allow_pickle=True" not in text
    assert not re.search(r"torch\.load\(", text)
    assert not re.search(r"except( Exception)?:\s*\n\s*pass\b", text)


def test_only_the_command_lines_print() -> None:
    printing = {
        name_of(path)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id == "print"
    }
    printing = {name for name in printing if not name.startswith("node/cli/")}
    assert printing <= {"simnet/cli.py", "node/capture/stats.py"}


def test_the_clock_is_read_in_one_place() -> None:
    readers = [
        name_of(path)
        for path in SOURCES
        if re.search(r"\btime\.time\(\)|datetime\.now\(|\.utcnow\(", path.read_text())
    ]
    assert readers == ["node/clock.py"]


def test_top_level_code_folders_are_the_agreed_ones() -> None:
    folders = {
        path.name
        for path in ROOT.iterdir()
        if path.is_dir() and not path.name.startswith(".") and any(path.rglob("*.py"))
    }
    assert folders == {*PACKAGES, "tests"}
    assert not list((ROOT / "tests").rglob("__init__.py")), "a package in tests shadows a real one"


def normalised(requirement: str) -> str:
    return re.split(r"[\s<>=!~;\[(]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def test_the_constraints_hold_all_that_libp2p_asks_for() -> None:
    """libp2p is installed without its dependencies, so nobody else checks that they are there."""
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pinned[normalised(name)] = version
    asked = [r for r in requires("libp2p") or [] if "extra ==" not in r]
    names = {normalised(r) for r in asked} - {"exceptiongroup"}  # only for Python 3.10
    assert names <= pinned.keys()
    exact = {normalised(r): r.partition("==")[2].partition(";")[0].strip() for r in asked}
    differing = {n for n, v in exact.items() if v and n in pinned and pinned[n] != v}
    assert differing == {"fastecdsa"}, "the one pin that is overridden, for its binary wheel"
