"""All of capture that is loaded while capture is off.

The hot path tests one variable and never calls a function to learn that there is nothing to do:

    from node import gate

    if (queue := gate.queue) is not None:
        queue.offer(CaptureItem(session_id, prompt, "prompt"))

`capture_gate` sets the variable. The daemon calls it at start, after each change of consent, and
every few seconds, because another process may have changed consent. `node.capture` is imported only
once the flag file says that somebody here consented.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from .home import FLAG_FILE, home_path

if TYPE_CHECKING:
    from .capture.queue import CaptureQueue


queue: CaptureQueue | None = None
_lock = threading.Lock()


def capture_gate() -> CaptureQueue | None:
    """Look at the flag, start or stop the process's queue accordingly, and return it."""
    global queue
    with _lock:
        if not (home_path() / FLAG_FILE).exists():
            # Consent ended: what is still queued meets the intake's own check and is dropped there.
            _close(timeout_s=0.0)
        elif queue is None:
            from .capture.queue import open_queue

            queue = open_queue()
        return queue


def close_gate(timeout_s: float) -> None:
    """Stop the queue, waiting up to `timeout_s` for what was offered to reach the corpus."""
    with _lock:
        _close(timeout_s)


def _close(timeout_s: float) -> None:
    global queue
    stopping, queue = queue, None
    if stopping is not None:
        stopping.close(timeout_s)
