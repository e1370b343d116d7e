"""Blobs and one index in an S3-compatible store, through obstore.

Such a store is a mirror that nobody vouches for. What comes from it is believed only if its hash is
the address it was asked for by; what is put there is put if absent; the index is replaced only by
who has seen what is replaced. Nothing but this module imports obstore, and nothing imports this
module unless a registry at s3:// is configured.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gossip.bundle_files import chunk_list
from gossip.wire import BLOB_BYTES_MAX, CHUNK_BYTES, encode
from leaves.bundle import BUNDLE_BYTES_MAX

from .bundles import address_of, checked, list_of
from .errors import OwnerError

if TYPE_CHECKING:
    from obstore.store import S3Config, S3Store

    from .config import RegistryConfig

FOLDER = "bundles"
CONNECT_TIMEOUT = timedelta(seconds=3)
TIMEOUT = timedelta(seconds=60)  # of one request: 30 MB at 4 Mbit/s
RETRIES = 2
RETRY_TIMEOUT = timedelta(seconds=10)  # of all tries of one request together
SAID_CHARS_MAX = 300  # of what the store says; what follows is for its developers


class S3Error(OwnerError):
    """The store cannot be reached, or does not do what was asked."""


@dataclass(frozen=True, slots=True)
class S3Place:
    """Where in which store. The keys stand in the environment, and are kept nowhere."""

    bucket: str
    prefix: str = ""
    endpoint: str = ""  # empty: Amazon's own
    region: str = "us-east-1"
    key_env: str = "AWS_ACCESS_KEY_ID"
    secret_env: str = "AWS_SECRET_ACCESS_KEY"
    token_env: str = "AWS_SESSION_TOKEN"
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)

    @classmethod
    def of(cls, config: RegistryConfig) -> S3Place:
        """The place of a URL, s3://BUCKET/PREFIX."""
        parts = urlsplit(config.url)
        if parts.scheme != "s3" or not parts.netloc:
            raise S3Error(
                f"the registry {config.url!r} is no folder and no s3://BUCKET/PREFIX",
                unchanged="Nothing was sent.",
                next_step="Mend `url` under [registry] in groove.toml.",
            )
        return cls(
            parts.netloc,
            parts.path.strip("/"),
            config.endpoint,
            config.region,
            config.key_env,
            config.secret_env,
        )

    def __str__(self) -> str:
        path = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        return f"{path} at {self.endpoint}" if self.endpoint else path


class S3Client:
    """One place of a store, and its failures as the owner can mend them."""

    def __init__(self, place: S3Place) -> None:
        self.place = place

    def get(self, path: str, bytes_max: int) -> tuple[bytes, str] | None:
        """An object and its tag, None if there is none; S3Error if it is longer than it may be."""
        import obstore

        with self._failures():
            try:
                found = obstore.get(self._store, path)
            except FileNotFoundError as problem:
                if "NoSuchBucket" in str(problem):
                    raise
                return None
            data = bytearray()
            for piece in found.stream():
                data += piece
                if len(data) > bytes_max:
                    raise S3Error(
                        f"{path} in {self.place} is longer than {bytes_max:,} bytes",
                        unchanged="It was not read to its end.",
                        next_step="It is none of groove-node's: remove it there.",
                    )
            return bytes(data), found.meta["e_tag"] or ""

    def size_bytes(self, path: str) -> int | None:
        """How long an object is, None if there is none."""
        import obstore

        with self._failures():
            try:
                return int(obstore.head(self._store, path)["size"])
            except FileNotFoundError as problem:
                if "NoSuchBucket" in str(problem):
                    raise
                return None

    def read(self, path: str, start: int, size_bytes: int) -> bytes | None:
        """A part of an object, shorter at its end; None if there is none, or it ends before."""
        import obstore

        with self._failures():
            try:
                part = obstore.get_range(self._store, path, start=start, length=size_bytes)
            except FileNotFoundError as problem:
                if "NoSuchBucket" in str(problem):
                    raise
                return None
            return bytes(part)[:size_bytes] or None

    def create(self, path: str, data: bytes) -> bool:
        """Put an object where there is none; False if there is one."""
        import obstore

        with self._failures():
            try:
                obstore.put(self._store, path, data, mode="create", use_multipart=False)
            except obstore.exceptions.AlreadyExistsError:
                return False
            return True

    def replace(self, path: str, data: bytes, tag: str | None) -> bool:
        """Put an object in the place of the one of this tag; False if another is there by now.

        tag: None replaces whatever is there.
        """
        import obstore

        with self._failures():
            try:
                seen: Any = "overwrite" if tag is None else {"e_tag": tag}
                obstore.put(self._store, path, data, mode=seen, use_multipart=False)
            except (obstore.exceptions.PreconditionError, FileNotFoundError) as problem:
                if "NoSuchBucket" in str(problem):
                    raise
                return False
            return True

    def delete(self, path: str) -> bool:
        """Remove an object; False if there was none."""
        import obstore

        with self._failures():
            try:
                obstore.head(self._store, path)
            except FileNotFoundError as problem:
                if "NoSuchBucket" in str(problem):
                    raise
                return False
            obstore.delete(self._store, path)
            return True

    @cached_property
    def _store(self) -> S3Store:
        try:
            from obstore.store import S3Store
        except ImportError as problem:
            raise S3Error(
                f"a registry at s3:// needs obstore, which cannot be imported: {problem}",
                unchanged="Nothing was sent.",
                next_step="`pip install 'groove-node[s3]'`.",
            ) from None
        place = self.place
        keys: S3Config = {
            "access_key_id": self._secret(place.key_env),
            "secret_access_key": self._secret(place.secret_env),
            "region": place.region,
        }
        if token := place.environment.get(place.token_env):
            keys["session_token"] = token
        if place.endpoint:
            keys["endpoint"] = place.endpoint
        return S3Store(
            place.bucket,
            prefix=place.prefix or None,
            config=keys,
            client_options={
                "allow_http": place.endpoint.startswith("http://"),
                "connect_timeout": CONNECT_TIMEOUT,
                "timeout": TIMEOUT,
            },
            retry_config={"max_retries": RETRIES, "retry_timeout": RETRY_TIMEOUT},
        )

    def _secret(self, name: str) -> str:
        value = self.place.environment.get(name)
        if not value:
            raise S3Error(
                f"the environment has no {name}, which {self.place} asks for",
                unchanged="Nothing was sent.",
                next_step="Set it where groove-node is started; or name another variable by "
                "`key_env` and `secret_env` under [registry] in groove.toml.",
            )
        return value

    @contextmanager
    def _failures(self) -> Iterator[None]:
        self._store  # noqa: B018 - its own failures first: without obstore there is no class below
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError, ValueError) as problem:
            said = " ".join(str(problem).partition("Debug source:")[0].split())
            raise S3Error(
                f"{self.place} cannot be used: {said[:SAID_CHARS_MAX]}",
                unchanged="What was put there before is as it was.",
                next_step="Look at `url` and `endpoint` under [registry] in groove.toml, at the "
                "keys in the environment, and whether the bucket is there.",
            ) from None


