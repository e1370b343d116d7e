"""A registry as one more holder of bundles: in a folder and in an S3-compatible store."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
import trio
from support_libp2p import transport

from gossip.bundle_files import BundleFiles
from gossip.downloads import FetchError
from gossip.driver import GossipDriver
from gossip.events import Effect, Event
from gossip.exchange import Exchange
from gossip.exchange_events import ExchangeConfig
from gossip.wire import CHUNK_BYTES
from node.bundles import address_of
from node.config import Config
from node.errors import OwnerError
from node.mirror import MIRROR, FolderSource, Mirror, Source, open_mirror
from node.registry import Registry, in_folder, open_registry

KEYS = {"AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "hush-hush"}
BUCKET = "mirrored"
DATA = Random(3).randbytes(5 * CHUNK_BYTES + 99)
ROOT = bytes.fromhex(address_of(DATA))

pytestmark = pytest.mark.network
needs_s3 = pytest.mark.skipif(
    not all(map(find_spec, ("obstore", "moto", "flask"))),
    reason="obstore, the extra `s3`, or moto is not installed",
)


class Gate:
    """Stands before a store: counts requests, and can hold them up or refuse them."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.reads: list[str] = []
        self.holds = threading.Event()
        self.released = threading.Event()

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        if environ["REQUEST_METHOD"] == "GET" and "/bundles/" in environ["PATH_INFO"]:
            self.reads.append(environ.get("HTTP_RANGE", "whole"))
            if self.holds.is_set():
                self.released.wait(60)
        return self._store(environ, start)


