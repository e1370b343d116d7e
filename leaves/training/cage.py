"""Whether code that a model wrote passes tests, found out in a process that can hurt nothing.

Linux only: it needs namespaces (`caged.py` says what is given up). Where they are refused nothing
is run, and the owner learns why.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

CPU_S = 4
WALL_S = 10.0  # a machine that is busy with training gives little of its time
_GRACE_S = 20.0  # for the script to start and to end, beyond what the code may take
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
        "wall_s": wall_s,
        "memory_bytes": MEMORY_BYTES_MAX,
        "no_cage": _NO_CAGE,
    }
    with tempfile.TemporaryDirectory(prefix="groove-cage-", ignore_cleanup_errors=True) as root:
        said, status = _run({**order, "root": root}, len(token) + 1, wall_s + _GRACE_S)
    if status == _NO_CAGE:
        raise NoCageError("this system does not let a process give up its rights")
    return said == token.encode()


def _run(order: dict[str, object], bytes_max: int, wait_s: float) -> tuple[bytes, int]:
    """What the script said, of which no more is read than it should say, and how it ended.

    The script keeps the time itself: were it killed, what it runs could live on without it, for a
    process may lay down the signal of its parent's death. It is killed only if it fails in that.
    """
    with subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(__file__).with_name("caged.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        start_new_session=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            with suppress(BrokenPipeError):  # it ended at once; its status says why
                process.stdin.write(json.dumps(order).encode() + b"\n")
                process.stdin.flush()
            said = _read(process.stdout.fileno(), bytes_max, wait_s)
            with suppress(BrokenPipeError):
                process.stdin.close()  # the script ends, with all that it runs
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
        finally:
            process.kill()
        return said, process.wait()


def _read(pipe: int, bytes_max: int, wait_s: float) -> bytes:
    """Read to the end of a pipe, but no more than this and no longer."""
    poll, said = select.poll(), b""
    poll.register(pipe, select.POLLIN)
    until = time.monotonic() + wait_s
    while len(said) < bytes_max and poll.poll(max(0.0, until - time.monotonic()) * 1000):
        data = os.read(pipe, bytes_max - len(said))
        if not data:
            break
        said += data
    return said


@cache
def available() -> bool:
    """True if code can be kept apart here."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return passes("x = 1", ["assert x == 1"])
    except (NoCageError, OSError):
        return False
