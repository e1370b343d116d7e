"""What is kept of a fault of our own: where it happened, and none of what the node was working on.

A traceback as Python prints it may quote a prompt: in the message of a ValueError, in a local
value. A report here has the places alone, the messages of those errors only whose text is made of
names in code, the settings that are numbers or choices, and the log's own phrases. It is written in
the home for the owner to read and to pass on by hand; nothing is sent anywhere.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import platform
import re
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from types import TracebackType

from . import logfile
from .clock import Clock, SystemClock
from .errors import OwnerError
from .home import PRIVATE_FILE, private_dir, write_atomic

log = logging.getLogger(__name__)

FOLDER = "crashes"
HARD_FILE = "hard.txt"  # written by the interpreter itself, when not even Python goes on
REPORTS_MAX = 10
FRAMES_MAX = 60
CHAIN_MAX = 8
LOG_LINES = 40
LOG_CHARS_MAX = 300
HARD_BYTES_MAX = 64 << 10
TRACEBACK_VARIABLE = "GROOVE_TRACEBACK"  # set: Python's own traceback instead, for who mends it
# Errors whose messages are made by the interpreter, of names in code. Any other may quote a text.
_NAMED_ONLY = (NameError, AttributeError, RecursionError, MemoryError)
_LOGGED = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+ [A-Z]+ [\w.]+ ")
_SAID = re.compile(r"\b(problem|why|reason|error)=(?=\S+\s).*")  # more than one word
_PROJECT = Path(__file__).resolve().parent.parent


def report(problem: BaseException, home: Path, command: str, clock: Clock | None = None) -> Path:
    """Write a report, and forget the oldest beyond REPORTS_MAX. Raises OSError or OwnerError.

    command: the command's own name; what else was typed may be a text.
    """
    folder = private_dir(home / FOLDER)
    now_s = (clock or SystemClock()).now_s()
    path = folder / f"{int(now_s * 1000)}-{os.getpid()}.txt"
    write_atomic(path, text_of(problem, home, command).encode(errors="replace"), PRIVATE_FILE)
    for old in sorted(reports(home))[:-REPORTS_MAX]:
        old.unlink(missing_ok=True)
    return path


def reports(home: Path) -> list[Path]:
    """The reports of this home, oldest first."""
    return sorted((home / FOLDER).glob("[0-9]*-*.txt"))


def text_of(problem: BaseException, home: Path, command: str) -> str:
    """A report, as it is written."""
    parts = [
        "groove-node has failed by a fault of its own. This report holds no prompt, no answer and",
        "no key. It was not sent to anybody.",
        "",
        *(f"{name:<10}{value}" for name, value in _facts(command)),
        "",
        *_told(problem),
        "",
        "settings that differ from the defaults (texts are not shown):",
        *(_settings(home) or ["  none"]),
        "",
        "last lines of the log:",
        *(_log_lines(home) or ["  none"]),
    ]
    return "\n".join(parts) + "\n"


def in_short(problem: BaseException) -> str:
    """The error and its place, in a line."""
    while isinstance(problem, BaseExceptionGroup):
        problem = problem.exceptions[0]
    *_, place = ["an unknown place", *_frames(problem.__traceback__)]
    return f"{type(problem).__name__} in {place.strip()}"


def at_length(problem: BaseException) -> str:
    """What it was, and every place on its way, for a log: no message that might quote a text."""
    return "\n".join(_told(problem))


def _facts(command: str) -> Iterator[tuple[str, str]]:
    try:
        yield "version", version("groove-node")
    except PackageNotFoundError:
        yield "version", "not installed"
    yield "command", command
    yield "python", platform.python_version()
    yield "platform", f"{platform.system()} {platform.release()} {platform.machine()}"


# Where it happened


def _told(problem: BaseException) -> Iterator[str]:
    """The error, what it came of, and what is in it if it is a group. Bounded."""
    waiting, seen = [(problem, "")], set[int]()
    while waiting and len(seen) < CHAIN_MAX:
        each, how = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield f"{how}{type(each).__module__}.{type(each).__qualname__}: {_message(each)}"
        yield from islice(_frames(each.__traceback__), FRAMES_MAX)
        if isinstance(each, BaseExceptionGroup):
            waiting += [(inner, "in it: ") for inner in each.exceptions]
        if each.__cause__ is not None:
            waiting.append((each.__cause__, "because of: "))
        elif each.__context__ is not None and not each.__suppress_context__:
            waiting.append((each.__context__, "while handling: "))


def _message(problem: BaseException) -> str:
    match problem:
        case OSError() if problem.errno is not None:  # its text may name a file of the owner's
            return os.strerror(problem.errno)
        case sqlite3.Error():
            return str(getattr(problem, "sqlite_errorname", "(left out)"))
        case ImportError():  # its text may name a folder
            return f"cannot import {problem.name}"
        case _ if type(problem) in _NAMED_ONLY:
            return str(problem)[:LOG_CHARS_MAX]
    return "(its text is left out: it might quote what was worked on)"


def _frames(trace: TracebackType | None) -> Iterator[str]:
    """file:line in function, from the outermost on."""
    while trace is not None:
        code = trace.tb_frame.f_code
        yield f"  {_short(code.co_filename)}:{trace.tb_lineno} in {code.co_qualname}"
        trace = trace.tb_next


def _short(filename: str) -> str:
    """A path without the owner's folders."""
    path = Path(filename)
    if path.is_relative_to(_PROJECT):
        inside = path.relative_to(_PROJECT)
        if inside.parts[0] in ("node", "gossip", "leaves", "router", "simnet"):
            return str(inside)
    for mark in ("site-packages", f"python{sys.version_info[0]}.{sys.version_info[1]}"):
        if mark in path.parts:
            return str(Path(*path.parts[path.parts.index(mark) + 1 :]))
    return path.name