@pytest.fixture(scope="module")
def gate() -> Iterator[tuple[Gate, str]]:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    gate = Gate(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, gate, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield gate, f"http://127.0.0.1:{server.server_port}"
    gate.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def store(
    gate: tuple[Gate, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> tuple[Gate, Registry, Mirror]:
    """A bucket as a registry, and the same as a mirror."""
    import httpx

    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    at, endpoint = gate
    httpx.put(f"{endpoint}/{BUCKET}", trust_env=False).raise_for_status()
    url = f"s3://{BUCKET}/{request.node.name[:40]}"
    config = Config()
    config = msgspec.structs.replace(
        config,
        registry=msgspec.structs.replace(config.registry, url=url, endpoint=endpoint),
        mesh=msgspec.structs.replace(config.mesh, mirror=url),
    )
    registry, mirror = open_registry(config.registry), open_mirror(config)
    assert registry is not None and mirror is not None
    at.reads.clear()
    return at, registry, mirror


class Silent:
    def handle(self, event: Event) -> list[Effect]:
        return []


@asynccontextmanager
async def fetcher(folder: Path, mirror: Mirror, **limits: Any) -> AsyncIterator[GossipDriver]:
    """A driver without a single peer, whose transport does not even listen."""
    unused: Any = None
    exchange = Exchange(ExchangeConfig(tick_s=0.05, **limits), Random(1))
    driver = GossipDriver(
        Silent(),
        exchange,
        transport(),
        unused,
        BundleFiles(folder),
        clock=trio.current_time,
        mirror=mirror,
    )
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(driver.run)
            yield driver
            nursery.cancel_scope.cancel()


class Altered:
    """A source with something wrong in it."""

    def __init__(self, source: Source, change: Callable[[bytes], bytes]) -> None:
        self._source = source
        self._change = change

    def chunk_list(self, root: bytes) -> bytes | None:
        return self._source.chunk_list(root)

    def read(self, root: bytes, index: int) -> bytes | None:
        chunk = self._source.read(root, index)
        return self._change(chunk) if chunk else None


# ---- a folder ------------------------------------------------------------------------------------


async def test_a_bundle_comes_from_a_folder_without_any_peer(tmp_path: Path) -> None:
    in_folder(tmp_path / "registry").blobs.put(DATA)
    config = Config()
    mesh = msgspec.structs.replace(config.mesh, mirror=str(tmp_path / "registry"))
    mirror = open_mirror(msgspec.structs.replace(config, mesh=mesh))
    assert mirror is not None
    async with fetcher(tmp_path / "here", mirror) as driver:
        result = await driver.fetch(ROOT, len(DATA))
    assert result.path.read_bytes() == DATA
    assert result.sources == {MIRROR: len(DATA)}


async def test_a_mirror_that_lies_is_refused_and_never_asked_again(tmp_path: Path) -> None:
    in_folder(tmp_path / "registry").blobs.put(DATA)
    lying = Altered(FolderSource(tmp_path / "registry"), lambda chunk: chunk[:-1] + b"?")
    async with fetcher(tmp_path / "here", Mirror(lying, "a liar")) as driver:
        for _ in range(2):
            with pytest.raises(FetchError, match="no holder left"):
                with trio.fail_after(20):
                    await driver.fetch(ROOT, len(DATA))
            # A second fetch has nobody to ask, and would wait for a peer.
            driver_config: Any = driver
            driver_config._exchange._config = ExchangeConfig(patience_s=0.2, tick_s=0.05)
        assert driver.refused["chunk does not match its hash"] <= 4
        assert not BundleFiles(tmp_path / "here").path(ROOT).exists()


async def test_a_folder_that_is_away_is_not_here_and_is_left_alone_for_a_while(
    tmp_path: Path,
) -> None:
    source = FolderSource(tmp_path / "registry")
    mirror = Mirror(source, "the folder")
    async with fetcher(tmp_path / "here", mirror) as driver:
        with pytest.raises(FetchError, match="no holder left"):
            await driver.fetch(ROOT, len(DATA))
        in_folder(tmp_path / "registry").blobs.put(DATA)
        with pytest.raises(FetchError, match="no holder left"):
            await driver.fetch(ROOT, len(DATA))
        mirror._rests_until = 0.0
        assert (await driver.fetch(ROOT, len(DATA))).path.read_bytes() == DATA
    assert not driver.refused


async def test_a_mirror_without_the_bundle_is_not_here(tmp_path: Path) -> None:
    in_folder(tmp_path / "registry").blobs.put(b"another")
    mirror = Mirror(FolderSource(tmp_path / "registry"), "the folder")
    async with fetcher(tmp_path / "here", mirror) as driver:
        with pytest.raises(FetchError, match="no holder left"):
            await driver.fetch(ROOT, len(DATA))
    assert not driver.refused and mirror._rests_until == 0.0


def test_a_mirror_that_is_neither_a_folder_nor_a_bucket_is_the_owners_to_mend() -> None:
    config = Config()
    for url in ("https://example.org/leaves", "s3:///leaves"):
        mesh = msgspec.structs.replace(config.mesh, mirror=url)
        with pytest.raises(OwnerError, match="no folder and no s3"):
            open_mirror(msgspec.structs.replace(config, mesh=mesh))
    assert open_mirror(config) is None


# ---- a bucket ------------------------------------------------------------------------------------


@needs_s3
async def test_a_bundle_comes_from_a_bucket_by_ranges(
    tmp_path: Path, store: tuple[Gate, Registry, Mirror]
) -> None:
    gate, registry, mirror = store
    registry.blobs.put(DATA)
    gate.reads.clear()
    async with fetcher(tmp_path / "here", mirror) as driver:
        result = await driver.fetch(ROOT, len(DATA))
    assert result.path.read_bytes() == DATA
    assert sorted(gate.reads)[:6] == sorted(
        f"bytes={at}-{at + CHUNK_BYTES - 1}" for at in range(0, len(DATA), CHUNK_BYTES)
    )
    assert len(gate.reads) == 7  # the list, once


@needs_s3
async def test_a_bundle_without_its_list_is_read_once_more_for_it(
    tmp_path: Path, store: tuple[Gate, Registry, Mirror]
) -> None:
    _, registry, mirror = store
    registry.blobs.put(DATA)
    blobs: Any = registry.blobs
    assert blobs._client.delete(f"bundles/{ROOT.hex()}.list")
    async with fetcher(tmp_path / "here", mirror) as driver:
        assert (await driver.fetch(ROOT, len(DATA))).path.read_bytes() == DATA


@needs_s3
async def test_what_is_taken_back_from_a_bucket_leaves_no_list_behind(
    store: tuple[Gate, Registry, Mirror],
) -> None:
    _, registry, mirror = store
    registry.blobs.put(DATA)
    assert registry.blobs.delete(ROOT.hex())
    blobs: Any = registry.blobs
    assert blobs._client.get(f"bundles/{ROOT.hex()}.list", 1 << 20) is None
    assert await mirror._do(lambda: mirror._list(ROOT)) is None


@needs_s3
@pytest.mark.parametrize("damage", ["a false list", "a false bundle", "cut short"])
async def test_a_bucket_with_something_else_in_it_gives_nothing_false(
    tmp_path: Path, store: tuple[Gate, Registry, Mirror], damage: str
) -> None:
    _, registry, mirror = store
    registry.blobs.put(DATA)
    blobs: Any = registry.blobs
    path, data = {
        "a false list": (f"bundles/{ROOT.hex()}.list", b"no list"),
        "a false bundle": (f"bundles/{ROOT.hex()}.bundle", bytes(len(DATA))),
        "cut short": (f"bundles/{ROOT.hex()}.bundle", DATA[:CHUNK_BYTES]),
    }[damage]
    blobs._client.replace(path, data, None)
    async with fetcher(tmp_path / "here", mirror) as driver:
        with pytest.raises(FetchError):
            await driver.fetch(ROOT, len(DATA))
    assert not BundleFiles(tmp_path / "here").path(ROOT).exists()


@needs_s3
async def test_a_bucket_that_stalls_costs_a_fetch_its_patience_and_the_node_nothing(
    tmp_path: Path, store: tuple[Gate, Registry, Mirror]
) -> None:
    gate, registry, mirror = store
    registry.blobs.put(DATA)
    gate.holds.set()
    try:
        limits = {"blob_s": 0.2, "stall_s": 0.2, "patience_s": 1.0}
        async with fetcher(tmp_path / "here", mirror, **limits) as driver:
            with pytest.raises(FetchError, match="no holder left"):
                await driver.fetch(ROOT, len(DATA))
    finally:
        gate.holds.clear()
        gate.released.set()
