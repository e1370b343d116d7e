"""Where mature leaves are kept for others to take: a folder, or an S3-compatible store.

It is a shelf, not a peer: what lies there is what this node may publish anyway, found by an index
that says which bundle is the newest version of which leaf. Several nodes can share one. Each
writes its own leaves alone, and the index is replaced only by who has read what is replaced, so no
two of them undo one another. Nobody vouches for it: whoever takes a bundle checks it by its
address, and judges it as one of a peer.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import msgspec
from msgspec import Meta, Struct

from leaves.bundle import BundleError, Hex8, Hex16, Hex32, unpack
from leaves.model import Stage
from leaves.ports import BlobStore

from .bundles import BundleStore, checked
from .errors import OwnerError
from .home import write_atomic
from .orders import retracted
from .told import Tell, Told

if TYPE_CHECKING:
    from .app import App
    from .config import RegistryConfig

log = logging.getLogger(__name__)

INDEX = "index.json"
INDEX_BYTES_MAX = 8 << 20  # about 20,000 leaves
TRIES = 32  # of an update; each lost one means that another writer's stands


class RegistryError(OwnerError):
    """The registry cannot be used."""


class Entry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The newest version of one leaf of one origin."""

    origin: Hex32
    leaf: Hex16
    version: Annotated[int, Meta(ge=0)]
    bundle: Hex32  # address
    label: Hex32  # SHA-256 of its label
    control: Hex32  # address of the style control's bundle
    chassis: Hex8
    size_bytes: Annotated[int, Meta(ge=0)]

    @property
    def addresses(self) -> set[str]:
        return {self.bundle, self.control}


class Index(Struct, frozen=True, forbid_unknown_fields=True):
    """All leaves that are offered, in the order of origin and leaf."""

    format: Annotated[int, Meta(ge=1, le=1)] = 1
    leaves: tuple[Entry, ...] = ()

    def of(self, origin: str) -> dict[str, Entry]:
        return {entry.leaf: entry for entry in self.leaves if entry.origin == origin}

    def with_leaves_of(self, origin: str, entries: Iterable[Entry]) -> Index:
        """The same, but of this origin exactly these leaves."""
        kept = [entry for entry in self.leaves if entry.origin != origin]
        every = sorted([*kept, *entries], key=lambda entry: (entry.origin, entry.leaf))
        return Index(self.format, tuple(every))


class Cell(Protocol):
    """One small object that is replaced only by who has seen what is replaced."""

    def read(self) -> tuple[bytes, str] | None:
        """What it holds, and a tag that changes with it; None before the first swap."""
        ...

    def swap(self, data: bytes, seen: str | None) -> bool:
        """Replace what had this tag, None meaning nothing; False if it holds something else."""
        ...


@dataclass(frozen=True, slots=True)
class Registry:
    """A store of bundles and the index of it."""

    blobs: BlobStore
    cell: Cell
    where: str

    def index(self) -> Index:
        """What is offered. Raises RegistryError if the index is damaged."""
        held = self.cell.read()
        return self._decoded(held[0]) if held else Index()

    def update(self, change: Callable[[Index], Index]) -> Index:
        """Replace the index by what `change` makes of it, which is called again if it is lost."""
        for _ in range(TRIES):
            held = self.cell.read()
            before = self._decoded(held[0]) if held else Index()
            after = change(before)
            if after == before:
                return before
            data = msgspec.json.format(msgspec.json.encode(after), indent=1)
            if self.cell.swap(data, held[1] if held else None):
                return after
        raise RegistryError(
            f"{self.where}: the index was changed by others {TRIES} times while it was written",
            unchanged="The index is as the others left it.",
            next_step="`groove-node registry push` tries again.",
        )

    def _decoded(self, data: bytes) -> Index:
        try:
            return msgspec.json.decode(data, type=Index)
        except msgspec.DecodeError as problem:
            raise RegistryError(
                f"{self.where}: {INDEX} cannot be read: {problem}",
                unchanged="It was left as it is.",
                next_step="Move it aside: each node writes its own leaves into a new one.",
            ) from None


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push came to, by leaf."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    offered: int

    def told(self, where: str) -> str:
        more = f", {len(self.removed)} taken back" if self.removed else ""
        return f"{where}: {self.offered} leaves offered, {len(self.added)} of them new{more}"


