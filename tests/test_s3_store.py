"""A registry in an S3-compatible store: the contract, and what a store out of reach says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support_registry import BLOB, RegistryContract

from leaves.ports import BlobStore
from node.bundles import BundleStore
from node.config import RegistryConfig
from node.registry import INDEX, INDEX_BYTES_MAX, Registry, open_registry
from node.s3_store import S3BlobStore, S3Cell, S3Client, S3Error, S3Place

KEYS = {"AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "hush-hush"}
BUCKET = "leaves"

pytestmark = [
    pytest.mark.network,
    pytest.mark.skipif(
        not all(map(find_spec, ("obstore", "moto", "flask"))),
        reason="obstore, the extra `s3`, or moto is not installed",
    ),
]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    store, turn = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def one_at_a_time(environ: dict[str, Any], start: Any) -> Any:
        with turn:  # moto compares a tag and replaces the object in two steps, S3 in one
            return store(environ, start)

    server = make_server("127.0.0.1", 0, one_at_a_time, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(endpoint: str, request: pytest.FixtureRequest) -> S3Client:
    """A place of its own for each test, in a bucket that is made here."""
    import httpx

    httpx.put(f"{endpoint}/{BUCKET}", trust_env=False).raise_for_status()
    place = S3Place(BUCKET, request.node.name[:40], endpoint, environment=KEYS)
    return S3Client(place)


@pytest.fixture
def own(tmp_path: Path) -> BlobStore:
    return BundleStore(tmp_path / "own")


class TestS3(RegistryContract):
    """The contract."""

    @pytest.fixture
    def registry(self, client: S3Client) -> Registry:
        cell = S3Cell(client, INDEX, INDEX_BYTES_MAX)
        return Registry(S3BlobStore(client), cell, str(client.place))

    @pytest.fixture
    def overwrite(self, client: S3Client) -> Callable[[str, bytes], None]:
        def overwrite(address: str, data: bytes) -> None:
            client.replace(f"bundles/{address}.bundle", data, None)

        return overwrite


def test_an_object_that_is_too_long_is_not_read_to_its_end(client: S3Client) -> None:
    client.create("long", BLOB)
    with pytest.raises(S3Error, match="longer than 1,000 bytes"):
        client.get("long", 1000)


def test_a_bucket_that_is_not_there_is_no_empty_registry(endpoint: str) -> None:
    client = S3Client(S3Place("elsewhere", "", endpoint, environment=KEYS))
    with pytest.raises(S3Error, match="NoSuchBucket"):
        client.get("x", 1)
    with pytest.raises(S3Error, match="NoSuchBucket"):
        client.create("x", b"")
    with pytest.raises(S3Error, match="NoSuchBucket"):
        client.replace("x", b"", "tag")


def test_a_store_out_of_reach_is_told_with_what_to_do() -> None:
    client = S3Client(S3Place("b", "", "http://127.0.0.1:9", environment=KEYS))
    with pytest.raises(S3Error, match="cannot be used") as told:
        client.get("x", 1)
    assert "endpoint" in told.value.next_step
    assert "hush-hush" not in told.value.what and "Debug" not in told.value.what


def test_keys_that_are_not_in_the_environment_are_asked_for_by_name() -> None:
    place = S3Place("b", key_env="LAB_KEY", environment={})
    with pytest.raises(S3Error, match="LAB_KEY"):
        S3Client(place).get("x", 1)


def test_the_keys_are_in_no_representation() -> None:
    assert "hush-hush" not in repr(S3Place("b", environment=KEYS))


@pytest.mark.parametrize("url", ["https://host/b", "s3://", "s3:b"])
def test_what_is_no_s3_url_is_refused(url: str) -> None:
    with pytest.raises(S3Error, match="BUCKET/PREFIX"):
        S3Place.of(RegistryConfig(url=url))


def test_a_registry_is_opened_by_its_url(endpoint: str) -> None:
    config = RegistryConfig(url=f"s3://{BUCKET}/lab/leaves", endpoint=endpoint)
    registry = open_registry(config)
    assert registry is not None and registry.where == f"s3://{BUCKET}/lab/leaves at {endpoint}"
