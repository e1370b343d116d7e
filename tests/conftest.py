"""What holds for every test: what is remembered outside a home goes to a folder of the run's own.

The cache does so in part: models that were converted for the user serve the tests too, but what a
recipe remembers of canaries, the tests' tiny models among them, stays out of the user's folder.

Set when this file is read, before a test imports anything, so that child processes have it too.
And no property fails for its time: Hypothesis by itself allows an example 200 ms.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from node.home import groove_cache

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

_WORKER = "PYTEST_XDIST_WORKER" in os.environ  # it has the folder of the process that started it


def _cache() -> str:
    """A folder with all of the user's cache in it but the canaries, of which it has a copy."""
    users, own = groove_cache(), Path(tempfile.mkdtemp(prefix="groove-cache-"))
    (users / "chassis").mkdir(mode=0o700, exist_ok=True)  # so that a first conversion is kept
    for entry in users.iterdir():
        if entry.name != "canaries" and not entry.name.startswith("."):
            (own / entry.name).symlink_to(entry)
    (own / "canaries").mkdir(mode=0o700)
    for known in (users / "canaries").glob("*.json"):
        shutil.copy(known, own / "canaries")
    return str(own)


os.environ["GROOVE_API_LISTEN"] = ""  # nodes of tests would want the same port; some set it anew
if not _WORKER:
    os.environ["GROOVE_STATE"] = tempfile.mkdtemp(prefix="groove-state-")
    os.environ["GROOVE_CACHE"] = _cache()


def pytest_unconfigure() -> None:
    if not _WORKER:
        for folder in ("GROOVE_STATE", "GROOVE_CACHE"):
            shutil.rmtree(os.environ[folder], ignore_errors=True)


FILES_MANY = 200


@pytest.fixture(scope="module", autouse=True)
def files_are_closed() -> Iterator[None]:
    """Stores of homes that no test uses any more hold files until memory is swept."""
    yield
    open_files = Path("/proc/self/fd")
    if open_files.is_dir() and len(list(open_files.iterdir())) > FILES_MANY:
        gc.collect()
