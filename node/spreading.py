"""What of a round an executor can do side by side: embedding, branches, one training a leaf.

By itself a round works in children of its own, one leaf after the other. With an executor of
several workers, or of a cluster, it hands them the same work in the same pieces, and comes to the
same: a training is named by its folder and ends in the same bytes wherever it ran. So folders must
be seen under one path by all workers; on one machine they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from leaves.bundle import BundleError
from leaves.model import Matrix, Vector
from leaves.parallel import map_in_order
from leaves.ports import (
    Clusterer,
    Clustering,
    ClusterSizes,
    Executor,
    PreferenceJob,
    Progress,
    Report,
    Trained,
    TrainJob,
    silent,
)
from leaves.training.child import ChildTrainer, TrainingError
from leaves.training.orders import (
    Failed,
    Finished,
    Limits,
    PreferOrder,
    TrainOrder,
    decode_answer,
    decode_order,
    encode,
)
from router.ports import Encoder

from .executors import ExecutorClosedError, ProcessExecutor, WorkerDiedError

if TYPE_CHECKING:
    from .app import App
    from .config import ExecutorConfig

TEXTS = 64  # embedded by one job: 0.3 s of MiniLM on a core
STOP_WAIT_S = 5.0  # for trainings that were told to end
TICK_S = 1.0  # between two reports of a training that runs elsewhere
PROGRESS = "progress.json"  # in the folder of a training: how far it is, for who waits elsewhere
STOP = "stop"  # likewise: it is to end, and keep what it reached


class StoppedError(Exception):
    """Raised in a worker, by a report: whoever wanted the training has told it to end."""


class ExecutorTrainer:
    """`leaves.ports.Trainer` whose trainings run in an executor's workers, in a child of theirs."""

    def __init__(self, executor: Executor, *, threads: int = 1, dtype: str | None = None) -> None:
        self._executor = executor
        self._limits = Limits(threads=threads, dtype=dtype)
        self._turn = Lock()
        self._works: set[Path] = set()

    def train(self, job: TrainJob, report: Report = silent) -> Trained:
        """Train, or go on from the checkpoint in `job.work`; raises TrainingError."""
        return self.train_all([job], report)[0]

    def train_all(self, jobs: Sequence[TrainJob], report: Report = silent) -> list[Trained]:
        """The same for several jobs side by side; the first failure, in their order, ends all."""
        return self._run([TrainOrder(_resolved(job), self._limits) for job in jobs], report)

    def prefer(self, job: PreferenceJob, report: Report = silent) -> Trained:
        """Go on towards the chosen answers, or from the checkpoint; raises TrainingError."""
        job = replace(
            job,
            work=job.work.resolve(),
            chassis=job.chassis.resolve(),
            warm_start=job.warm_start.resolve(),
        )
        return self._run([PreferOrder(job, self._limits)], report)[0]

    def stop(self) -> None:
        """End what runs, from another thread; the calls that wait for it raise TrainingError."""
        with self._turn:
            for work in self._works:
                (work / STOP).touch()

    def _run(self, orders: Sequence[TrainOrder | PreferOrder], report: Report) -> list[Trained]:
        works = [order.job.work for order in orders]
        for work in works:
            work.mkdir(mode=0o700, parents=True, exist_ok=True)
            (work / STOP).unlink(missing_ok=True)
        with self._turn:
            self._works.update(works)
        futures: list[Future[bytes]] = []
        try:
            futures.extend(self._executor.submit(carry_out, encode(order)) for order in orders)
            for order, future in zip(orders, futures, strict=True):
                while not wait([future], TICK_S).done:
                    report(_progress(order, futures))
            return [_trained(future) for future in futures]
        except BaseException as problem:
            for work, future in zip(works, futures, strict=False):
                if not future.cancel():
                    (work / STOP).touch()
            wait(futures, STOP_WAIT_S)  # two trainings at once in one folder would be one too many
            if isinstance(problem, ExecutorClosedError | WorkerDiedError):
                raise TrainingError(f"a worker of the executor ended: {problem}") from None
            raise
        finally:
            with self._turn:
                self._works.difference_update(works)
            for work in works:
                (work / PROGRESS).unlink(missing_ok=True)


def train_all(
    executor: Executor, jobs: Sequence[TrainJob], *, threads: int = 1, report: Report = silent
) -> list[Trained]:
    """Run trainings side by side; raises TrainingError, and what was reached is kept.

    A job that was finished before is not done again, so whoever asks for it later finds it done.
    """
    return ExecutorTrainer(executor, threads=threads).train_all(jobs, report)


def carry_out(order: bytes) -> bytes:
    """What a worker does: one training in a child of its own, which ends when the worker does."""
    asked = decode_order(order)
    assert isinstance(asked, TrainOrder | PreferOrder), asked
    trainer = ChildTrainer(threads=asked.limits.threads, dtype=asked.limits.dtype)
    work = asked.job.work

    def report(progress: Progress) -> None:
        if (work / STOP).exists():
            raise StoppedError
        (work / PROGRESS).write_bytes(msgspec.json.encode(progress))

    try:
        if isinstance(asked, TrainOrder):
            trained = trainer.train(asked.job, report)
        else:
            trained = trainer.prefer(asked.job, report)
        return encode(Finished(trained))
    except (TrainingError, BundleError) as problem:
        return encode(Failed(str(problem), refused=isinstance(problem, BundleError)))
    except StoppedError:
        return encode(Failed("the training was told to end", refused=False))
    finally:
        (work / STOP).unlink(missing_ok=True)