def push(registry: Registry, own: BlobStore, origin: str, offers: Iterable[Entry]) -> Pushed:
    """Make the registry offer exactly these leaves of this origin; may be repeated.

    own: where their bundles are. Bundles are put before the index names them, and those that are
    not offered any more go before it forgets them: a push that was cut short is finished by the
    next, and never leaves behind a bundle that nobody knows of.
    """
    wanted = {entry.leaf: entry for entry in offers}
    index = registry.index()
    before = index.of(origin)
    there = {address for entry in before.values() for address in entry.addresses}
    for entry in wanted.values():
        for address in sorted(entry.addresses - there):
            blob = own.get(address)
            if blob is not None and registry.blobs.put(blob) != address:
                raise RegistryError(f"{registry.where}: {address} has another address there")
    others = [entry for entry in index.leaves if entry.origin != origin]
    needed = {address for entry in (*others, *wanted.values()) for address in entry.addresses}
    for address in sorted(there - needed):
        registry.blobs.delete(address)
    registry.update(lambda now: now.with_leaves_of(origin, wanted.values()))
    added = sorted(leaf for leaf, entry in wanted.items() if before.get(leaf) != entry)
    removed = sorted(before.keys() - wanted.keys())
    return Pushed(tuple(added), tuple(removed), len(wanted))


class FolderBlobStore(BundleStore):
    """Bundles in a folder that others can write too: what is taken from it is checked."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder

    def get(self, address: str) -> bytes | None:
        """Raises WrongBlobError if the folder has something else under the address."""
        data = super().get(address)
        return checked(address, data, str(self._folder)) if data is not None else None


class FileCell:
    """A `Cell` in a file: its tag is its hash, and a lock makes the comparison and the swap one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> tuple[bytes, str] | None:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        return data, hashlib.sha256(data).hexdigest()

    def swap(self, data: bytes, seen: str | None) -> bool:
        with self._turn():
            held = self.read()
            if (held[1] if held else None) != seen:
                return False
            write_atomic(self._path, data)
            return True

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._path.with_suffix(".lock").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def in_folder(folder: Path) -> Registry:
    """A registry in a folder, which may be one that several machines see."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        blobs = FolderBlobStore(folder / "bundles")
    except OSError as problem:
        raise RegistryError(
            f"the registry {folder} cannot be used: {problem}",
            unchanged="Nothing was put there.",
            next_step="Look at `url` under [registry] in groove.toml.",
        ) from None
    return Registry(blobs, FileCell(folder / INDEX), str(folder))


def open_registry(config: RegistryConfig) -> Registry | None:
    """The registry of groove.toml; None if there is none. Reaches for nothing yet."""
    if not config.url:
        return None
    if "://" not in config.url:
        return in_folder(Path(config.url).expanduser())
    from .s3_store import S3BlobStore, S3Cell, S3Client, S3Place

    client = S3Client(S3Place.of(config))
    return Registry(S3BlobStore(client), S3Cell(client, INDEX, INDEX_BYTES_MAX), str(client.place))


# ---- of a home ---------------------------------------------------------------------------------


def offers(app: App) -> list[Entry]:
    """The home's own leaves that may be published now: mature, not withheld, not retracted."""
    if not app.allows("publish"):
        return []
    gone = retracted(app)
    if "" in gone:
        return []
    kept_back = app.withheld().reasons.keys() | gone
    entries = []
    for leaf in app.forests.forest().live():
        adapter = leaf.adapter
        if leaf.stage is not Stage.MATURE or adapter is None or leaf.id in kept_back:
            continue
        blob = app.bundles.get(adapter.bundle)
        if blob is None or app.bundles.path(adapter.control) is None:
            continue
        try:
            label = unpack(blob).label
        except BundleError as problem:
            log.warning("leaf not offered leaf=%s reason=%s", leaf.id, problem)
            continue
        entries.append(
            Entry(
                origin=app.origin.hex(),
                leaf=leaf.id,
                version=leaf.version,
                bundle=adapter.bundle,
                label=hashlib.sha256(label).hexdigest(),
                control=adapter.control,
                chassis=adapter.chassis,
                size_bytes=len(blob),
            )
        )
    return entries


def push_home(app: App) -> tuple[Pushed, str] | None:
    """Bring the registry up to what the home may publish; None if there is no registry."""
    registry = open_registry(app.config.registry)
    if registry is None:
        return None
    pushed = push(registry, app.bundles, app.origin.hex(), offers(app))
    return pushed, registry.where


def push_after_round(app: App, tell: Tell) -> None:
    """The same at the end of a round, which does not fail because a registry is out of reach."""
    try:
        done = push_home(app)
    except OwnerError as problem:
        log.warning("registry not brought up to date reason=%s", problem)
        tell(Told("registry", f"registry not brought up to date: {problem}"))
        return
    if done is not None and (done[0].added or done[0].removed):
        tell(Told("registry", done[0].told(done[1]), {"leaves": done[0].offered}))
