"""A registry in a folder: the contract, and what of a home is pushed to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support_registry import A, RegistryContract, stocked

from leaves.ports import BlobStore
from node.bundles import BundleStore
from node.config import RegistryConfig
from node.registry import Registry, RegistryError, in_folder, open_registry, push


@pytest.fixture
def own(tmp_path: Path) -> BlobStore:
    return BundleStore(tmp_path / "own")


class TestFolder(RegistryContract):
    """The contract."""

    @pytest.fixture
    def registry(self, tmp_path: Path) -> Registry:
        return in_folder(tmp_path / "registry")

    @pytest.fixture
    def overwrite(self, tmp_path: Path) -> Callable[[str, bytes], None]:
        def overwrite(address: str, data: bytes) -> None:
            (tmp_path / "registry" / "bundles" / f"{address}.bundle").write_bytes(data)

        return overwrite


def test_without_a_url_there_is_no_registry() -> None:
    assert open_registry(RegistryConfig()) is None


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RegistryError, match="cannot be used"):
        open_registry(RegistryConfig(url=str(tmp_path / "file")))


def test_a_push_that_was_cut_short_is_finished_by_the_next(
    tmp_path: Path, own: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = in_folder(tmp_path / "registry")
    push(registry, own, A, [old := stocked(own, A, 1, b"old")])
    new = stocked(own, A, 2, b"new")

    def killed(*_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(registry.cell), "swap", killed)
        push(registry, own, A, [new])
    assert registry.blobs.get(old.bundle) is None, "what is taken back goes first"
    assert push(registry, own, A, [new]).removed == (old.leaf,)
    assert registry.index().of(A) == {new.leaf: new}
