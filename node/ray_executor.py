"""`leaves.ports.Executor` over Ray: the cores of a cluster, or of this machine as Ray sees it.

Ray is one more way of carrying what `frames` makes of a job. A worker is handed bytes and calls a
function by its name; large arrays go through Ray's shared memory and are not copied. So what may
be sent is the same as with processes, and groove-node must be installed wherever a worker runs.

A Ray that is started here listens on loopback alone, for whoever talks to it can run code as this
user, and wants a token that nobody else has. It keeps its files in a folder of its own, which goes
with it. Nothing but this module imports Ray, and nothing imports this module unless it is asked
for: it costs seconds and about 1 GB.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from leaves.training import launch

from .errors import OwnerError
from .executors import TICK_S, ExecutorClosedError, RunnerExecutor, WorkerDiedError
from .frames import Array, Aside, Done, Job, Raised, packed, unpacked

log = logging.getLogger(__name__)

STORE_BYTES = 1 << 30  # of shared memory for arrays, at most
STORE_BYTES_MIN = 80 << 20  # Ray itself takes no less
SHARED_MEMORY = Path("/dev/shm")
SAID_CHARS_MAX = 300  # of what Ray says of a failure
CONNECT_TIMEOUT_S = 3.0
REMOVE_TRIES, REMOVE_WAIT_S = 20, 0.1
END_TIMEOUT_S = 5.0  # of Ray's processes, once they were told to end
WORKERS_MAX = 256  # jobs at once: each has a thread that waits for it

# Set for as long as Ray is in use, so that a child of this process can join it too.
_ALWAYS: dict[str, str | None] = {"RAY_USAGE_STATS_ENABLED": "0"}
_ALONE: dict[str, str | None] = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # whatever the system: listen on loopback alone
    "RAY_AUTH_MODE": None,  # unset: Ray itself then decides to ask for the token
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # one for the process: Ray reads it once
}
_FOR_WORKERS = (
    "PYTHONPATH",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "HF_HUB_OFFLINE",
    "TOKENIZERS_PARALLELISM",
)


class RayError(OwnerError):
    """Ray is not installed, or cannot be reached or started."""


class RayExecutor(RunnerExecutor):
    """Runs jobs as tasks of Ray, one core each; errors and ends are those of ProcessExecutor.

    Arrays of a job that are larger than `frames.ASIDE_BYTES_MIN` arrive read-only. One process has
    one Ray: while an executor is open, another one shares its Ray, and must be closed before it.
    """

    def __init__(self, address: str = "", *, workers: int = 0, threads: int = 1) -> None:
        """Raises RayError.

        address: of a cluster, as Ray writes it; empty starts one here. workers: jobs at once; 0
        means a job for each core. threads: of one job, for the libraries that ask OpenMP.
        """
        undo = _start(address, workers, threads)
        self._started: Callable[[], None] = undo or (lambda: None)
        try:
            ray = _ray()
            cores = int(ray.cluster_resources().get("CPU", 1))
            task = ray.remote(num_cpus=1, max_retries=0)(_carry_out)
            held = _Held(ray)
            count = min(workers or cores, WORKERS_MAX)
            super().__init__([_Slot(ray, task, held, undo is None) for _ in range(max(1, count))])
        except BaseException:
            self._started()
            raise

    @property
    def address(self) -> str:
        """Where another process of this machine finds the same Ray."""
        address: str = _ray().get_runtime_context().gcs_address
        return address

    def close(self) -> None:
        """Kill what runs, and end Ray if it was started for this executor."""
        super().close()
        self._started()


class _Slot:
    """A `Runner`: one task at a time."""

    def __init__(self, ray: Any, task: Any, held: _Held, cancels: bool) -> None:
        """cancels: what runs has to be cancelled, for the Ray lives on when this has ended.

        Not otherwise: a task that ends just when it is cancelled makes Ray 2.60 abort the process.
        """
        self._ray = ray
        self._cancels = cancels
        self._task = task
        self._held = held
        self._turn = threading.Lock()
        self._running: Any = None  # ObjectRef of the answer
        self._ended = False

    def run(self, job: Job) -> Any:
        aside: Aside = []
        message = packed(job, aside)
        with self._turn:
            if self._ended:
                raise ExecutorClosedError("the executor is closed")
            self._running = self._task.remote(message, *map(self._held.reference, aside))
        try:
            answer = self._answer()
        finally:
            with self._turn:
                self._running = None
        match unpacked(answer):
            case Done(value):
                return value
            case Raised() as raised:
                raise raised.error()

    def kill(self) -> None:
        with self._turn:
            self._ended = True
            running, self._running = self._running, None
        if running is not None and self._cancels:
            with suppress(self._ray.exceptions.RayError, ValueError):
                self._ray.cancel(running, force=True)

    def _answer(self) -> bytes:
        """Wait for the task; in short pieces, for one that is cancelled may take a while to end."""
        errors = self._ray.exceptions
        while True:
            with self._turn:
                running = self._running
            if running is None:
                raise ExecutorClosedError("closed while it ran")
            try:
                answer: bytes = self._ray.get(running, timeout=TICK_S)
                return answer
            except errors.GetTimeoutError:
                continue
            except errors.RayError as problem:
                raise WorkerDiedError(_why(problem)) from None


def _why(problem: Exception) -> str:
    """What Ray says of a worker's end, without the addresses and hints that follow."""
    said = " ".join(str(problem).split()).partition(". ")[0]
    return f"a Ray worker died ({type(problem).__name__}) {said[:SAID_CHARS_MAX]}"


