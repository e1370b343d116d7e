"""The terminal as `cli.py` uses it: tables, facts, progress, questions, one JSON document.

Results go to stdout, everything else to stderr. Colours and bars appear only on a terminal.
"""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from leaves.ports import Progress

from .errors import OwnerError
from .told import Told

CELL_MIN = 12  # characters; narrower ones are no text
NOTE_S = 60.0  # between lines on a long job where no bar can be drawn
LESSON = (  # how the phases begin that take minutes in a training
    "canaries",
    "evaluate",
    "generate",
    "look for training texts",
    "reference",
    "temper",
    "train",
)


class _Out(Console):
    def on_broken_pipe(self) -> None:
        """Let `main` end the command well, where rich would exit with 1."""
        _hush()
        raise BrokenPipeError


def harmless(text: str) -> str:
    """Without what moves the cursor, sets the title or turns the writing round: what is said may
    be a stranger's, by an adapter, a server or the name of a leaf."""
    return "".join(x if x in "\n\t" or x.isprintable() else "\ufffd" for x in text)


def _hush() -> None:
    """Nobody reads any more: what is still written goes nowhere, also at the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _wrapped(
    cells: Iterable[Sequence[str]], widths: list[int], within: int
) -> Iterator[tuple[str, ...]]:
    """Each row as the lines that it takes; `widths` shrink, the widest first, until all fit."""
    while sum(widths) + 2 * (len(widths) - 1) > within and max(widths) > CELL_MIN:
        widths[widths.index(max(widths))] -= 1
    for row in cells:
        parts = [textwrap.wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
        yield from itertools.zip_longest(*parts, fillvalue="")


class Terminal:
    """One command's output. With `as_json` nothing is printed but the document.

    The bars are the process's: whatever is printed takes them off the screen first.
    """

    _bars: ClassVar[Bars | None] = None
    _tasks: ClassVar[dict[str, TaskID]] = {}
    _if_interrupted: ClassVar[str] = ""
    _turn: ClassVar[threading.RLock] = threading.RLock()  # two trainings report side by side

    def __init__(self, as_json: bool, seconds: Callable[[], float] = time.monotonic) -> None:
        self._json = as_json
        Terminal._if_interrupted = "the same command goes on from what was reached"
        wide = None if sys.stdout.isatty() else 300  # a pipe has no edge to wrap at
        self._out = _Out(highlight=False, soft_wrap=True, width=wide)
        self._err = Console(stderr=True, highlight=False, soft_wrap=True)
        self.events: list[dict[str, Any]] = []
        self._seconds = seconds
        self._noted_s = seconds()  # so that what is done within a minute is silent
        self._begun: set[str] = set()  # steps of a lesson, since the last event

    @property
    def interactive(self) -> bool:
        return self._out.is_terminal

    @property
    def width(self) -> int | None:
        """Cells of a line; None where there is no edge."""
        return self._out.width if self.interactive else None

    def styled(self, text: Text) -> None:
        """A line with colours, which appear on a terminal alone."""
        if not self._json:
            self._rest()
            self._out.print(text, no_wrap=True, overflow="ignore", crop=False)

    def line(self, text: str) -> None:
        if not self._json and text:
            self._rest()
            self._out.print(harmless(text) if self._out.is_terminal else text, markup=False)

    def note(self, text: str) -> None:
        """Something beside the result: to stderr, with --json too."""
        self._rest()
        self._err.print(harmless(text), markup=False)

    def facts(self, facts: Iterable[tuple[str, str]]) -> None:
        """Names and values, one a line."""
        facts = list(facts)
        width = max((len(name) for name, _ in facts), default=0)
        for name, value in facts:
            self.line(f"{name:<{width}}  {value}")

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[str]],
        *,
        within: int | None = None,
    ) -> None:
        """within: columns of text that a table of long cells gets where there is no edge."""
        if self._json:
            return
        if not self.interactive:
            cells = [tuple(columns), *(tuple(map(str, row)) for row in rows)]
            widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
            for line in cells if within is None else _wrapped(cells, widths, within):
                padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
                self.line("  ".join(padded).rstrip())
            return
        self._rest()
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in columns:
            widest = max(map(len, name.split()), default=0)
            # An id that is cut short or broken names nothing.
            table.add_column(name, overflow="fold", min_width=widest, no_wrap=name == "ID")
        for row in rows:
            table.add_row(*[Text(str(cell)) for cell in row])  # a peer's word is no markup
        self._out.print(table)

    def event(self, told: Told) -> None:
        """One thing of a command that ends; `done` may give them all."""
        self.events.append(msgspec.to_builtins(told))
        self._begun.clear()  # the next leaf has the same steps
        self.line(told.text)

    def stream(self, told: Told) -> None:
        """One thing of a command that goes on, read or not: a line, or a document a line."""
        try:
            if self._json:
                sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
                sys.stdout.flush()
            else:
                self.line(told.text)
        except BrokenPipeError:
            _hush()

    def progress(self, progress: Progress) -> None:
        """Show how far a long job is; nothing with --json.

        A total of 0 is not known. "cluster: domains" and "cluster: branches" share one bar. Off a
        terminal a step of a lesson is a line when it begins, and whatever lasts is one a minute.
        """
        if self._json:
            return
        with self._turn:
            if self._err.is_terminal:
                self._draw(progress)
            else:
                self._note_progress(progress)

    def _note_progress(self, progress: Progress) -> None:
        now = self._seconds()
        begins = progress.phase.startswith(LESSON) and progress.phase not in self._begun
        if not begins and now - self._noted_s < NOTE_S:
            return
        self._begun.add(progress.phase)
        self._noted_s = now
        far = f"{progress.done:,} of {progress.total:,}" if progress.total else ""
        self._err.print(
            ", ".join(filter(None, (f"  {progress.phase}", far, progress.detail))), markup=False
        )

    def _draw(self, progress: Progress) -> None:
        if Terminal._bars is None:
            Terminal._bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                TimeRemainingColumn(),
                console=self._err,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            Terminal._bars.start()
            atexit.register(self._rest)  # whatever ends the process gives the cursor back
        bars, job = Terminal._bars, progress.phase.partition(":")[0]
        if job not in self._tasks:
            self._tasks[job] = bars.add_task(progress.phase, total=None, detail="")
        bars.update(
            self._tasks[job],
            description=progress.phase,
            completed=progress.done,
            total=progress.total or None,
            detail=progress.detail,
        )
        if 0 < progress.total <= progress.done:
            bars.remove_task(self._tasks.pop(job))

    @classmethod
    def _rest(cls) -> None:
        """Take the bars off the screen; the next progress draws them anew."""
        with cls._turn:
            if cls._bars is not None:
                cls._bars.stop()
                cls._bars = None
                cls._tasks.clear()

    def ask(self, question: str) -> bool:
        """Yes or no; no if nobody is there to answer."""
        self._rest()
        if not sys.stdin.isatty():
            self._err.print(f"{question} Nobody to ask: add --yes to go on.", markup=False)
            return False
        self._err.print(f"{question} [y/N] ", end="", markup=False)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def done(self, data: dict[str, Any], text: str = "") -> None:
        """End the command: the document with --json, else the closing line."""
        self._rest()
        if self._json:
            sys.stdout.write(msgspec.json.encode(data).decode() + "\n")
        else:
            self.line(text)

    def starts_anew(self, left: str) -> None:
        """Have an interruption say what it left, for a command that keeps nothing half done."""
        Terminal._if_interrupted = f"{left}; the same command starts anew"

    @classmethod
    def interrupted(cls) -> None:
        cls._rest()
        said = f"interrupted; {cls._if_interrupted}" if cls._if_interrupted else "interrupted"
        Console(stderr=True, highlight=False, soft_wrap=True).print(said, markup=False)

    @classmethod
    def error(cls, problem: OwnerError) -> None:
        """What happened, what was left unchanged, what to do next."""
        cls._rest()
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print("[bold red]error:[/] ", end="")
        console.print(harmless(problem.what), markup=False)
        for text in (problem.unchanged, problem.next_step):
            if text:
                console.print(harmless(text), markup=False)
