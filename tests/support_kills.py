"""Dying on purpose: a child process that is killed at its n-th write, fsync or rename."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Run `work` in a child that dies in its n-th such call; False if it came to its end first.

    A write that is died in leaves the first half of its bytes.
    """
    child = os.fork()
    if child == 0:
        try:
            _arm(number)
            work()
        except BaseException:
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the child failed instead of dying"
    return False


def _arm(number: int) -> None:
    calls = 0

    def counted(real: Callable[..., Any], *, half: bool) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                if half:
                    real(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for name in ("write", "fsync", "replace", "unlink", "ftruncate"):
        setattr(os, name, counted(getattr(os, name), half=name == "write"))
