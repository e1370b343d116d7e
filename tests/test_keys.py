"""A new key for an old one: on disk, in the replicas of real drivers, and against a thief."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import TypeVar

import pytest
import trio
from gossip_kit import NOW_H, NOW_S, card, signed
from support_faults import killed_at, steps_of
from support_transport import MemoryTransport, Wire
from trio.testing import MockClock

from gossip.config import GossipConfig
from gossip.core import Replica
from gossip.driver import GossipDriver
from gossip.exchange import Exchange
from gossip.exchange_events import ExchangeConfig
from gossip.keys import Keys
from gossip.ports import Arrived, Channel, PeerId
from gossip.sqlite_store import SqliteStore
from gossip.wire import EPOCH_MAX, Env, Have, Standing, decode, encode
from gossip.wire import KeyDoc as Doc
from node import keyfiles, rekeying
from node.app import App
from node.identity import IdentityError, load_or_create
from node.mailbox import Rekey
from node.rekeying import KeysError, rotate

T = TypeVar("T")
LATER_S = 5_000


class Clock:
    def __init__(self) -> None:
        self.s = float(NOW_S)

    def now_s(self) -> float:
        return self.s


def opened(home: Path) -> App:
    home.mkdir(mode=0o700, exist_ok=True)
    app = App(home, Clock())
    app.identity  # noqa: B018 - a home has keys
    return app


@pytest.fixture
def app(tmp_path: Path) -> App:
    return opened(tmp_path / "home")


# ---- on disk -------------------------------------------------------------------------------------


def test_a_new_epoch_has_a_new_key_that_the_same_root_has_signed(app: App) -> None:
    before = app.identity
    keys = rotate(app)
    after = load_or_create(app.home, 0.0)
    assert after.keys.doc == keys.doc and after.keys.op.private_bytes_raw()
    assert (after.origin, after.transport) == (before.origin, before.transport)
    assert (keys.doc.epoch, keys.doc.revoked) == (2, ())
    assert keys.doc.op != before.keys.doc.op


def test_each_rotation_is_an_epoch_of_its_own_and_what_was_revoked_stays_so(app: App) -> None:
    assert rotate(app, revoke=True).doc.revoked == (1,)
    assert rotate(app).doc.revoked == (1,)
    third = rotate(app, revoke=True).doc
    assert (third.epoch, third.revoked) == (4, (1, 3))


def test_the_running_node_is_told_by_mailbox(app: App) -> None:
    rotate(app)
    assert [letter.order for letter in app.mailbox.waiting()] == [Rekey()]


def test_what_signs_receipts_of_consent_is_the_new_key(app: App) -> None:
    app.consent.record_consent("me", True, "1.0")
    doc = rotate(app).doc
    app.consent.record_consent("me", False, "1.0")
    signed_by = [decode(each.key_doc, Doc).epoch for each in app.consent.receipts()]
    assert signed_by == [1, doc.epoch]


def test_a_kill_at_any_write_leaves_the_old_key_or_the_new_and_never_a_second_of_one_epoch(
    app: App,
) -> None:
    app.mailbox.close()
    before, docs = app.identity.keys.doc, {app.identity.keys.doc.epoch: app.identity.keys.doc}
    steps = steps_of(lambda: rotate(App(app.home, Clock())))
    assert steps > 10
    for step in range(1, steps + 1):
        killed_at(step, lambda: rotate(App(app.home, Clock())))
        doc = load_or_create(app.home, 0.0).keys.doc  # raises if the files do not fit
        assert docs.setdefault(doc.epoch, doc) == doc
        assert doc.root == before.root
    assert len(docs) > 3
    rotate(App(app.home, Clock()))
    left = {path.name for path in (app.home / "keys").iterdir() if "op.doc." not in path.name}
    assert left == {"root.key", "op.key", "op.doc", "transport.key"}


def test_a_kill_while_keys_are_made_leaves_none_or_all(tmp_path: Path) -> None:
    def make(home: Path) -> Callable[[], object]:
        home.mkdir(mode=0o700)
        return lambda: load_or_create(home, NOW_S)

    steps = steps_of(make(tmp_path / "counted"))
    for step in range(1, steps + 1):
        home = tmp_path / f"at{step}"
        killed_at(step, make(home))
        first = load_or_create(home, NOW_S).origin
        assert load_or_create(home, NOW_S).origin == first


def test_keys_of_which_a_part_is_lost_are_never_made_anew(app: App) -> None:
    for name in ("op.doc", "root.key", "transport.key"):
        kept = (app.home / "keys" / name).read_bytes()
        (app.home / "keys" / name).unlink()
        with pytest.raises(IdentityError, match=f"{name} missing"):
            load_or_create(app.home, NOW_S)
        (app.home / "keys" / name).write_bytes(kept)
        (app.home / "keys" / name).chmod(0o600)


def test_a_change_that_was_damaged_or_names_other_files_is_refused(app: App) -> None:
    path = app.home / "keys" / keyfiles.CHANGE
    for blob in (b"", b'{"files":{"../../outside":"AAAA"}}', b'{"files":{}, "gone":["x"]}'):
        path.write_bytes(blob)
        path.chmod(0o600)
        with pytest.raises(IdentityError, match="damaged"):
            load_or_create(app.home, NOW_S)
    path.unlink()
    assert load_or_create(app.home, NOW_S).origin == app.origin


def test_the_last_epoch_cannot_be_passed(app: App) -> None:
    rekeying._remember(app, EPOCH_MAX)
    with pytest.raises(KeysError, match="used up"):
        rotate(app)


def test_an_epoch_that_this_machine_remembers_is_not_begun_a_second_time(
    app: App, tmp_path: Path
) -> None:
    backup = {path.name: path.read_bytes() for path in (app.home / "keys").iterdir()}
    second = rotate(app).doc
    for name, blob in backup.items():  # the home is put back from a backup
        (app.home / "keys" / name).write_bytes(blob)
    third = rotate(app).doc
    assert (second.epoch, third.epoch) == (2, 3)


# ---- among peers ---------------------------------------------------------------------------------


class Peer:
    """A real replica, store and driver over a transport in memory."""

    def __init__(self, wire: Wire, name: str, app: App) -> None:
        self.app = app
        self.transport: MemoryTransport = wire.end(name)
        self.start()

    def start(self) -> None:
        app, rng = self.app, Random(self.transport.name)
        self.store: SqliteStore = app.mesh_store
        config = GossipConfig(sync_interval_s=5.0)
        self.replica = Replica(app.identity.keys, config, rng, self.store.load())
        self.driver = GossipDriver(
            self.replica,
            Exchange(ExchangeConfig(), rng),
            self.transport,
            self.store,
            app.bundles.files,
            clock=lambda: NOW_S + trio.current_time(),
            in_thread=at_once,
        )

    def sees(self, origin: bytes) -> tuple[Standing, int]:
        """How an origin stands here, and the epoch of its head; 0 without one."""
        view = self.replica.view(origin)
        return view.standing, view.head.epoch if view.head else 0


async def at_once(work: Callable[[], T]) -> T:
    await trio.lowlevel.checkpoint()
    return work()


@asynccontextmanager
async def mesh(tmp_path: Path, *names: str) -> AsyncIterator[list[Peer]]:
    wire = Wire()
    peers = [Peer(wire, name, opened(tmp_path / name)) for name in names]
    async with trio.open_nursery() as nursery:
        for peer in peers:
            await nursery.start(peer.driver.run)
        for i, a in enumerate(peers):
            for b in peers[i + 1 :]:
                wire.connect(a.transport, b.transport)
        yield peers
        nursery.cancel_scope.cancel()


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(LATER_S):
        while not holds():
            await trio.sleep(1)


def stolen_heads(keys: Keys) -> tuple[Env, Env]:
    """Two heads of one number, as only a thief or a twin signs them."""
    seq = (NOW_H << 16) + 9
    one, _ = signed(card(1), by=keys, seq=seq)
    two, _ = signed(card(2), by=keys, seq=seq)
    return one, two


async def tell(wire_peer: Peer, via: PeerId, frame: bytes) -> None:
    wire_peer.transport.put(Arrived(via, Channel.SYNC, frame))
    await trio.sleep(1)


async def published(owner: Peer, *others: Peer) -> None:
    await owner.driver.publish([card(1)], (), ())
    origin, epoch = owner.app.origin, owner.app.identity.keys.doc.epoch
    await until(lambda: all(p.sees(origin) == (Standing.SOUND, epoch) for p in (owner, *others)))


async def test_peers_take_the_new_epoch_and_what_stood_under_the_old_is_signed_anew(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with mesh(tmp_path, "owner", "bob", "carol") as (owner, bob, carol):
        await published(owner, bob, carol)
        await owner.driver.rekey(rotate(owner.app))
        await until(lambda: all(p.sees(owner.app.origin)[1] == 2 for p in (owner, bob, carol)))
        assert [c.leaf for c in bob.replica.view(owner.app.origin).cards] == [card(1).leaf]


async def test_a_frozen_origin_is_healed_by_its_next_epoch(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with mesh(tmp_path, "owner", "bob", "carol") as (owner, bob, carol):
        await published(owner, bob, carol)
        origin = owner.app.origin
        for head in stolen_heads(owner.app.identity.keys):
            frame = encode(Have((owner.app.identity.keys.doc,), (head,), (), ()))
            await tell(bob, carol.transport.name, frame)
        await until(lambda: all(p.sees(origin)[0] is Standing.FROZEN for p in (owner, bob, carol)))
        assert rekeying.standing(owner.app)["standing"] == "frozen"
        await owner.driver.rekey(rotate(owner.app))
        await published(owner, bob, carol)
        assert rekeying.standing(owner.app)["standing"] == "sound"


async def test_after_a_revocation_nothing_that_the_stolen_key_signs_is_taken(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with mesh(tmp_path, "owner", "bob", "carol") as (owner, bob, carol):
        await published(owner, bob, carol)
        origin, stolen = owner.app.origin, owner.app.identity.keys
        await owner.driver.rekey(rotate(owner.app, revoke=True))
        await until(lambda: all(p.sees(origin)[1] == 2 for p in (owner, bob, carol)))
        stands = [p.replica.view(origin).head for p in (owner, bob, carol)]
        for n in range(20):
            head, _ = signed(card(2), by=stolen, seq=(NOW_H << 16) + 100 + n)
            for peer, via in ((bob, carol), (carol, bob), (owner, bob)):
                frame = encode(Have((stolen.doc,), (head,), (), ()))
                await tell(peer, via.transport.name, frame)
        assert [p.replica.view(origin).head for p in (owner, bob, carol)] == stands
        assert all(p.sees(origin)[0] is Standing.SOUND for p in (owner, bob, carol))


async def test_a_revocation_is_told_though_nothing_is_published(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with mesh(tmp_path, "owner", "bob") as (owner, bob):
        await owner.driver.withhold()
        keys = rotate(owner.app, revoke=True)
        await owner.driver.rekey(keys)
        await until(lambda: owner.app.origin in bob.replica.origins())
        assert rekeying.claims_known(owner.app).keys[2] == keys.doc


async def test_a_rotation_while_the_node_is_down_takes_effect_at_its_next_start(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with mesh(tmp_path, "owner", "bob") as (owner, bob):
        await published(owner, bob)
    home = owner.app.home
    rotate(opened(home))
    async with mesh(tmp_path, "owner", "bob") as (owner, bob):
        assert owner.app.identity.keys.doc.epoch == 2
        await published(owner, bob)


async def test_restored_keys_begin_no_epoch_before_a_peer_has_told_the_last(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    copy = tmp_path / "copy"
    async with mesh(tmp_path, "owner", "bob") as (owner, bob):
        rekeying.export(owner.app, copy, "a long passphrase")
        await published(owner, bob)
        await owner.driver.rekey(rotate(owner.app))
        await published(owner, bob)
    new = App(tmp_path / "new", Clock())
    new.home.mkdir(mode=0o700)
    rekeying.restore(new, copy, "a long passphrase")
    with pytest.raises(KeysError, match="no peer has said yet"):
        rotate(new)
    async with mesh(tmp_path, "new", "bob") as (restored, bob):
        await restored.driver.publish([card(1)], (), ())
        await until(lambda: bool(rekeying.claims_known(restored.app).keys))
        await trio.sleep(60)
        assert bob.sees(restored.app.origin) == (Standing.SOUND, 2)  # nothing old was signed
        assert rekeying.standing(restored.app)["standing"] == "superseded"
        assert restored.replica.rollbacks > 0  # on which the node asks for consent again
        keys = rotate(restored.app)
        assert keys.doc.epoch == 3
        await restored.driver.rekey(keys)
        await published(restored, bob)
