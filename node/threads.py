"""Ends a thread before its process: one that the interpreter stops inside C++ aborts them both.

CPython ends a daemon thread where it next asks for the interpreter's lock. In an extension's C++
that is an exception in a place that may have none: the process dies with SIGABRT, and a core dump
would hold what the thread was at.
"""

from __future__ import annotations

import ctypes
import threading


def bring_out(thread: threading.Thread, wait_s: float) -> bool:
    """Wait for a thread that was told to stop, and end it at its next line of Python if it has not.

    Returns False if it is still there after twice `wait_s`: then it waits for the system, not in
    an extension, and may end with the process. Nothing that it would have done after is done.
    """
    thread.join(wait_s)
    if thread.is_alive() and thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
        )
        thread.join(wait_s)
    return not thread.is_alive()
