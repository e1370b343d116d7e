"""What was tried against a whole node, and must not work again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import gossip_kit
import msgspec
import numpy as np
import pytest
import trio

from gossip.downloads import FetchError, FetchResult
from gossip.events import SyncDue, Withhold
from leaves.bundle import CheckedBundle
from leaves.model import LeafId, Stage, Vector, unit
from leaves.training.chassis import Chassis, Linear
from node import fetch, rights
from node.app import App
from node.capture import DomainTagger, PIIScrubber, TrainingDataIntake
from node.capture.sources.importing import import_sessions
from node.capture.sources.jsonl import JsonlSource
from node.consent import Scope
from node.daemon import Daemon
from node.errors import OwnerError
from node.fetch import Fetcher
from node.foreign import State
from node.home import HomeError
from node.mailbox import Dial, Retract
from node.mesh import ForeignLeaf
from node.routing import RoutingError

ORIGIN = "02" * 32
CHASSIS = Chassis(Path(), "d" * 64, {"q_proj": Linear(100, 100, 1.0)}, {})


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path / "home"))
    app = App.open(create=True)
    assert app.origin
    any_app: Any = app
    any_app.chassis = CHASSIS
    return app


def vector(seed: int) -> Vector:
    drawn = np.random.default_rng(seed).normal(size=(1, 384)).astype(np.float32)
    row: Vector = unit(drawn)[0]
    return row


def foreign(root: str | None = "e" * 64, *, version: int = 1, number: int = 0, **about: Any) -> Any:
    fields: dict[str, Any] = {
        "origin": ORIGIN,
        "leaf": LeafId(f"{number:032x}"),
        "version": version,
        "stage": Stage.MATURE,
        "sessions_log2": 9,
        "root": root,
        "label": "f" * 64,
        "size_bytes": 1000,
        "chassis": CHASSIS.tag8.hex(),
        "centroid": vector(number),
    }
    return ForeignLeaf(**{**fields, **about})


class Peers:
    """Stands where the gossip driver stands: bundles that peers have, by root."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.asked: list[str] = []
        self.before_it_is_here: Callable[[], Awaitable[None]] | None = None

    async def fetch(self, root: bytes, size_bytes: int, *, by_hand: bool = False) -> FetchResult:
        self.asked.append(root.hex())
        path = self._app.bundles.files.path(root)
        if not path.exists():
            self._app.bundles.files.part_path(root).write_bytes(bytes(size_bytes))
            if self.before_it_is_here is not None:
                await self.before_it_is_here()
            raise FetchError("no holder left")
        return FetchResult(path, size_bytes, {}, size_bytes)

    async def remove_bundle(self, root: bytes) -> None:
        self._app.bundles.files.remove(root)


async def nothing() -> None:
    pass


def fetcher(app: App, peers: Peers) -> Fetcher:
    driver: Any = peers
    return Fetcher(app, driver, nothing, lambda told: None, Random(0))


def bundles(app: App) -> list[str]:
    return sorted(path.name for path in (app.home / "bundles").iterdir())


# ---- hostile peers -------------------------------------------------------------------------------


def test_an_accepted_leaf_that_moves_its_centroid_is_judged_again(app: App) -> None:
    app.foreign.replace_origin(ORIGIN, [foreign()])
    app.foreign.settle(app.foreign.all()[0], State.ACCEPTED, {"gate": 0.4})
    app.foreign.replace_origin(ORIGIN, [foreign(version=2, centroid=vector(9))])
    assert app.foreign.all()[0].state is State.HEARD


async def test_a_peers_card_over_an_own_bundle_never_deletes_it(app: App) -> None:
    root = app.bundles.put(b"what this node trained")
    app.foreign.replace_origin(ORIGIN, [foreign(root)])
    peers = Peers(app)
    await fetcher(app, peers).bring(app.foreign.all()[0])
    assert app.foreign.all()[0].state is State.REFUSED
    gone = app.foreign.retract(ORIGIN, None)
    await fetcher(app, peers).let_go(gone)
    assert app.bundles.get(root) == b"what this node trained"


async def test_an_own_bundle_is_not_served_because_a_peer_names_it(app: App) -> None:
    app.consent.grant_scope(app.user_id, Scope.FETCH)
    any_app: Any = app
    any_app.own_roots = lambda: {"a" * 64}
    app.foreign.replace_origin(ORIGIN, [foreign("a" * 64), foreign("b" * 64, number=1)])
    for known in app.foreign.all():
        app.foreign.settle(known, State.ACCEPTED, {"control_root": ""})
    assert app.roots_to_serve() == ["b" * 64]