class S3BlobStore:
    """`leaves.ports.BlobStore` in an S3-compatible store. Nothing of it is kept here."""

    def __init__(self, client: S3Client, folder: str = FOLDER) -> None:
        self._client = client
        self._folder = folder

    def put(self, data: bytes) -> str:
        address = address_of(data)
        path = self._path(address)
        # First, so that who finds the bundle finds how it is checked chunk by chunk.
        self._client.replace(list_path(address, self._folder), encode(chunk_list(data)), None)
        if not self._client.create(path, data):
            there = self._client.get(path, BUNDLE_BYTES_MAX)
            if there is None or address_of(there[0]) != address:  # damaged there: mend it
                self._client.replace(path, data, None)
        return address

    def get(self, address: str) -> bytes | None:
        """Raises WrongBlobError if the store has something else under the address."""
        found = self._client.get(self._path(address), BUNDLE_BYTES_MAX)
        return checked(address, found[0], str(self._client.place)) if found else None

    def delete(self, address: str) -> bool:
        found = self._client.delete(self._path(address))
        self._client.delete(list_path(address, self._folder))
        return found

    def path(self, address: str) -> Path | None:
        """None: nothing of it is here."""
        return None

    def _path(self, address: str) -> str:
        return f"{self._folder}/{bytes.fromhex(address).hex()}.bundle"


def list_path(address: str, folder: str = FOLDER) -> str:
    """Where the list of a bundle's chunks is: a mirror is asked for parts of a bundle."""
    return f"{folder}/{bytes.fromhex(address).hex()}.list"


class S3Source:
    """`mirror.Source`: ranged reads of what a registry holds."""

    def __init__(self, client: S3Client) -> None:
        self._client = client

    def chunk_list(self, root: bytes) -> bytes | None:
        listed = self._client.get(list_path(root.hex()), BLOB_BYTES_MAX)
        if listed is not None:
            return listed[0]
        size_bytes = self._client.size_bytes(self._path(root))
        return list_of(partial(self.read, root), root, size_bytes) if size_bytes else None

    def read(self, root: bytes, index: int) -> bytes | None:
        return self._client.read(self._path(root), index * CHUNK_BYTES, CHUNK_BYTES)

    def _path(self, root: bytes) -> str:
        return f"{FOLDER}/{root.hex()}.bundle"


class S3Cell:
    """`registry.Cell`: an object that is replaced by compare-and-swap, on its entity tag."""

    def __init__(self, client: S3Client, path: str, bytes_max: int) -> None:
        self._client = client
        self._path = path
        self._bytes_max = bytes_max

    def __str__(self) -> str:
        return f"{self._path} in {self._client.place}"

    def read(self) -> tuple[bytes, str] | None:
        return self._client.get(self._path, self._bytes_max)

    def swap(self, data: bytes, seen: str | None) -> bool:
        if seen is None:
            return self._client.create(self._path, data)
        return self._client.replace(self._path, data, seen)
