"""Whether code that a model wrote passes tests, found out in a process that can hurt nothing.

Linux only: it needs namespaces (`caged.py` says what is given up). Where they are refused nothing
is run, and the owner learns why.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

CPU_S = 4
WALL_S = 10.0  # a machine that is busy with training gives little of its time
MEMORY_BYTES_MAX = 512 << 20
_NO_CAGE = 77  # exit status of a script that gave up before it ran anything


class NoCageError(Exception):
    """This system cannot keep code apart, so none is run."""


def passes(
    code: str,
    tests: Sequence[str],
    setup: str = "",
    *,
    cpu_s: int = CPU_S,
    wall_s: float = WALL_S,
) -> bool:
    """Run code, then tests; True if none of them raises. Raises NoCageError.

    What takes more time or memory than it may, opens a file, starts a process or ends the
    interpreter is not right.
    """
    token = secrets.token_hex(16)
    order = {
        "setup": setup,
        "code": code,
        "tests": list(tests),
        "token": token,
        "cpu_s": cpu_s,
        "memory_bytes": MEMORY_BYTES_MAX,
        "no_cage": _NO_CAGE,
    }
    with tempfile.TemporaryDirectory(prefix="groove-cage-", ignore_cleanup_errors=True) as root:
        said, status = _run(json.dumps({**order, "root": root}).encode(), len(token) + 1, wall_s)
    if status == _NO_CAGE:
        raise NoCageError("this system does not let a process give up its rights")
    return said == token.encode()


def _run(order: bytes, bytes_max: int, wall_s: float) -> tuple[bytes, int]:
    """What the script said, of which no more is read than it should say, and how it ended."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(__file__).with_name("caged.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        start_new_session=True,
    ) as process:
        timer = threading.Timer(wall_s, process.kill)
        timer.start()
        try:
            assert process.stdin is not None and process.stdout is not None
            with suppress(BrokenPipeError):  # it ended at once; its status says why
                process.stdin.write(order)
                process.stdin.close()
            said = process.stdout.read(bytes_max)
            if len(said) == bytes_max:
                process.kill()
            return said, process.wait()
        finally:
            timer.cancel()
            process.kill()


@cache
def available() -> bool:
    """True if code can be kept apart here."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return passes("x = 1", ["assert x == 1"])
    except (NoCageError, OSError):
        return False
