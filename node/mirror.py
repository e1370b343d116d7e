"""A registry as one more holder of bundles: a folder, or an S3-compatible store, asked like a peer.

It answers the frames of the bundle channel, so the exchange fetches from it as from any peer:
chunk by chunk, each checked by its hash, beside the others, and never again once it has lied. What
it cannot do, be it for want of the store, the keys or the line, counts as "not here". It is told
nothing and asked for nothing but bundles; `registry push` is how they get there.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar, assert_never
from urllib.parse import urlsplit

import msgspec
import trio

from gossip.bundle_files import BundleFiles
from gossip.ports import PeerId
from gossip.wire import (
    BLOB_BYTES_MAX,
    CHUNK_BYTES,
    ChunkData,
    ChunkGet,
    ListData,
    ListGet,
    NotHere,
    WireError,
    decode_bundle,
    encode,
)

from .config import Config
from .errors import OwnerError

log = logging.getLogger(__name__)

T = TypeVar("T")

MIRROR: Final = PeerId("mirror")  # no name of libp2p's: those are multihashes in base58
REST_S: Final = 60.0  # after a failure nothing is asked of the store for so long
_AT_ONCE: Final = 4  # requests to the store; a stalled one keeps its place until it times out
_WAITING_MAX: Final = 32  # questions that wait for one of those; more are not here
_LISTS_MAX: Final = 64  # chunk lists in memory, 32 KiB at most each


class Source(Protocol):
    """Where the bundles are. All methods block, and raise OwnerError or OSError."""

    def chunk_list(self, root: bytes) -> bytes | None:
        """The chunk list of a bundle, as whoever put it there says; None if it is not there."""
        ...

    def read(self, root: bytes, index: int) -> bytes | None:
        """One chunk of a bundle; None if it is not there."""
        ...


class FolderSource:
    """A registry's folder, which others can write too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def chunk_list(self, root: bytes) -> bytes | None:
        if not self._folder.is_dir():  # it may be of a machine that is away
            raise FileNotFoundError(f"{self._folder} is not there")
        chunks = BundleFiles(self._folder / "bundles").whole(root)
        return encode(chunks) if chunks else None

    def read(self, root: bytes, index: int) -> bytes | None:
        path = self._folder / "bundles" / f"{root.hex()}.bundle"
        try:
            with path.open("rb") as bundle:
                bundle.seek(index * CHUNK_BYTES)
                return bundle.read(CHUNK_BYTES) or None
        except FileNotFoundError:
            return None


class Mirror:
    """Answers what the exchange asks, from a source. where: for the log."""

    peer: Final = MIRROR

    def __init__(self, source: Source, where: str) -> None:
        self._source = source
        self._where = where
        self._turns = trio.CapacityLimiter(_AT_ONCE)
        self._lists: dict[bytes, bytes] = {}
        self._waiting = 0
        self._rests_until = 0.0

    async def ask(self, frame: bytes, tell: Callable[[bytes], Awaitable[None]]) -> None:
        """Answer one frame of the bundle channel by frames. Never raises but for cancellation."""
        try:
            message = decode_bundle(frame)
        except WireError as error:
            raise AssertionError(f"the exchange asked {error}") from error
        match message:
            case ListGet(root):
                data = await self._do(partial(self._list, root))
                await tell(encode(ListData(root, data) if data else NotHere(root)))
            case ChunkGet(root, indices):
                for index in indices:
                    data = await self._do(partial(self._source.read, root, index))
                    if not data:
                        await tell(encode(NotHere(root)))
                        return
                    await tell(encode(ChunkData(root, index, data[:CHUNK_BYTES])))
            case ListData() | ChunkData() | NotHere():
                return  # the exchange serves peers alone: a mirror asks for nothing
            case _:
                assert_never(message)

    def _list(self, root: bytes) -> bytes | None:
        if root not in self._lists:
            data = self._source.chunk_list(root)
            if data is None or len(data) > BLOB_BYTES_MAX:
                return None
            self._lists[root] = data
            if len(self._lists) > _LISTS_MAX:
                del self._lists[next(iter(self._lists))]
        return self._lists[root]

    async def _do(self, work: Callable[[], T | None]) -> T | None:
        """Do blocking work unless the store is at rest or too much waits for it already."""
        if trio.current_time() < self._rests_until or self._waiting >= _WAITING_MAX:
            return None
        self._waiting += 1
        try:
            return await trio.to_thread.run_sync(  # a node that ends waits for no store
                work,
                abandon_on_cancel=True,  # type: ignore[call-arg]
                limiter=self._turns,
            )
        except (OwnerError, OSError) as problem:
            self._rests_until = trio.current_time() + REST_S
            log.warning("mirror out of use where=%s reason=%s", self._where, problem)
            return None
        finally:
            self._waiting -= 1


def open_mirror(config: Config) -> Mirror | None:
    """The mirror of groove.toml; None if there is none. Reaches for nothing yet."""
    url = config.mesh.mirror
    if not url:
        return None
    parts = urlsplit(url)
    if not parts.scheme:
        return Mirror(FolderSource(Path(url).expanduser()), url)
    if parts.scheme != "s3" or not parts.netloc:
        raise OwnerError(
            f"the mirror {url!r} is no folder and no s3://BUCKET/PREFIX",
            unchanged="Nothing was started.",
            next_step="Mend `mirror` under [mesh] in groove.toml.",
        )
    from .s3_store import S3Client, S3Place, S3Source

    place = S3Place.of(msgspec.structs.replace(config.registry, url=url))
    return Mirror(S3Source(S3Client(place)), str(place))
