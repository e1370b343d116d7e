"""The contract of `leaves.ports.BlobStore` and of a registry, which folder and S3 both keep."""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec
import pytest

from leaves.ports import BlobStore
from node.bundles import WrongBlobError, address_of
from node.errors import OwnerError
from node.registry import Entry, Index, Registry, RegistryError, push

A, B = "a1" * 32, "b2" * 32  # origins
BLOB = b"GROOVE" * 100_000  # several chunks


def entry(origin: str, number: int, bundle: bytes, version: int = 1) -> Entry:
    return Entry(
        origin=origin,
        leaf=f"{number:032x}",
        version=version,
        bundle=address_of(bundle),
        label="00" * 32,
        control=address_of(b"control of " + bundle),
        chassis="11" * 8,
        size_bytes=len(bundle),
    )


class RegistryContract:
    """Modules subclass it and have two fixtures.

    registry: an empty one. overwrite: puts other bytes in the place of a blob, behind its back.
    """

    def test_a_blob_is_found_by_its_hash_and_nothing_else(self, registry: Registry) -> None:
        address = registry.blobs.put(BLOB)
        assert address == address_of(BLOB)
        assert registry.blobs.get(address) == BLOB
        assert registry.blobs.get("00" * 32) is None

    def test_a_blob_put_twice_is_one_blob(self, registry: Registry) -> None:
        address = registry.blobs.put(BLOB)
        assert registry.blobs.put(BLOB) == address
        assert registry.blobs.delete(address)
        assert registry.blobs.get(address) is None and not registry.blobs.delete(address)

    def test_a_store_that_lies_is_not_believed(
        self, registry: Registry, overwrite: Callable[[str, bytes], None]
    ) -> None:
        address = registry.blobs.put(BLOB)
        overwrite(address, b"something else")
        with pytest.raises(WrongBlobError, match=address[:12]):
            registry.blobs.get(address)

    def test_putting_a_blob_mends_one_that_was_damaged_there(
        self, registry: Registry, overwrite: Callable[[str, bytes], None]
    ) -> None:
        address = registry.blobs.put(BLOB)
        overwrite(address, BLOB[:-1])
        assert registry.blobs.put(BLOB) == address
        assert registry.blobs.get(address) == BLOB

    @pytest.mark.parametrize("address", ["../../etc/passwd", "zz" * 32, "index.json"])
    def test_what_is_no_address_is_no_path(self, registry: Registry, address: str) -> None:
        with pytest.raises(ValueError, match="hexadecimal"):
            registry.blobs.get(address)

    def test_an_empty_registry_offers_nothing(self, registry: Registry) -> None:
        assert registry.index() == Index()

    def test_writers_at_the_same_time_lose_nothing(self, registry: Registry) -> None:
        failed: list[OwnerError] = []

        def write(origin: str) -> None:
            for number in range(5):
                fresh = entry(origin, number, b"%d" % number)

                def change(now: Index, fresh: Entry = fresh) -> Index:
                    others = now.of(origin).values()
                    return now.with_leaves_of(origin, [*others, fresh])

                try:
                    registry.update(change)
                except OwnerError as problem:
                    failed.append(problem)

        threads = [threading.Thread(target=write, args=(origin,)) for origin in (A, B)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        assert len(registry.index().of(A)) == len(registry.index().of(B)) == 5

    def test_a_swap_of_what_has_changed_since_it_was_read_is_refused(
        self, registry: Registry
    ) -> None:
        assert registry.cell.swap(b"{}", None)
        assert not registry.cell.swap(b"{ }", None)
        held = registry.cell.read()
        assert held is not None and registry.cell.swap(b'{"leaves": []}', held[1])
        assert not registry.cell.swap(b"{ }", held[1])

    def test_a_push_offers_what_it_is_given_and_takes_back_the_rest(
        self, registry: Registry, own: BlobStore
    ) -> None:
        first, second = stocked(own, A, 1, b"one"), stocked(own, A, 2, b"two")
        foreign = stocked(own, B, 1, b"theirs")
        push(registry, own, B, [foreign])
        assert push(registry, own, A, [first, second]).added == (first.leaf, second.leaf)
        assert registry.blobs.get(first.bundle) == b"one"
        done = push(registry, own, A, [second])
        assert (done.added, done.removed, done.offered) == ((), (first.leaf,), 1)
        assert registry.blobs.get(first.bundle) is None
        assert registry.blobs.get(first.control) is None
        assert registry.blobs.get(second.bundle) == b"two"
        assert registry.blobs.get(foreign.bundle) == b"theirs"
        assert registry.index() == Index(leaves=(second, foreign))

    def test_a_bundle_that_another_origin_offers_too_stays(
        self, registry: Registry, own: BlobStore
    ) -> None:
        push(registry, own, A, [stocked(own, A, 1, b"shared")])
        push(registry, own, B, [shared := stocked(own, B, 7, b"shared")])
        push(registry, own, A, [])
        assert registry.blobs.get(shared.bundle) == b"shared"

    def test_a_new_version_takes_the_place_of_the_one_before(
        self, registry: Registry, own: BlobStore
    ) -> None:
        old, new = stocked(own, A, 1, b"old"), stocked(own, A, 1, b"new", version=2)
        push(registry, own, A, [old])
        assert push(registry, own, A, [new]).added == (new.leaf,)
        assert registry.blobs.get(old.bundle) is None
        assert registry.index().of(A) == {new.leaf: new}

    def test_a_damaged_index_is_left_as_it_is(self, registry: Registry, own: BlobStore) -> None:
        registry.cell.swap(b"no index", None)
        with pytest.raises(RegistryError, match="cannot be read"):
            push(registry, own, A, [stocked(own, A, 1, b"one")])
        held = registry.cell.read()
        assert held is not None and held[0] == b"no index"

    def test_an_index_with_anything_but_addresses_is_refused(self, registry: Registry) -> None:
        plain = msgspec.to_builtins(Index(leaves=(entry(A, 1, b"one"),)))
        plain["leaves"][0]["bundle"] = "../" * 21 + "a"
        registry.cell.swap(msgspec.json.encode(plain), None)
        with pytest.raises(RegistryError):
            registry.index()


def stocked(own: BlobStore, origin: str, number: int, bundle: bytes, version: int = 1) -> Entry:
    """An offer whose two bundles are at hand."""
    own.put(bundle)
    own.put(b"control of " + bundle)
    return entry(origin, number, bundle, version)
