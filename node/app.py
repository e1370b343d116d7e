"""One home and everything that works on it: the only module that wires.

`App` opens each store and adapter when it is first needed, so that a command loads no more than it
uses: `groove-node status` never loads a model. The running node is `daemon.serve(app)`.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from leaves.model import Instant, LeafId, Stage
from leaves.ports import Report, silent
from leaves.schema import StoreVersionError
from leaves.store import ForestStore, RoundRow

from . import config as config_file
from . import deploying, rights, rounds, routing
from .adapters import Adapters
from .bundles import BundleStore
from .clock import Clock, SystemClock
from .errors import OwnerError
from .foreign import SERVED, Foreign
from .home import (
    HomeError,
    check_private,
    get_or_create_user_id,
    groove_cache,
    home_path,
    private_dir,
    write_atomic,
)
from .identity import Identity, load_or_create
from .mailbox import Mailbox
from .mesh import ForeignLeaf, Shown
from .tables import Deployed, Tables
from .told import EventFile, Tell, Told

if TYPE_CHECKING:
    from random import Random

    from gossip.core import Replica
    from gossip.interest import Wanted
    from gossip.sqlite_store import SqliteStore
    from leaves.embeddings import EmbeddingStore
    from leaves.training.chassis import Chassis
    from router.minilm_encoder import EncoderError
    from router.neighbours import Neighbours
    from router.ports import Encoder
    from router.sentence_encoder import SentenceModel

    from .adapters import Examiner
    from .capture import PIIScrubber, TrainingCorpus
    from .capture.known import KnownHere
    from .capture.sessions import Session
    from .consent import ConsentManager
    from .planning import Plan
    from .publishing import Judge, Withheld


log = logging.getLogger(__name__)


class NoHomeError(OwnerError):
    """There is no home yet."""

    exit_code = 2


class ConsentMissingError(OwnerError):
    """A scope is not granted."""


class BusyError(OwnerError):
    """Another process is doing this already."""


class ModelError(OwnerError):
    """A model is missing or damaged."""


_MENDS = {
    "leaves.db": "Restore it from a backup; or move it aside: leaves grow anew from the corpus.",
    "foreign.db": "Move it aside: peers' leaves are judged again.",
    "mailbox.db": "Move it aside: orders that the node had not carried out are lost, so retract "
    "again what was being retracted.",
    "mesh.db": "Move it aside: what is needed comes again from peers, and consent is asked again.",
    "embeddings": "Move it aside: the next round embeds all sessions anew.",
}

# What SQLite says of the machine, and not of the file: moving that away would lose it for nothing.
_HELD = frozenset((sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED))
_NO_PLACE = frozenset(
    (
        *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN),
        *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM),
    )
)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What SQLite finds wrong with a file, as something the owner can mend."""
    try:
        yield
    except (sqlite3.Error, OSError) as problem:
        raise _damaged(path, problem) from None


def _damaged(path: Path, problem: Exception) -> HomeError:
    return HomeError(
        f"{path} cannot be used: {problem}",
        unchanged="The file was left as it is.",
        next_step=_mend(path, problem),
    )


def _mend(path: Path, problem: Exception) -> str:
    code = getattr(problem, "sqlite_errorcode", 0) & 0xFF  # the rest of it says where it happened
    if code in _HELD:
        return "Another program holds it: wait for its end, and try again."
    if isinstance(problem, OSError) or code in _NO_PLACE:
        return (
            f"Make room on the disk of {path.parent}, or see to it: it is full, cannot be written, "
            "or fails. The file itself may well be whole."
        )
    return _MENDS[path.name]


def _unusable(problem: EncoderError) -> ModelError:
    return ModelError(str(problem), unchanged="Nothing was done.")


class _Signer:
    """Signs receipts of consent with the key of the moment: a running node may get another."""

    def __init__(self, app: App) -> None:
        app.identity  # noqa: B018 - what is wrong with the keys is said before a decision is taken
        self._app = app

    def sign(self, message: bytes) -> tuple[bytes, bytes]:
        from .consent.receipts import KeySigner

        return KeySigner(self._app.identity.keys).sign(message)