# What the node was like


def _settings(home: Path) -> list[str]:
    """Numbers and choices that the owner has set; of texts, that they are set."""
    from . import settings
    from .config import Config, load

    try:
        found = settings.values(load(home))
    except (OwnerError, OSError):
        return ["  groove.toml cannot be read"]
    default = settings.values(Config())
    changed = {name: value for name, value in found.items() if value != default[name]}
    return [
        f"  {name} = {value if isinstance(value, bool | int | float) else '(set)'}"
        for name, value in changed.items()
    ]


def _log_lines(home: Path) -> list[str]:
    """The node's own phrases: no tracebacks, and of messages of others one word at most."""
    try:
        with (home / logfile.FILE).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - HARD_BYTES_MAX))
            lines = file.read(HARD_BYTES_MAX).decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    own = [line for line in lines if _LOGGED.match(line)][-LOG_LINES:]
    return ["  " + _SAID.sub(r"\1=(left out)", line)[:LOG_CHARS_MAX].rstrip() for line in own]


# A running node


def watch(home: Path) -> None:
    """For a node that runs: report what ends a thread, and have the interpreter say where it was
    when it dies by a signal."""

    def ended(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is None or issubclass(args.exc_type, SystemExit):
            return
        log.error("thread failed place=%s", in_short(args.exc_value))
        with suppress(OSError, OwnerError):  # the log has said it
            report(args.exc_value, home, "run")

    threading.excepthook = ended
    try:
        path = private_dir(home / FOLDER) / HARD_FILE
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, PRIVATE_FILE)
        if os.fstat(descriptor).st_size > HARD_BYTES_MAX:
            os.ftruncate(descriptor, 0)
        file = os.fdopen(descriptor, "ab", buffering=0)
    except (OSError, OwnerError) as problem:  # a file in the folder's place, a full disk
        log.warning("no file for hard crashes problem=%s", type(problem).__name__)
        return
    faulthandler.enable(file)  # keeps it open; writes functions and lines alone