async def test_a_leaf_retracted_while_it_is_fetched_leaves_nothing_on_disk(app: App) -> None:
    app.foreign.replace_origin(ORIGIN, [foreign()])
    peers = Peers(app)
    bringing = fetcher(app, peers)

    async def retracted() -> None:
        await bringing.let_go(app.foreign.retract(ORIGIN, None))

    peers.before_it_is_here = retracted
    await bringing.bring(app.foreign.all()[0])
    assert bundles(app) == [] and app.foreign.expected() == {}


async def test_a_bundle_larger_than_any_of_the_chassis_is_not_even_asked_for(app: App) -> None:
    size = fetch.largest_bundle(app.chassis) + 1
    app.foreign.replace_origin(ORIGIN, [foreign(size_bytes=size)])
    peers = Peers(app)
    await fetcher(app, peers).bring(app.foreign.all()[0])
    assert peers.asked == [] and app.foreign.all()[0].state is State.REFUSED


async def test_bundles_that_never_come_whole_stay_within_a_bound(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh = msgspec.structs.replace(app.config.mesh, cache_bytes_max=3500)
    monkeypatch.setattr(app, "config", msgspec.structs.replace(app.config, mesh=mesh))
    leaves = [foreign(f"{n:064x}", number=n) for n in range(10)]
    app.foreign.replace_origin(ORIGIN, leaves)
    bringing = fetcher(app, Peers(app))
    for known in app.foreign.all():
        await bringing.bring(known)
    assert len(bundles(app)) == len(app.foreign.expected()) == 3


async def test_an_origin_that_keeps_nothing_does_not_hold_up_the_others(app: App) -> None:
    bad = [foreign(f"{n:064x}", number=n) for n in range(8)]
    good = foreign("9" * 64, number=99, origin="03" * 32)
    app.foreign.replace_origin(ORIGIN, bad)
    peers = Peers(app)
    bringing = fetcher(app, peers)
    any_fetcher: Any = bringing
    any_fetcher._wanted = lambda *_: [
        k for k in app.foreign.all() if k.leaf.root not in peers.asked
    ]
    await bringing.bring(app.foreign.all()[0])
    app.foreign.replace_origin("03" * 32, [good])
    bringing.wake()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bringing.run)
            while len(peers.asked) < 2:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert peers.asked[1] == "9" * 64


def test_a_peers_name_cannot_steer_a_terminal() -> None:
    assert fetch.shown("ok\x9b31m\u202egpj\u2028") == "ok?31m?gpj?"
    assert len(fetch.shown("n" * 200)) == 60


# ---- never without consent -----------------------------------------------------------------------


def test_without_the_scope_no_head_is_signed_that_waited_for_peers() -> None:
    line = gossip_kit.Line(alice=gossip_kit.replica("alice"), bob=gossip_kit.replica("bob"))
    line.give(gossip_kit.ALICE, gossip_kit.publish(gossip_kit.card(1)))
    line.give(gossip_kit.ALICE, Withhold(line.now_s))
    line.connect()
    assert line.nodes[gossip_kit.ALICE].own_head() is None
    line.give(gossip_kit.ALICE, gossip_kit.publish(gossip_kit.card(1)))
    assert line.nodes[gossip_kit.ALICE].own_head() is not None


def test_without_the_scope_no_head_is_renewed() -> None:
    line = gossip_kit.Line(alice=gossip_kit.replica("alice"), bob=gossip_kit.replica("bob"))
    line.connect()
    line.give(gossip_kit.ALICE, gossip_kit.publish(gossip_kit.card(1)))
    before = line.nodes[gossip_kit.ALICE].own_head()
    line.now_s += gossip_kit.DAY_S
    line.give(gossip_kit.ALICE, Withhold(line.now_s))
    line.give(gossip_kit.ALICE, SyncDue(line.now_s))
    assert line.nodes[gossip_kit.ALICE].own_head() == before is not None


def test_what_was_scrubbed_before_a_deletion_is_not_written_after_it(
    app: App, tmp_path: Path
) -> None:
    app.consent.grant_scope(app.user_id, Scope.CAPTURE)
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps({"prompt": "a planted phrase", "completion": "yes"}) + "\n")
    intake = TrainingDataIntake(app.consent, app.corpus, PIIScrubber(), DomainTagger())
    add = app.corpus.add_records
    corpus: Any = app.corpus

    def deleted_first(records: Any, **how: Any) -> int:
        rights.delete(app)
        return add(records, **how)

    corpus.add_records = deleted_first
    result = import_sessions(JsonlSource(path), intake, app.user_id, "jsonl")
    assert (result.added, result.refused) == (0, 1)
    assert app.corpus.files() == []


