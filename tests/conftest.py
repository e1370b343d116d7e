"""What holds for every test: what is remembered outside a home goes to a folder of the run's own.

Set when this file is read, before a test imports anything, so that child processes have it too.
And no property fails for its time: Hypothesis by itself allows an example 200 ms.
"""

from __future__ import annotations

import os
import shutil
import tempfile

from hypothesis import HealthCheck, settings

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

_WORKER = "PYTEST_XDIST_WORKER" in os.environ  # it has the folder of the process that started it
if not _WORKER:
    os.environ["GROOVE_STATE"] = tempfile.mkdtemp(prefix="groove-state-")


def pytest_unconfigure() -> None:
    if not _WORKER:
        shutil.rmtree(os.environ["GROOVE_STATE"], ignore_errors=True)