def _resolved(job: TrainJob) -> TrainJob:
    start = job.warm_start.resolve() if job.warm_start else None
    return replace(job, work=job.work.resolve(), chassis=job.chassis.resolve(), warm_start=start)


def _trained(future: Future[bytes]) -> Trained:
    match decode_answer(future.result()):
        case Finished(result):
            return result
        case Failed(message, refused):
            raise BundleError(message) if refused else TrainingError(message)
        case other:
            raise AssertionError(other)


def _progress(order: TrainOrder | PreferOrder, futures: Sequence[Future[bytes]]) -> Progress:
    """How far the training is that is waited for; of several, how many are done."""
    if len(futures) > 1:
        return Progress("train", sum(future.done() for future in futures), len(futures), "adapters")
    with suppress(OSError, msgspec.DecodeError):  # not begun yet, or just being written
        return msgspec.json.decode((order.job.work / PROGRESS).read_bytes(), type=Progress)
    return Progress("train", 0, order.job.schedule.steps)


# ---- embedding ---------------------------------------------------------------------------------


class ExecutorEncoder:
    """An `Encoder` whose batches are computed by an executor, a chunk of texts a job."""

    def __init__(self, encoder: Encoder, executor: Executor, folder: str, threads: int) -> None:
        """encoder: the same encoder, here, for what is small. folder: as `opened` takes it."""
        self._encoder = encoder
        self._executor = executor
        self._encode = partial(_encode, folder, threads)

    @property
    def enc8(self) -> bytes:
        return self._encoder.enc8

    @property
    def name(self) -> str:
        return self._encoder.name

    @property
    def dimensions(self) -> int:
        return self._encoder.dimensions

    def encode(self, texts: Sequence[str], report: Report = silent) -> Matrix:
        """Return one unit row per text, in order."""
        if len(texts) <= TEXTS:
            return self._encoder.encode(texts, report)
        chunks = [list(texts[start : start + TEXTS]) for start in range(0, len(texts), TEXTS)]
        parts = map_in_order(self._executor, self._encode, chunks, report, "embed")
        return np.concatenate(parts)

    def encode_one(self, text: str) -> Vector:
        return self._encoder.encode_one(text)


def _encode(folder: str, threads: int, texts: list[str]) -> Matrix:
    return opened(folder, threads).encode(texts)


@cache
def opened(folder: str, threads: int) -> Encoder:
    """The encoder of a folder, once per process; MiniLM if it is empty. Raises EncoderError."""
    from .home import groove_cache

    if not folder:
        from router.minilm_encoder import MiniLmEncoder

        return MiniLmEncoder.open(groove_cache(), threads)
    from router.sentence_encoder import SentenceEncoder

    return SentenceEncoder.open(Path(folder).expanduser(), groove_cache(), threads)


# ---- clustering --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RayClusterer:
    """The clusterer by default, its branches on a Ray that runs. For a child of the node."""

    address: str

    def cluster(
        self, ids: Sequence[str], vectors: Matrix, sizes: ClusterSizes, report: Report = silent
    ) -> Clustering:
        from leaves.discover import default_clusterer

        from .ray_executor import RayExecutor

        with closing(RayExecutor(self.address)) as executor:
            return default_clusterer(executor).cluster(ids, vectors, sizes, report)


def clusterer_on_ray(address: str, here: Executor) -> Clusterer:
    """What `ChildClusterer` is to make; the executor that it offers is left alone."""
    return RayClusterer(address)


# ---- a round's ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spread:
    """An executor for as long as a round lasts. ray: the address of its Ray, if it is one."""

    executor: Executor
    ray: str = ""

    def encoder(self, app: App) -> Encoder:
        """The home's encoder, for many texts at once."""
        folder, threads = app.config.encoder.path, app.config.encoder.threads
        return ExecutorEncoder(app.encoder(), self.executor, folder, threads)

    @property
    def clusterer(self) -> Callable[[Executor], Clusterer]:
        """For a `ChildClusterer` to make: a child has an executor of processes already."""
        from leaves.discover import default_clusterer

        return partial(clusterer_on_ray, self.ray) if self.ray else default_clusterer

    def trainer(self) -> ExecutorTrainer:
        return ExecutorTrainer(self.executor)

    def train_all(self, jobs: Sequence[TrainJob], report: Report = silent) -> list[Trained]:
        return train_all(self.executor, jobs, report=report)


@contextmanager
def spread(config: ExecutorConfig) -> Iterator[Spread | None]:
    """The executor of groove.toml; None if rounds are to work in children of their own."""
    if config.kind == "ray":
        from .ray_executor import RayExecutor

        with closing(RayExecutor(config.address, workers=config.workers)) as rays:
            yield Spread(rays, rays.address)
    elif config.workers > 1:
        with closing(ProcessExecutor(config.workers)) as children:
            yield Spread(children)
    else:
        yield None
