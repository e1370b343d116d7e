"""Waits until what is being written to the corpus is written: a withdrawal is over only then.

Who writes asks for consent in its turn (see `TrainingCorpus.add_record`). So once a withdrawal is
recorded, only a turn that had begun before can still bring texts in; when that has passed, no text
comes in any more. Known to consent, which must not load capture to say no.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

CORPUS: Final = "training_data"  # in the home
LOCK: Final = ".lock"  # in the corpus; held by whoever writes
WAIT_S: Final = 10.0  # a turn takes less than a second; a deletion from gigabytes takes longer
_POLL_S: Final = 0.005


def wait_for_writers(home: Path) -> bool:
    """Wait for the turn that is under way, if any; False if it has not ended within WAIT_S."""
    try:
        fd = os.open(home / CORPUS / LOCK, os.O_RDWR)
    except FileNotFoundError:  # nothing was ever captured here
        return True
    except OSError as problem:
        log.warning("writers not waited for reason=%s", problem.strerror)
        return False
    try:
        return _turn_comes(fd)
    finally:
        os.close(fd)


def _turn_comes(fd: int) -> bool:
    end = time.monotonic() + WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                log.warning("the corpus is still being written to after seconds=%g", WAIT_S)
                return False
        time.sleep(_POLL_S)
