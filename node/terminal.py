"""The terminal as `cli.py` uses it: tables, facts, progress, questions, one JSON document.

Results go to stdout, everything else to stderr. Colours and bars appear only on a terminal.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from leaves.ports import Progress

from .errors import OwnerError
from .told import Told


class Terminal:
    """One command's output. With `as_json` nothing is printed but the document."""

    def __init__(self, as_json: bool) -> None:
        self._json = as_json
        wide = None if sys.stdout.isatty() else 300  # a pipe has no edge to wrap at
        self._out = Console(highlight=False, soft_wrap=True, width=wide)
        self._err = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self.events: list[dict[str, Any]] = []

    @property
    def interactive(self) -> bool:
        return self._out.is_terminal

    def line(self, text: str) -> None:
        if not self._json and text:
            self._out.print(text, markup=False)

    def facts(self, facts: Iterable[tuple[str, str]]) -> None:
        """Names and values, one a line."""
        facts = list(facts)
        width = max((len(name) for name, _ in facts), default=0)
        for name, value in facts:
            self.line(f"{name:<{width}}  {value}")

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        if self._json:
            return
        table = Table(*columns, box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*[str(cell) for cell in row])
        self._out.print(table)

    def event(self, told: Told) -> None:
        self.events.append(msgspec.to_builtins(told))
        self.line(told.text)

    def progress(self, progress: Progress) -> None:
        """Show how far a long job is; nothing off a terminal or with --json."""
        if self._json or not self._err.is_terminal:
            return
        if self._bars is None:
            self._bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                TimeRemainingColumn(),
                console=self._err,
                transient=True,
            )
            self._bars.start()
            atexit.register(self._bars.stop)  # an error or Ctrl-C must give the cursor back
        if progress.phase not in self._tasks:
            self._tasks[progress.phase] = self._bars.add_task(progress.phase, detail="")
        task = self._tasks[progress.phase]
        self._bars.update(
            task, completed=progress.done, total=progress.total, detail=progress.detail
        )
        if progress.done >= progress.total:
            self._bars.remove_task(self._tasks.pop(progress.phase))

    def ask(self, question: str) -> bool:
        """Yes or no; no if nobody is there to answer."""
        if not sys.stdin.isatty():
            self._err.print(f"{question} Nobody to ask: add --yes to go on.", markup=False)
            return False
        self._err.print(f"{question} [y/N] ", end="", markup=False)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def done(self, data: dict[str, Any], text: str = "") -> None:
        """End the command: the document with --json, else the closing line."""
        if self._bars is not None:
            self._bars.stop()
        if self._json:
            sys.stdout.write(msgspec.json.encode(data).decode() + "\n")
        else:
            self.line(text)

    @staticmethod
    def interrupted() -> None:
        Console(stderr=True).print("interrupted; the same command goes on from what was reached")

    @staticmethod
    def error(problem: OwnerError) -> None:
        """What happened, what was left unchanged, what to do next."""
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print("[bold red]error:[/] ", end="")
        console.print(problem.what, markup=False)
        for text in (problem.unchanged, problem.next_step):
            if text:
                console.print(text, markup=False)
