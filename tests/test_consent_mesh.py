"""What peers hold of this node and it does not: then it was restored, and consent is off."""

from __future__ import annotations

from pathlib import Path

import pytest
from gossip_kit import (
    BOB,
    NOW_H,
    NOW_S,
    A,
    card,
    have,
    keys,
    manifest,
    publish,
    received,
    replica,
    retraction,
    signed,
)

from gossip.core import Replica
from gossip.events import Event, PeerUp, RetractOwn, Save
from gossip.wire import Echo, Have, Scope


def alice() -> Replica:
    node = replica("alice")
    node.handle(PeerUp(BOB, NOW_S))
    return node


def test_a_node_that_publishes_and_hears_itself_again_was_not_rolled_back() -> None:
    node = alice()
    node.handle(publish(card(1)))
    node.handle(received(BOB, Echo(A.origin, None, None)))
    own, whole = signed(card(1))
    assert node.own_head() is not None
    node.handle(received(BOB, Echo(A.origin, A.doc, own)))
    node.handle(received(BOB, have(own)))
    node.handle(received(BOB, manifest(own, whole)))
    assert node.rollbacks == 0


def test_its_own_retraction_that_comes_back_is_no_rollback() -> None:
    node = alice()
    node.handle(RetractOwn(None, NOW_S, Scope.PUBLISH))
    node.handle(received(BOB, retraction(None)))
    assert node.rollbacks == 0


@pytest.mark.parametrize("as_echo", [True, False])
def test_a_later_head_of_its_own_is_a_rollback_once(as_echo: bool) -> None:
    newer, _ = signed(card(1), seq=(NOW_H << 16) + 40)
    told: Event = received(BOB, Echo(A.origin, A.doc, newer) if as_echo else have(newer))
    node = alice()
    node.handle(publish(card(2)))
    node.handle(told)
    assert node.rollbacks == 1
    node.handle(told)
    assert node.rollbacks == 1


def test_its_own_retraction_that_it_knows_nothing_of_is_a_rollback() -> None:
    node = alice()
    node.handle(received(BOB, retraction(3)))
    assert node.rollbacks == 1
    node.handle(received(BOB, retraction(3)))
    assert node.rollbacks == 1
    node.handle(received(BOB, retraction(None)))
    assert node.rollbacks == 2


def test_a_later_key_of_its_own_is_a_rollback() -> None:
    node = alice()
    later = keys("alice", epoch=2)
    node.handle(received(BOB, Have((later.doc,), (), (), ())))
    assert node.rollbacks == 1


def test_what_peers_say_of_others_is_no_rollback() -> None:
    node = alice()
    carol = keys("carol")
    env, whole = signed(card(1), by=carol)
    node.handle(received(BOB, have(env, by=carol)))
    node.handle(received(BOB, manifest(env, whole)))
    node.handle(received(BOB, retraction(1, by=carol)))
    assert node.rollbacks == 0


@pytest.mark.network
async def test_a_running_node_turns_consent_off_once_per_rollback(
    tmp_path: Path,
) -> None:
    from node.app import App
    from node.daemon import Daemon
    from node.told import Told

    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    app = App(folder)
    app.consent.record_consent(app.user_id, True, "1.0")
    told: list[Told] = []
    daemon = Daemon(app, "/ip4/127.0.0.1/tcp/0", told.append)
    own = app.identity.keys
    now_s = int(app.clock.now_s())
    lost = retraction_of(own, now_s)
    await daemon._publisher.publish()
    assert app.allows("capture")
    effects = daemon._core.handle(received(BOB, lost, now_s))
    assert any(isinstance(each, Save) for each in effects), "nothing of it is stored so far"
    assert not app.allows("capture"), "a kill from here on loses nothing"
    await daemon._publisher.publish()
    assert [each.event for each in told] == ["suspended"]
    assert app.consent.standing(app.user_id) == "restored"
    app.consent.record_consent(app.user_id, True, "1.0")
    await daemon._publisher.publish()
    assert app.allows("capture"), "the owner's new word stands"


def retraction_of(own: object, now_s: int) -> Have:
    from gossip.envelope import seal
    from gossip.keys import Keys
    from gossip.wire import Retract

    assert isinstance(own, Keys)
    said = Retract(own.origin, own.doc.epoch, bytes(16), now_s // 3600, Scope.PUBLISH)
    return Have((own.doc,), (), (seal(said, own.op).env,), ())
