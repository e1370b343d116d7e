"""A node of bundles alone, in this process or in one of its own: what the measurements are made of.

    python tests/bench/bundle_kit.py hold FOLDER ROOT [--manner honest|lying|stalled]
    python tests/bench/bundle_kit.py fetch FOLDER ROOT BYTES ADDRESS...

`hold` writes a line with its address and serves until its standard input ends. It also answers on
a stream of its own with bytes without meaning, as fast as py-libp2p takes them: the raw rate.
`fetch` writes a line for each chunk that is on disk, and one with the outcome; what comes off its
streams it counts in a file, by holder, so that it is known of a process that was killed too.
Everything is real: transport, driver, exchange, files. Only the replica is silent, and no budget
holds anything up.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import trio

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT)]

from gossip.bundle_files import BundleFiles  # noqa: E402
from gossip.driver import GossipDriver  # noqa: E402
from gossip.events import Effect, Event  # noqa: E402
from gossip.exchange import Exchange  # noqa: E402
from gossip.exchange_events import ExchangeConfig  # noqa: E402
from gossip.libp2p_transport import Libp2pTransport  # noqa: E402
from gossip.ports import Arrived, Channel  # noqa: E402
from gossip.transport_config import TransportConfig  # noqa: E402
from gossip.wire import ChunkData, decode_bundle  # noqa: E402

RAW = "/groove/bench-raw/1"
REQUEST = struct.Struct(">QI")  # bytes in all, bytes in one write
READ_BYTES = 64 * 1024
UNBOUND = 1 << 50
CONFIG = ExchangeConfig(
    bytes_s_max=UNBOUND, burst_bytes=UNBOUND, bytes_night_max=UNBOUND, night_share=1000
)
COUNTS = "counts"
MANNERS = ("honest", "lying", "stalled")


class Counter:
    """Bytes by holder, in a file that outlives the process that counts."""

    WIDTH = 8

    def __init__(self, path: Path, holders: int) -> None:
        if not path.exists():
            path.write_bytes(bytes(self.WIDTH * holders))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def add(self, holder: int, size: int) -> None:
        at = self.WIDTH * holder
        (count,) = struct.unpack_from("<Q", self._map, at)
        struct.pack_into("<Q", self._map, at, count + size)

    def counts(self) -> list[int]:
        return [count for (count,) in struct.iter_unpack("<Q", self._map[:])]


class _Counting(Libp2pTransport):
    """Counts the chunks that come whole off its streams, before anything else is done to them."""

    def count(self, counter: Counter, holders: dict[str, int]) -> None:
        self._counter, self._holders = counter, holders

    async def _take(self, entry: Any, arrived: Arrived) -> None:
        if arrived.channel is Channel.BUNDLE and arrived.peer in self._holders:
            message = decode_bundle(arrived.frame)
            if isinstance(message, ChunkData):
                self._counter.add(self._holders[arrived.peer], len(message.data))
        await super()._take(entry, arrived)


class _Silent:
    """A replica that has nothing to say."""

    def handle(self, event: Event) -> list[Effect]:
        return []


class _NoStore:
    def load(self) -> list[Any]:
        return []

    def write(self, puts: Any, deletes: Any, *, durable: bool) -> None:
        raise AssertionError("nothing is to be stored")


class _Lying(BundleFiles):
    """Has every chunk, each with one wrong byte."""

    def cached_chunk(self, root: bytes, index: int) -> bytes | None:
        return None

    def read_chunk(self, root: bytes, index: int) -> bytes | None:
        chunk = super().read_chunk(root, index)
        return chunk and bytes([chunk[0] ^ 1]) + chunk[1:]


class _Stalled(GossipDriver):
    """Tells its list, and never a chunk."""

    async def _read_chunk(self, order: Any) -> None:
        await trio.sleep_forever()


@asynccontextmanager
async def node(
    folder: Path,
    manner: str = "honest",
    kind_of_transport: type[Libp2pTransport] = Libp2pTransport,
) -> AsyncIterator[tuple[Libp2pTransport, GossipDriver]]:
    """Run a node on loopback whose bundles are in `folder`."""
    transport = kind_of_transport(os.urandom(32), TransportConfig(listen="/ip4/127.0.0.1/tcp/0"))
    kind = _Stalled if manner == "stalled" else GossipDriver
    files = _Lying(folder) if manner == "lying" else BundleFiles(folder)
    driver = kind(
        _Silent(),
        Exchange(CONFIG, Random()),
        transport,
        _NoStore(),
        files,
        clock=trio.current_time,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(transport.run)
        await nursery.start(driver.run)
        yield transport, driver
        nursery.cancel_scope.cancel()


async def hold(folder: Path, root: bytes, manner: str) -> None:
    async with node(folder, manner) as (transport, driver):
        if not await driver.serve_bundle(root):
            raise SystemExit(f"{root.hex()} is not in {folder}")
        assert transport._life is not None
        transport._life.host.set_stream_handler(RAW, _pour)
        print(json.dumps({"address": transport.addresses()[0]}), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


async def _pour(stream: Any) -> None:
    size, write_bytes = REQUEST.unpack(await stream.read(REQUEST.size))
    piece = os.urandom(write_bytes)
    while size > 0:
        await stream.write(piece[:size] if size < write_bytes else piece)
        size -= write_bytes
    await stream.close()


async def pour(transport: Libp2pTransport, peer: Any, size: int, write_bytes: int) -> None:
    """Take `size` bytes from a holder over one stream, and do nothing with them."""
    assert transport._life is not None
    stream = await transport._life.host.new_stream(peer, [RAW])
    await stream.write(REQUEST.pack(size, write_bytes))
    come = 0
    while come < size:
        come += len(await stream.read(READ_BYTES))
    await stream.reset()


async def fetch(folder: Path, root: bytes, size_bytes: int, addresses: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    holders = {address.rpartition("/")[2]: number for number, address in enumerate(addresses)}
    async with node(folder, kind_of_transport=_Counting) as (transport, driver):
        assert isinstance(transport, _Counting)
        transport.count(Counter(folder / COUNTS, len(holders)), holders)
        for address in addresses:
            await transport.dial(address)

        def progress(here: int, size: int) -> None:
            print(json.dumps({"here": here}), flush=True)

        result = await driver.fetch(root, size_bytes, None, progress, by_hand=True)
        outcome = {"resumed": result.resumed_bytes, "sources": result.sources}
        print(json.dumps(outcome), flush=True)


def add(folder: Path, data: bytes) -> bytes:
    """Put a bundle into a folder, and return its root."""
    from gossip.bundle_files import root_of

    return root_of(BundleFiles(folder).add(data))


@contextmanager
def holder(folder: Path, root: bytes, manner: str = "honest") -> Iterator[tuple[int, str]]:
    """Run a holder in a process of its own; gives its process id and its address."""
    command = [sys.executable, __file__, "hold", str(folder), root.hex(), "--manner", manner]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield process.pid, json.loads(process.stdout.readline())["address"]
        finally:
            process.stdin.close()
            process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    holding = commands.add_parser("hold")
    fetching = commands.add_parser("fetch")
    for each in (holding, fetching):
        each.add_argument("folder", type=Path)
        each.add_argument("root", type=bytes.fromhex)
    holding.add_argument("--manner", choices=MANNERS, default="honest")
    fetching.add_argument("bytes", type=int)
    fetching.add_argument("addresses", nargs="+")
    args = parser.parse_args()
    if args.command == "hold":
        trio.run(partial(hold, args.folder, args.root, args.manner))
    else:
        trio.run(partial(fetch, args.folder, args.root, args.bytes, args.addresses))


if __name__ == "__main__":
    main()
