"""The command line: `groove-node`. Alone prints; every command is a few lines over `app.App`."""

from __future__ import annotations

import logging
import os
import resource
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import suppress

try:
    import cyclopts

    from node.errors import OwnerError
    from node.terminal import Terminal

    from . import (
        approve,
        ask,
        completion,
        config,
        consent,
        dashboard,
        data,
        export_leaf,
        keys,
        leaves,
        lifecycle,
        mesh,
        night,
        pictures,
        process,
        registry,
        route,
        scrub,
        service,
        sources,
        train,
        uninstall,
    )
    from .base import command
    from .misuse import misuse
except KeyboardInterrupt:  # Ctrl-C in the second that loading takes
    sys.stderr.write("interrupted\n")
    sys.exit(130)

__all__ = [
    "approve",
    "ask",
    "command",
    "completion",
    "config",
    "consent",
    "dashboard",
    "data",
    "export_leaf",
    "keys",
    "leaves",
    "lifecycle",
    "main",
    "mesh",
    "night",
    "pictures",
    "process",
    "registry",
    "route",
    "scrub",
    "service",
    "sources",
    "train",
    "uninstall",
]


STDIN = "/dev/stdin"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. Exit codes: 0 done, 1 failed, 2 misused or misconfigured, 130 Ctrl-C."""
    logging.basicConfig(level=logging.WARNING, format="warning: %(message)s")
    # A core dump would hold texts that are not scrubbed yet.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    given = sys.argv[1:] if arguments is None else arguments
    given = [STDIN if each == "-" else each for each in given]  # the parser takes - for an option
    try:
        command(given, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as problem:
        Terminal.error(misuse(problem))
        sys.exit(2)
    except OwnerError as problem:
        Terminal.error(problem)
        sys.exit(problem.exit_code)
    except BrokenPipeError:  # `| head` has read enough
        sys.exit(0)
    except (OSError, sqlite3.OperationalError) as problem:  # a full disk, a read-only home
        Terminal.error(
            OwnerError(
                str(problem),
                unchanged="What was written before stands, and is whole.",
                next_step="Mend the file or the disk, and run the command again; "
                "`groove-node doctor` looks at both.",
            )
        )
        sys.exit(1)
    except KeyboardInterrupt:
        Terminal.interrupted()
        sys.exit(130)
    except Exception as problem:  # a fault of our own
        from node import crash

        if os.environ.get(crash.TRACEBACK_VARIABLE):
            raise
        Terminal.error(_fault(problem, given))
        sys.exit(1)


def _fault(problem: Exception, given: Sequence[str]) -> OwnerError:
    """What is said of a fault that nobody foresaw, with a report of it in the home."""
    from node import crash
    from node.home import home_path

    name = given[0] if given and given[0] in command else ""
    where = "There is no home to keep a report in"
    with suppress(OSError, OwnerError):
        if home_path().is_dir():
            path = crash.report(problem, home_path(), name)
            where = f"{path} says where, without texts, keys or values; nothing was sent"
    return OwnerError(
        f"`groove-node {name}` has failed by a fault of its own: {crash.in_short(problem)}",
        unchanged="What was written before stands, and is whole.",
        next_step=f"{where}. {crash.TRACEBACK_VARIABLE}=1 shows Python's own traceback.",
    )
