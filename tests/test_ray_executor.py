"""Work away from the caller on Ray, by the contract of all executors.

One Ray serves the whole module: to start it takes longer than all tests together.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from support_executors import ChildContract

from leaves.ports import Executor
from node.ray_executor import RayExecutor

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.network,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray, the extra `ray`, is not installed"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayExecutor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        executor = RayExecutor(workers=2)
        yield executor
        executor.close()


@pytest.fixture
def executor(cluster: RayExecutor) -> Iterator[Executor]:
    """One that shares the module's Ray; closing it leaves the others."""
    made = RayExecutor(workers=1)
    yield made
    made.close()


class TestRay(ChildContract):
    """The contract."""


def test_it_listens_on_loopback_alone(cluster: RayExecutor) -> None:
    assert cluster.address.startswith("127.0.0.1:")