class App:
    """One home. Stores are opened on first use and shared by all commands of a process."""

    def __init__(
        self, home: Path, clock: Clock | None = None, adapters: Adapters | None = None
    ) -> None:
        self.home = home
        self.clock = clock or SystemClock()
        self.adapters = adapters or Adapters()
        self.config = config_file.load(home)
        self.halt = threading.Event()  # once set, the scrubber gives up each text that it is at
        self._known: KnownHere | None = None  # the scrubber's
        self._encoder: Encoder | None = None
        self._encoder_turn = threading.Lock()

    @classmethod
    def open(cls, *, create: bool = False) -> App:
        """Open GROOVE_HOME; raises NoHomeError if `init` was never run there."""
        os.umask(0o077)  # whatever this process makes is the owner's alone
        home = home_path()
        if create:
            private_dir(home)
        elif not (home / "keys").exists():
            raise NoHomeError(
                f"{home} is no home of a node yet",
                unchanged="Nothing was done.",
                next_step="Run `groove-node init`, or set GROOVE_HOME to where your home is.",
            )
        check_private(home)
        app = cls(home)
        if (home / rights.MARKER).exists():  # a deletion was begun and not finished
            rights.finish_deletion(app)
        return app

    # What is in the home

    @cached_property
    def identity(self) -> Identity:
        return load_or_create(self.home, self.clock.now_s(), self.adapters.secret)

    def reload_identity(self) -> Identity:
        """Read the keys again: another process has changed them."""
        self.__dict__.pop("identity", None)
        return self.identity

    @property
    def origin(self) -> bytes:
        return self.identity.origin

    @cached_property
    def user_id(self) -> str:
        return get_or_create_user_id(self.home)

    @cached_property
    def consent(self) -> ConsentManager:
        from .consent import ConsentManager

        signer = _Signer(self)
        return ConsentManager(self.home / "consent.db", clock=self.clock, signer=signer)

    @cached_property
    def corpus(self) -> TrainingCorpus:
        from .capture import TrainingCorpus

        return TrainingCorpus(self.home / "training_data", clock=self.clock)

    @cached_property
    def scrubber(self) -> PIIScrubber:
        """Knows the secrets of this machine too: of the environment and of its projects."""
        from .capture.halt import halting
        from .capture.known import open_known
        from .capture.known_folders import looked_into
        from .capture.scrubber import PIIScrubber

        folders = looked_into(self.consent, self.user_id)
        self._known = open_known(self.home, self.config.capture, os.environ, folders)
        return PIIScrubber(self._known, timer=halting(self.halt))

    def look_into(self, folder: str | None) -> None:
        """Have the scrubber know the secrets of the project that a session is about."""
        if self._known is not None:
            self._known.look_into(folder)

    @cached_property
    def forests(self) -> ForestStore:
        path = self.home / "leaves.db"
        try:
            with _readable(path):
                return ForestStore(path, self.origin)
        except StoreVersionError as problem:
            raise HomeError(
                f"{path} cannot be used: {problem}",
                unchanged="The file was left as it is.",
                next_step="Install the groove-node that wrote it, or a newer one; or put a copy of "
                "before back: `round` grows what came since again from the corpus.",
            ) from None

    @property
    def embeddings(self) -> EmbeddingStore:
        from leaves.embeddings import EmbeddingStore, EmbeddingStoreError, OtherEncoderError

        folder = self.home / "embeddings"

        def refusal(problem: EmbeddingStoreError) -> HomeError:
            if not isinstance(problem, OtherEncoderError):
                return _damaged(folder, problem)
            return HomeError(
                f"the encoder is not the one that this home was begun with: {problem}",
                unchanged="The file was left as it is.",
                next_step="Set `path` under [encoder] in groove.toml back; or move `embeddings`, "
                f"`leaves.db` and `router` in {self.home} aside: leaves grow anew from the corpus.",
            )

        with _readable(folder):
            return EmbeddingStore.open(folder, self.enc8, self.dimensions, refusal)

    @cached_property
    def bundles(self) -> BundleStore:
        return BundleStore(self.home / "bundles")

    @cached_property
    def foreign(self) -> Foreign:
        with _readable(self.home / "foreign.db"):
            return Foreign(self.home)

    @cached_property
    def mailbox(self) -> Mailbox:
        with _readable(self.home / "mailbox.db"):
            return Mailbox(self.home)

    @cached_property
    def mesh_store(self) -> SqliteStore:
        from gossip.sqlite_store import SqliteStore, StoreDamagedError

        path = self.home / "mesh.db"
        try:
            with _readable(path):
                return SqliteStore(path)
        except StoreDamagedError as problem:
            raise _damaged(path, problem) from None

    def mesh_replica(self, rng: Random, interest: Wanted | None = None) -> Replica:
        """What the store holds of all origins. Raises HomeError if this node's own is damaged."""
        from gossip.core import Replica
        from gossip.records import RecordError

        records = self.mesh_store.load()
        try:
            return Replica(self.identity.keys, self.config.mesh.gossip, rng, records, interest)
        except RecordError as problem:
            raise _damaged(self.home / "mesh.db", problem) from None

    @cached_property
    def tables(self) -> Tables:
        return Tables(self.home)

    @cached_property
    def events(self) -> EventFile:
        return EventFile(self.home, self.clock)

    def now(self) -> Instant:
        return Instant(int(self.clock.now_s()))

    def telling(self, also: Tell) -> Tell:
        """Tell both the event file and somebody else."""

        def tell(told: Told) -> None:
            try:
                self.events.tell(told)
            finally:
                also(told)  # a full disk, too, is told to whoever looks

        return tell

    @contextmanager
    def lock(
        self, name: str, busy: str = "", *, wait: bool = False, patience_s: float = 0.0
    ) -> Iterator[None]:
        """Hold GROOVE_HOME/NAME.lock; it falls with the process, so a crash leaves nothing.

        patience_s: how long to try, for who would otherwise be refused by a look at the lock.
        """
        deadline = time.monotonic() + patience_s
        with (self.home / f"{name}.lock").open("a+") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                    break
                except BlockingIOError:
                    if time.monotonic() < deadline:
                        time.sleep(0.01)
                        continue
                    raise BusyError(
                        busy,
                        unchanged="Nothing was done.",
                        next_step="Wait for it, or look with `groove-node status`.",
                    ) from None
            yield

    def is_locked(self, name: str) -> bool:
        """Whether a process holds the lock. Those who look do not see each other."""
        try:
            with (self.home / f"{name}.lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    # Consent

    def allows(self, scope: str) -> bool:
        from .consent import Scope

        return self.consent.allows(self.user_id, Scope(scope))

    def require(self, scope: str) -> None:
        """Raise ConsentMissingError unless the scope is granted."""
        if not self.allows(scope):
            reason = self.consent.why_off(self.user_id)
            raise ConsentMissingError(
                f"the scope `{scope}` is not granted{f': {reason}' if reason else ''}",
                unchanged="Nothing was done.",
                next_step=f"`groove-node consent grant {scope}` says what it means and allows it.",
            )

    # Models

    @cached_property
    def _encoder_named(self) -> SentenceModel | None:
        """What the folder of [encoder] path holds, by its files; None for MiniLM."""
        from router.minilm_encoder import EncoderError
        from router.sentence_encoder import inspect

        path = self.config.encoder.path
        if not path:
            return None
        try:
            return inspect(Path(path).expanduser(), groove_cache())
        except EncoderError as problem:
            raise _unusable(problem) from None

    @property
    def enc8(self) -> bytes:
        """The tag of the configured encoder's vectors; loads no model."""
        if given := self.adapters.encoder():
            return given.enc8
        from router.minilm_encoder import ENC8

        return self._encoder_named.enc8 if self._encoder_named else ENC8

    @property
    def dimensions(self) -> int:
        """Of the configured encoder's vectors; loads no model."""
        if given := self.adapters.encoder():
            return given.dimensions
        from router.minilm_encoder import DIMENSIONS

        return self._encoder_named.dimensions if self._encoder_named else DIMENSIONS

    def encoder(self) -> Encoder:
        """The configured encoder behind a cache; opened once, then shared by whoever asks."""
        with self._encoder_turn:
            if self._encoder is None:
                self._encoder = self.adapters.encoder() or self._open_encoder()
            return self._encoder

    def _open_encoder(self) -> Encoder:
        from router.encoding_cache import CachedEncoder
        from router.minilm_encoder import EncoderError, MiniLmEncoder

        threads, named = self.config.encoder.threads, self._encoder_named
        try:
            if named is None:
                return CachedEncoder(MiniLmEncoder.open(groove_cache(), threads))
            from router.sentence_encoder import SentenceEncoder

            return CachedEncoder(SentenceEncoder.open(named.folder, groove_cache(), threads))
        except EncoderError as problem:
            raise _unusable(problem) from None

    @cached_property
    def chassis(self) -> Chassis:
        from leaves.training.chassis import ChassisError, open_chassis, prepare_chassis

        configured = self.config.training.chassis
        try:
            path = Path(configured).expanduser() if configured else prepare_chassis(groove_cache())
            return open_chassis(path)
        except ChassisError as problem:
            raise ModelError(str(problem), unchanged="Nothing was done.") from None

    @cached_property
    def evaluator(self) -> Examiner:
        return self.adapters.evaluator(self.threads())

    def threads(self) -> int:
        return self.config.training.threads or os.cpu_count() or 1

    @contextmanager
    def adapter_files(self, addresses: Sequence[str | None]) -> Iterator[list[Path | None]]:
        """The adapters of bundles that are here, as files for as long as they are needed."""
        from leaves.bundle import check_form

        with tempfile.TemporaryDirectory(prefix="adapters-", dir=self.home) as folder:
            paths: list[Path | None] = []
            for number, address in enumerate(addresses):
                blob = self.bundles.get(address) if address else None
                if blob is None:
                    paths.append(None)
                    continue
                path = Path(folder) / f"{number}.safetensors"
                path.write_bytes(check_form(blob, self.chassis).adapter)
                paths.append(path)
            yield paths

    # What was published

    def shown(self) -> dict[LeafId, Shown]:
        path = self.home / "shown.json"
        if not path.exists():
            return {}
        return msgspec.json.decode(path.read_bytes(), type=dict[LeafId, Shown])

    def remember_shown(self, shown: dict[LeafId, Shown]) -> None:
        write_atomic(self.home / "shown.json", msgspec.json.encode(shown))

    def roots_to_serve(self) -> list[str]:
        """Bundles that peers may have: own mature leaves', checked foreign ones, and controls.

        An own bundle is the owner's to offer, also when a peer's card names it.
        """
        roots: set[str] = set()
        if self.allows("fetch"):
            roots |= self.foreign.roots(SERVED) - self.own_roots()
        if self.allows("publish"):
            withheld = self.withheld().reasons
            for leaf in self.forests.forest().live():
                if leaf.stage is Stage.MATURE and leaf.adapter and leaf.id not in withheld:
                    roots |= {leaf.adapter.bundle, leaf.adapter.control}
        return sorted(roots)

    def withheld(self) -> Withheld:
        """Leaves that are kept back, and why."""
        return self._judge.withheld()

    @cached_property
    def _judge(self) -> Judge:
        from .publishing import Judge

        return Judge(self)

    def own_roots(self) -> set[str]:
        """Bundles of own leaves, of any stage."""
        adapters = [leaf.adapter for leaf in self.forests.forest() if leaf.adapter]
        return {root for adapter in adapters for root in (adapter.bundle, adapter.control)}

    # Sessions

    def sessions(self) -> dict[str, Session]:
        """All finished sessions of the corpus that have an ask."""
        batch = self.corpus.read_sessions()
        return {s.session_id: s for s in batch.sessions if s.prompt}

    def region(self, leaf: ForeignLeaf) -> list[str]:
        """Own sessions that a foreign leaf would be asked for."""
        return next(self.regions([leaf]))

    def regions(self, leaves: Sequence[ForeignLeaf]) -> Iterator[list[str]]:
        """The region of each of some foreign leaves."""
        own = [leaf.centroid for leaf in self.forests.forest().live() if leaf.level > 1]
        embedded = self.embeddings.snapshot()
        floor = self.config.mesh.interest_cosine
        theirs: dict[str, list[ForeignLeaf]] = {}
        for leaf in leaves:
            if leaf.origin not in theirs:
                theirs[leaf.origin] = [known.leaf for known in self.foreign.of(leaf.origin)]
            others = own + [x.centroid for x in theirs[leaf.origin] if x.leaf != leaf.leaf]
            # A leaf of the same domain is no rival: it is what this leaf would answer for.
            rivals = [x for x in others if float(x @ leaf.centroid) < routing.SAME_DOMAIN]
            yield routing.region(embedded.ids, embedded.matrix, leaf.centroid, rivals, floor)

    # Rounds

    def round(self, tell: Tell, report: Report = silent) -> RoundRow:
        """Run one round, or take up the one that was killed."""
        return rounds.run(self, tell, report)

    def plan(self, report: Report = silent) -> Plan:
        """What a round would do. Changes nothing."""
        return rounds.plan(self, report)

    # Routing

    @property
    def neighbours_path(self) -> Path:
        return self.home / "neighbours" / "neighbours.bin"

    def neighbours(self) -> tuple[Neighbours | None, str]:
        """The own sessions that vote for leaves, memory-mapped; or none, and what is wrong.

        There are none before the first round, and after a deletion until the next: centroids do.
        """
        from router.neighbours import Neighbours, NeighboursError

        try:
            near = Neighbours.open(self.neighbours_path)
        except FileNotFoundError:
            return None, ""
        except (NeighboursError, OSError) as problem:
            why = str(problem)
        else:
            if near.enc8 == self.enc8:
                return near, ""
            why = f"{self.neighbours_path} is of another encoder"
        log.warning("neighbours not used reason=%s", why)
        return None, f"{why}: centroids alone decide. `groove-node round` makes it anew."

    def deploy_anew(self, tell: Tell, report: Report = silent) -> Deployed:
        """Build the routing table with fresh gates; one that does worse is not put in force."""
        return deploying.anew(self, tell, report)

    def deploy(self) -> int:
        """Have the table follow what may be routed to; gates and starters stay. Loads no model."""
        return deploying.follow(self)

    def deploy_if_routed(self) -> None:
        """The same with the votes counted anew, if there is a table."""
        deploying.recount(self)