class _Held:
    """Arrays that are in Ray's memory already: one that many jobs read is put there once.

    Only where the array is read-only, for what was put there would not follow a change.
    """

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._turn = threading.Lock()
        self._known: dict[int, tuple[weakref.ref[Array], Any]] = {}

    def reference(self, array: Array) -> Any:
        if array.flags.writeable:
            return self._ray.put(array)
        with self._turn:
            found = self._known.get(id(array))
            if found is not None and found[0]() is array:
                return found[1]
            reference = self._ray.put(array)
            forget = _forgetting(self._known, id(array))
            self._known[id(array)] = (weakref.ref(array, forget), reference)
            return reference


def _forgetting(known: dict[int, Any], key: int) -> Callable[[Any], None]:
    def forget(gone: Any) -> None:
        if (found := known.get(key)) is not None and found[0] is gone:
            del known[key]

    return forget


def _carry_out(message: bytes, *aside: Array) -> bytes:
    """What a worker does. An error of the job is an answer too, so that Ray tells only its own."""
    job = unpacked(message, aside)
    assert isinstance(job, Job)
    try:
        return packed(Done(job.fn(*job.args)))
    except Exception as problem:
        return packed(Raised.of(problem))


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as problem:
        raise RayError(
            f'[executor] kind = "ray", but Ray cannot be imported: {problem}',
            unchanged="Nothing was started.",
            next_step="`pip install 'groove-node[ray]'`, or set kind to \"processes\".",
        ) from None


def _start(address: str, workers: int, threads: int) -> Callable[[], None] | None:
    """Connect this process to Ray, and return what undoes it; None if it is connected already."""
    with ExitStack() as undo:
        names = _ALWAYS if address else _ALWAYS | _ALONE
        undo.callback(_set, {name: os.environ.get(name) for name in names})
        _set(names)
        with _keeping_sigterm():
            ray = _ray()
            if ray.is_initialized():
                return None  # who started it ends it
            logging.getLogger("ray").setLevel(logging.ERROR)
            job = ray.job_config.JobConfig(
                runtime_env={"env_vars": _environment(threads)},
                _client_job=True,  # else the folder one happens to stand in shadows libraries
            )
            how = {"job_config": job, "log_to_driver": False, "configure_logging": False}
            if address:
                undo.callback(ray.shutdown)
                _join(ray, address, how)
            else:
                folder = _folder()
                undo.callback(_remove, folder)
                undo.callback(_end, ray, folder)
                _begin(ray, folder, workers, how)
        return undo.pop_all().close


def _join(ray: Any, address: str, how: dict[str, Any]) -> None:
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit():  # where nobody listens Ray itself would wait for minutes
            socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
        ray.init(address, **how)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as problem:
        raise RayError(
            f"no Ray can be reached at {address}: {_first_line(problem)}",
            unchanged="Nothing was started.",
            next_step="Mend `address` under [executor] in groove.toml; empty, one is started here.",
        ) from None


def _begin(ray: Any, folder: str, workers: int, how: dict[str, Any]) -> None:
    try:
        ray.init(
            "local",  # whatever RAY_ADDRESS says
            num_cpus=workers or os.cpu_count() or 1,
            num_gpus=0,
            include_dashboard=False,
            object_store_memory=_store_bytes(),
            _temp_dir=f"{folder}/ray",  # which Ray opens to everybody; the folder around it is not
            _system_config={"automatic_object_spilling_enabled": False},  # texts are for no disk
            **how,
        )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as problem:
        raise RayError(
            f"Ray cannot be started: {_first_line(problem)}",
            unchanged="Nothing was started.",
            next_step='Set kind under [executor] in groove.toml to "processes" to do without it.',
        ) from None
    where = str(ray.get_runtime_context().gcs_address)
    if not where.startswith("127.0.0.1:"):  # Ray was imported before by somebody else
        raise RayError(
            f"Ray would listen at {where}, where others may reach it",
            unchanged="It was ended.",
            next_step="Import nothing of Ray before groove-node does.",
        )


def _end(ray: Any, folder: str) -> None:
    """Shut Ray down and wait until its processes are gone, for they go on writing into its folder.

    They are told by the folder, which they have among their arguments, and by descent.
    """
    processes: list[psutil.Process] = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if any(folder in argument for argument in child.cmdline()):
                processes += [child, *child.children(recursive=True)]
    ray.shutdown()
    _, alive = psutil.wait_procs(processes, END_TIMEOUT_S)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, END_TIMEOUT_S)


def _remove(folder: str) -> None:
    """Something of Ray may still write there when its processes should all be gone."""
    for _ in range(REMOVE_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not Path(folder).exists():
            return
        time.sleep(REMOVE_WAIT_S)
    log.warning("folder of Ray not removed folder=%s", folder)


def _folder() -> str:
    """A private folder for Ray's sockets and logs; its path is short, as paths of sockets are."""
    return tempfile.mkdtemp(prefix="groove-ray-", dir="/tmp")


def _store_bytes() -> int:
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:  # not Linux: Ray uses files
        return STORE_BYTES
    return max(STORE_BYTES_MIN, min(STORE_BYTES, free // 2))


def _environment(threads: int) -> dict[str, str]:
    environment = launch.environment(threads=threads)
    return {name: environment[name] for name in _FOR_WORKERS}


def _set(environment: Mapping[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _keeping_sigterm() -> Iterator[None]:
    """Ray puts a handler of its own there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, terminated)


def _first_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0][:SAID_CHARS_MAX]
