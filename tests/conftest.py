"""What holds for every test: what is remembered outside a home goes to a folder of the run's own.

Set when this file is read, before a test imports anything, so that child processes have it too.
"""

from __future__ import annotations

import os
import shutil
import tempfile

_WORKER = "PYTEST_XDIST_WORKER" in os.environ  # it has the folder of the process that started it
if not _WORKER:
    os.environ["GROOVE_STATE"] = tempfile.mkdtemp(prefix="groove-state-")


def pytest_unconfigure() -> None:
    if not _WORKER:
        shutil.rmtree(os.environ["GROOVE_STATE"], ignore_errors=True)