def test_deletion_takes_adapters_of_all_versions_and_what_a_kill_left(app: App) -> None:
    superseded = app.bundles.put(b"an adapter of an earlier version")
    peers = app.bundles.put(b"a peer's")
    app.foreign.expect(peers, 8)
    (app.home / "adapters-x1").mkdir()
    (app.home / "adapters-x1" / "0.safetensors").write_bytes(b"a copy of an adapter")
    (app.home / ".shown.json.1.tmp").write_bytes(b"half")
    rights.delete(app)
    assert app.bundles.get(superseded) is None and app.bundles.get(peers) is not None
    assert not list(app.home.glob("adapters-*")) and not list(app.home.glob(".*.tmp"))


def test_a_deletion_that_is_refused_is_not_carried_out_later(app: App) -> None:
    app.consent.grant_scope(app.user_id, Scope.CAPTURE)
    with app.lock("round"), pytest.raises(OwnerError):
        rights.delete(app)
    assert App.open().allows("capture")


def test_deletion_goes_through_a_damaged_list_of_what_was_shown(app: App) -> None:
    (app.home / "shown.json").write_bytes(b"\xff{not json")
    app.consent.grant_scope(app.user_id, Scope.CAPTURE)
    assert rights.delete(app)["consent_revoked"]
    assert not (app.home / "shown.json").exists() and not (app.home / rights.MARKER).exists()


# ---- damage, and bad input -----------------------------------------------------------------------


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"table-00000001.bin", b""])
def test_a_damaged_routing_table_is_named_and_the_next_one_replaces_it(
    app: App, damage: bytes
) -> None:
    app.deploy()
    app.deploy()
    (app.home / "router" / "table-00000001.bin").write_bytes(b"garbage")
    (app.home / "router" / "current").write_bytes(damage)
    with pytest.raises(RoutingError):
        app.tables.load()
    app.deploy()
    assert app.tables.load() is not None


def test_a_table_can_be_built_after_a_deletion(app: App) -> None:
    app.deploy()
    rights.delete(app)
    app.deploy()
    assert app.tables.load() is not None


@pytest.mark.parametrize("store", ["leaves", "foreign", "mailbox"])
def test_a_damaged_database_is_named_with_its_mend(app: App, store: str) -> None:
    path = app.home / f"{store}.db"
    path.write_bytes(b"no database" * 1000)
    path.chmod(0o600)
    with pytest.raises(HomeError) as caught:
        getattr(app, {"leaves": "forests"}.get(store, store))
    assert path.name in caught.value.what and caught.value.next_step


@pytest.mark.network
async def test_an_order_that_fails_does_not_block_the_next(app: App) -> None:
    daemon = Daemon(app, "/ip4/127.0.0.1/tcp/0", lambda told: None)
    bad = app.mailbox.post(Dial("not an address"), 1.0)
    mailbox: Any = app.mailbox
    mailbox._db.execute("INSERT INTO letter (order_, posted) VALUES (x'ff', 1.0)")
    good = app.mailbox.post(Retract("ab" * 16), 2.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon._driver.run)
        await daemon._carry_out_orders()
        nursery.cancel_scope.cancel()
    assert app.mailbox.waiting() == []
    assert "error" in (app.mailbox.answer_to(bad) or {})
    assert app.mailbox.answer_to(good) == {"retracted": "ab" * 16}


HOSTILE_LINES = [
    b"[" * 200_000,
    b'{"prompt":"a","completion":"b","group":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    b'{"prompt":"a","completion":"b","timestamp":' + b"9" * 400 + b"}",
    b'{"prompt":"a","completion":"b","terms_class":[1]}',
    b'{"prompt":"a\\ud800","completion":"b"}',
    b'{"prompt":"\xff","completion":"b"}',
    b"\0" * 1000,
]


def test_no_line_of_a_file_ends_its_import(tmp_path: Path) -> None:
    path = tmp_path / "hostile.jsonl"
    sound = b'{"prompt":"a","completion":"b"}'
    path.write_bytes(b"\n".join([*HOSTILE_LINES, sound]) + b"\n")
    assert len(list(JsonlSource(path))) == 3  # two of the hostile ones hold a session all the same


async def test_a_leaf_that_names_no_style_control_is_refused(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left out, it would be judged by less than the node's own leaves are."""
    label: Any = SimpleNamespace(name="n", control_root="", control_bytes=0)
    monkeypatch.setattr(fetch, "check_form", lambda blob, chassis: CheckedBundle(label, blob))
    monkeypatch.setattr(fetch, "encode_label", lambda label: b"label")
    root = app.bundles.put(b"a bundle")
    app.foreign.replace_origin(ORIGIN, [foreign(root, label=hashlib.sha256(b"label").hexdigest())])
    await fetcher(app, Peers(app)).bring(app.foreign.all()[0])
    [known] = app.foreign.all()
    assert known.state is State.REFUSED and "style control" in known.detail["reason"]
