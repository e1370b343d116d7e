"""A registry in a folder: the contract, and what of a home is pushed to it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from support_publishing import Probing, grow, mature, opened
from support_registry import A, RegistryContract, stocked

from leaves.bundle import unpack
from leaves.ports import BlobStore
from node import cli, orders, publishing
from node.app import App
from node.bundles import BundleStore
from node.config import RegistryConfig
from node.consent import CURRENT_CONSENT_VERSION, Scope
from node.mailbox import Retract
from node.registry import (
    Index,
    Registry,
    RegistryError,
    in_folder,
    open_registry,
    push,
    push_after_round,
    push_home,
)
from node.told import Told


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


# ---- what of a home is pushed ------------------------------------------------------------------


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of three mature leaves that give nothing away; for copying."""
    return grow(tmp_path_factory.mktemp("grown"), Probing())


@pytest.fixture
def app(tmp_path: Path, grown: Path) -> App:
    """The home, whose registry is a folder beside it."""
    home = shutil.copytree(grown, tmp_path / "home")
    app = opened(home)
    config = msgspec.structs.replace(app.config.registry, url=str(tmp_path / "shelf"))
    app.config = msgspec.structs.replace(app.config, registry=config)
    return app


def offered(app: App) -> Index:
    registry = open_registry(app.config.registry)
    assert registry is not None
    return registry.index()


def test_mature_leaves_are_offered_with_their_controls_and_labels(app: App) -> None:
    told: list[Told] = []
    push_after_round(app, told.append)
    registry = open_registry(app.config.registry)
    assert registry is not None and "3 leaves offered, 3 of them new" in told[0].text
    for leaf in mature(app):
        entry = registry.index().of(app.origin.hex())[leaf.id]
        bundle = registry.blobs.get(entry.bundle)
        assert bundle is not None and registry.blobs.get(entry.control) is not None
        assert hashlib.sha256(unpack(bundle).label).hexdigest() == entry.label
    push_after_round(app, told.append)
    assert len(told) == 1, "what is there already is no news"


def test_a_leaf_that_is_withheld_is_taken_back_with_its_bundles(app: App) -> None:
    push_home(app)
    leaf = mature(app)[0]
    entry = offered(app).of(app.origin.hex())[leaf.id]
    publishing.say(app.home, [leaf.id], False)
    done = push_home(app)
    assert done is not None and done[0].removed == (leaf.id,)
    registry = open_registry(app.config.registry)
    assert registry is not None
    assert leaf.id not in registry.index().of(app.origin.hex())
    assert registry.blobs.get(entry.bundle) is None and registry.blobs.get(entry.control) is None


def test_a_retraction_that_waits_for_the_node_counts_already(app: App) -> None:
    push_home(app)
    leaf = mature(app)[0]
    app.mailbox.post(Retract(leaf.id), 1.0)
    push_home(app)
    assert leaf.id not in offered(app).of(app.origin.hex())
    app.mailbox.post(Retract(None), 2.0)
    push_home(app)
    assert offered(app) == Index()


def test_an_order_to_retract_takes_a_leaf_back_at_once(app: App) -> None:
    push_home(app)
    leaf = mature(app)[0]
    orders.retract(app, leaf.id)
    assert leaf.id not in offered(app).of(app.origin.hex())


def test_without_the_scope_everything_is_taken_back(app: App) -> None:
    push_home(app)
    app.consent.record_consent(app.user_id, True, CURRENT_CONSENT_VERSION, scopes=(Scope.CAPTURE,))
    push_home(app)
    assert offered(app) == Index()


def test_a_registry_out_of_reach_is_told_and_ends_no_round(app: App, tmp_path: Path) -> None:
    (tmp_path / "shelf").touch()
    told: list[Told] = []
    push_after_round(app, told.append)
    assert "registry not brought up to date" in told[0].text


def test_the_commands_push_and_list(
    app: App, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(App, "open", lambda: app)

    def said(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(["registry", *arguments])
        assert ended.value.code == 0
        return capsys.readouterr().out

    assert "3 leaves offered" in said("push")
    listed = said("list")
    assert all(leaf.name in listed for leaf in mature(app)) and "this node" in listed
    plain = msgspec.json.decode(said("list", "--json"))
    assert {entry["leaf"] for entry in plain["leaves"]} == {leaf.id for leaf in mature(app)}
