"""Work away from the caller on Ray, by the contract of all executors.

One Ray serves the module: to start it takes longer than most of the tests together.
"""

from __future__ import annotations

import ipaddress
import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest
from support_executors import ChildContract, TrainingContract

from leaves.discover import default_clusterer
from leaves.model import Matrix, unit
from leaves.ports import ClusterSizes, Executor
from node.config import ExecutorConfig
from node.executors import ChildClusterer, ExecutorClosedError, ProcessExecutor
from node.frames import ASIDE_BYTES_MIN
from node.ray_executor import RayError, RayExecutor
from node.spreading import clusterer_on_ray, spread

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


class TestRay(ChildContract, TrainingContract):
    """The contract."""


def test_it_listens_on_loopback_alone(cluster: RayExecutor) -> None:
    assert cluster.submit(abs, -1).result() == 1
    listening = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in psutil.Process().children(recursive=True)
        for connection in _connections(process)
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening
    assert {ip for ip in listening if not ipaddress.ip_address(ip).is_loopback} == set()


def _connections(process: psutil.Process) -> list[psutil._common.pconn]:
    try:
        return process.net_connections("tcp")
    except psutil.Error:  # it ended meanwhile
        return []


def test_its_files_are_the_owners_alone(cluster: RayExecutor) -> None:
    import ray

    folder = Path(ray._private.worker._global_node.get_temp_dir_path())
    assert folder.parent.name.startswith("groove-ray-")
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700


def test_a_read_only_array_is_put_in_its_memory_once(cluster: RayExecutor) -> None:
    array = np.ones((ASIDE_BYTES_MIN, 2), np.float32)
    array.flags.writeable = False
    held = cluster._runners[0]._held  # type: ignore[attr-defined]
    assert held.reference(array) == held.reference(array)
    assert held.reference(array.copy()) != held.reference(array)
    known = len(held._known)
    del array
    assert len(held._known) == known - 1, "and let go with the array"


def test_clusters_found_on_it_are_those_found_in_children(cluster: RayExecutor) -> None:
    vectors = _vectors()
    ids = [f"s{n:04}" for n in range(len(vectors))]
    sizes = ClusterSizes(branch=60, domain=40, specialisation=20)
    on_ray = ChildClusterer(partial(clusterer_on_ray, cluster.address), threads=1)
    assert on_ray.cluster(ids, vectors, sizes) == default_clusterer().cluster(ids, vectors, sizes)


def _vectors() -> Matrix:
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(4, 384))
    rows = np.repeat(centres, 60, axis=0) + rng.normal(0, 0.6, (240, 384))
    return unit(rows.astype(np.float32))


def test_groove_toml_names_it(cluster: RayExecutor) -> None:
    with spread(ExecutorConfig(kind="ray", workers=1)) as rays:
        assert rays is not None and rays.ray == cluster.address
        assert rays.executor.submit(abs, -5).result() == 5
    assert not isinstance(rays.executor, ProcessExecutor)
    with pytest.raises(ExecutorClosedError):
        rays.executor.submit(abs, 1)


@pytest.mark.slow
def test_it_says_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """In a process of its own, which stands in a folder whose modules must shadow nothing."""
    (tmp_path / "leaves.py").write_text("raise SystemExit('shadowed')\n")
    code = """
        import os, signal, tempfile
        from pathlib import Path
        from node.ray_executor import RayExecutor
        before, terminated = dict(os.environ), signal.getsignal(signal.SIGTERM)
        executor = RayExecutor(workers=1)
        assert executor.submit(divmod, 17, 5).result() == (3, 2)
        import psutil, ray
        folder = Path(ray._private.worker._global_node.get_temp_dir_path())
        running = psutil.Process().children(recursive=True)
        executor.close()
        assert folder.is_absolute() and not folder.parent.exists()
        assert signal.getsignal(signal.SIGTERM) == terminated
        assert {k: v for k, v in os.environ.items() if "RAY_AUTH" in k} == {}
        assert os.environ.get("OMP_NUM_THREADS") == before.get("OMP_NUM_THREADS")
        _, alive = psutil.wait_procs(running, timeout=60)
        assert not alive, alive
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if "RAY" not in k} | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.slow
def test_a_ray_that_cannot_be_reached_is_told(tmp_path: Path) -> None:
    code = """
        from node.ray_executor import RayError, RayExecutor
        try:
            RayExecutor("127.0.0.1:9")
        except RayError as problem:
            assert "127.0.0.1:9" in problem.what and "address" in problem.next_step
        else:
            raise AssertionError
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, check=True)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RayError) as told:
        RayExecutor()
    assert "groove-node[ray]" in told.value.next_step
