"""Sessions from the docstrings of installed packages: the source that every machine has.

The packages are parsed, never imported. The ask names the library and the call; the answer is the
call's place and signature, and the first paragraph of its docstring.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import inspect
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from leaves.ports import Progress, Report, silent
from node.capture.quality import Outcome
from node.capture.record import ContentType
from node.capture.terms import Terms

from .source import SourceError, SourceSession, Turn

SOURCE = "pydoc"
PARAGRAPH_CHARS_MIN = 40
ARGUMENTS_CHARS_MAX = 200
FILE_BYTES_MAX = 4 * 2**20  # larger ones are tables

_ROLE = re.compile(r":[A-Za-z][\w:+.-]*:`~?([^`<]*?)\s*(?:<[^`>]*>)?`")
_TICKS = re.compile(r"`+")
_SPACE = re.compile(r"\s+")
_TESTS = frozenset({"tests", "test", "testing", "conftest"})


@dataclass(frozen=True, slots=True)
class _Entry:
    """One documented public name."""

    module: str
    name: str  # Class.method or function
    arguments: str
    paragraph: str


class PydocSource:
    """Reads packages by name; sorted and the same at every reading. `unreadable` counts files."""

    def __init__(self, packages: Sequence[str], report: Report = silent) -> None:
        self._packages = sorted(set(packages))
        self._report = report
        self.unreadable = 0

    def __iter__(self) -> Iterator[SourceSession]:
        """Yield one session per documented name. Raises SourceError for an unknown package."""
        self.unreadable = 0
        roots = {package: _root(package) for package in self._packages}
        seen: set[str] = set()  # keys, asks and paragraphs, in lower case
        for package, root in roots.items():
            made_by = _made_by(package)
            for entry in self._entries(package, root):
                ask = f"In {package}, what does {entry.name}({entry.arguments}) do?"
                key = f"{entry.module}.{entry.name}"
                traits = {text.lower() for text in (key, ask, entry.paragraph)}
                if traits & seen:
                    continue
                seen |= traits
                place = f"{key}({entry.arguments})"
                answer = f"{place}\n{entry.paragraph}"
                yield SourceSession(
                    key=key,
                    turns=(
                        _turn("ask", ContentType.PROMPT, ask, made_by),
                        _turn("answer", ContentType.COMPLETION, answer, made_by),
                    ),
                    group=entry.module,
                    outcome=Outcome.ACCEPTED,  # somebody keeps it as the answer to this
                )

    def _entries(self, package: str, root: Path) -> Iterator[_Entry]:
        files = [root] if root.is_file() else sorted(root.rglob("*.py"))
        for done, path in enumerate(files):
            module = _module(package, root, path)
            if _TESTS.isdisjoint(module.split(".")):
                yield from self._entries_of(module, path)
            self._report(Progress(f"read {package}", done + 1, len(files)))

    def _entries_of(self, module: str, path: Path) -> Iterator[_Entry]:
        try:
            if path.stat().st_size > FILE_BYTES_MAX:
                raise ValueError("larger than any module")
            with warnings.catch_warnings():  # old escapes in strings are not ours to mend
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_bytes())
        except (OSError, ValueError, SyntaxError, RecursionError):
            self.unreadable += 1
            return
        for node in tree.body:
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    yield from _entry(module, node.name, node, method=False)
                case ast.ClassDef():
                    yield from _entry(module, node.name, node, method=False)
                    if node.name.startswith("_"):
                        continue
                    for member in node.body:
                        if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
                            name = f"{node.name}.{member.name}"
                            yield from _entry(module, name, member, method=True)


def _turn(key: str, kind: ContentType, text: str, made_by: str) -> Turn:
    return Turn(key, kind, text, None, SOURCE, made_by, Terms.OPEN.value)


def _entry(
    module: str,
    name: str,
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef,
    *,
    method: bool,
) -> Iterator[_Entry]:
    paragraph = _first_paragraph(ast.get_docstring(node, clean=False) or "")
    if len(paragraph) < PARAGRAPH_CHARS_MIN or any(p.startswith("_") for p in name.split(".")):
        return
    arguments = "" if isinstance(node, ast.ClassDef) else _arguments(node.args, method)
    if len(arguments) <= ARGUMENTS_CHARS_MAX:
        yield _Entry(module, name, arguments, paragraph)


def _first_paragraph(docstring: str) -> str:
    """The first paragraph on one line, without roles and backticks."""
    opening = re.split(r"\n\s*\n", inspect.cleandoc(docstring), maxsplit=1)[0]
    return _SPACE.sub(" ", _TICKS.sub("", _ROLE.sub(r"\1", opening))).strip()


def _arguments(args: ast.arguments, method: bool) -> str:
    names = [arg.arg for arg in (*args.posonlyargs, *args.args)]
    if method and names[:1] in (["self"], ["cls"]):
        names = names[1:]
    if args.vararg:
        names.append(f"*{args.vararg.arg}")
    names += [arg.arg for arg in args.kwonlyargs]
    if args.kwarg:
        names.append(f"**{args.kwarg.arg}")
    return ", ".join(names)


def _root(package: str) -> Path:
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except ValueError:
        spec = None
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    if spec is not None and spec.origin and spec.origin.endswith(".py"):
        return Path(spec.origin)
    raise SourceError(
        f"package {package!r} has no Python files here: it is not installed, or is not Python",
        unchanged="Nothing was imported.",
        next_step="Name packages as you import them, for example networkx.",
    )


def _module(package: str, root: Path, path: Path) -> str:
    if root.is_file():
        return package
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts)))


def _made_by(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return package
