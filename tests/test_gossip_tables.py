"""Tables on their way, reconciliation, and what survives a restart."""

from __future__ import annotations

import pytest
from gossip_kit import (
    ALICE,
    BOB,
    CAROL,
    NOW_H,
    NOW_S,
    A,
    Line,
    bob,
    card,
    have,
    informed,
    keys,
    leaf,
    manifest,
    only,
    publish,
    received,
    replica,
    seed,
    sent,
    signed,
)
from msgspec.structs import replace

from gossip import frames, table
from gossip.core import Replica
from gossip.envelope import id_of, seal
from gossip.events import (
    Broadcast,
    OriginChanged,
    PeerDown,
    PeerUp,
    Received,
    Refused,
    RetractOwn,
    Save,
    Send,
    SyncDue,
    WakeAfter,
)
from gossip.ports import PeerId, Record
from gossip.records import RecordError
from gossip.wire import (
    ZERO32,
    Cards,
    CardsGet,
    Compare,
    Delta,
    Digest,
    Echo,
    EchoGet,
    Ended,
    Env,
    Gone,
    Have,
    Head,
    Index,
    Manifest,
    Reason,
    Standing,
    Summary,
    TableGet,
    Usage,
    decode,
    decode_sync,
    encode,
)

# Tables -------------------------------------------------------------------------------------------


def test_a_head_counts_only_once_its_table_is_whole() -> None:
    node = bob()
    env, whole = signed(card(1), card(2))
    asked = sent(node.handle(received(ALICE, have(env))))
    assert [type(message) for message in asked] == [TableGet]
    assert node.view(A.origin).head is None
    first = Manifest(env, whole.index, tuple(whole.live()[:1]), ())
    (more,) = sent(node.handle(received(ALICE, first)))
    assert isinstance(more, CardsGet)
    assert more.cards == whole.index.rows[1].card
    assert node.view(A.origin).head is None
    effects = node.handle(received(ALICE, Cards(A.origin, more.head, (whole.live()[1],), ())))
    assert [type(e) for e in effects] == [Save, OriginChanged, Send]  # stored, then forwarded
    assert effects[-1].peer == CAROL  # type: ignore[union-attr]
    assert node.view(A.origin).cards == tuple(whole.live())


def test_a_large_table_travels_in_frames_of_64_kib() -> None:
    line = Line(alice=replica("alice"), bob=replica("bob"), carol=replica("carol"))
    line.connect(("alice", "bob"), ("bob", "carol"))
    usage = [Usage(seed(n), leaf(n), 2_900, 3, 2) for n in range(256)]
    line.give(ALICE, publish(*(card(n) for n in range(1000)), usage=usage))
    view = line.nodes[CAROL].view(A.origin)
    assert (len(view.cards), view.usage) == (1000, tuple(usage))
    assert max(len(e.frame) for _, e in line.log if isinstance(e, Send)) <= 64 * 1024
    assert not any(isinstance(e, Refused) for _, e in line.log)


def test_a_changed_table_travels_as_what_changed() -> None:
    line = Line(alice=replica("alice"), bob=replica("bob"))
    line.connect()
    line.give(ALICE, publish(*(card(n) for n in range(20))))
    line.log.clear()
    ends = [Ended(leaf(0), 2, Reason.MERGED, (leaf(30),))]
    line.give(ALICE, publish(*(card(n) for n in range(1, 20)), card(30), ended=ends))
    (delta,) = (
        m for _, e in line.log if isinstance(e, Send) for m in [decode_sync(e.frame)]
        if isinstance(m, Delta)
    )  # fmt: skip
    assert [c.leaf for c in delta.puts] == [leaf(30)]
    assert line.nodes[BOB].view(A.origin).ended == tuple(ends)


def test_a_leaf_that_vanishes_unsaid_is_gone_all_the_same() -> None:
    line = Line(alice=replica("alice"), bob=replica("bob"))
    line.connect()
    line.give(ALICE, publish(card(1), card(2)))
    line.log.clear()
    line.give(ALICE, publish(card(2), card(3)))
    messages = [decode_sync(e.frame) for _, e in line.log if isinstance(e, Send)]
    assert any(isinstance(m, Manifest) and not m.cards for m in messages)
    (asked,) = (m for m in messages if isinstance(m, CardsGet))
    assert len(asked.cards) == 32  # of the card that is new, and of no other
    assert {c.leaf for c in line.nodes[BOB].view(A.origin).cards} == {leaf(2), leaf(3)}


LIES = {
    "a row left out": "table is not the head's",
    "a card of another table": "card not asked for",
    "a card that is not its row's": "card contradicts its row",
    "a delta that leads elsewhere": "delta is not the head's",
    "a delta that makes no table": "delta is not the head's",
}


def lying(lie: str, first: Env, first_index: Index) -> tuple[Env, Manifest | Delta]:
    """A head after the first, and the lie that comes in the place of its table."""
    follows = {"seq": (NOW_H << 16) + 1, "prev_seq": NOW_H << 16, "prev": id_of(first)}
    env, whole = signed(card(1), card(2), **follows)  # type: ignore[arg-type]
    rows, base = whole.index.rows, table.root(first_index)
    match lie:
        case "a row left out":
            return env, Manifest(env, Index(rows[:1], ()), (), ())
        case "a card of another table":
            return env, Manifest(env, whole.index, (card(7),), ())
        case "a card that is not its row's":
            index = Index((replace(rows[0], version=9), *rows[1:]), ())
            head = replace(decode(env.payload, Head), table_root=table.root(index))
            env = seal(head, A.op).env
            return env, Manifest(env, index, tuple(whole.live()), ())
        case "a delta that leads elsewhere":
            return env, Delta(env, NOW_H << 16, base, (card(3),), (), ())
        case _:
            many = tuple(Ended(leaf(n), 1, Reason.DORMANT, ()) for n in range(10, 1034))
            return env, Delta(env, NOW_H << 16, base, (), many, ())


@pytest.mark.parametrize("lie", LIES)
def test_a_table_that_is_not_the_heads_is_refused_and_another_is_asked(lie: str) -> None:
    node, first = informed(card(9))
    env, told = lying(lie, first, table.build([card(9)], (), ()).index)
    node.handle(received(ALICE, have(env)))
    node.handle(received(CAROL, have(env)))
    effects = node.handle(received(ALICE, told))
    assert effects[0] == Refused(ALICE, LIES[lie])
    assert [e.peer for e in effects if isinstance(e, Send)] == [CAROL]
    assert node.view(A.origin).cards == (card(9),)


def test_a_delta_from_a_table_that_is_held_no_more_is_answered_by_asking_for_the_whole() -> None:
    node, first = informed(card(9))
    env, told = lying("a delta that leads elsewhere", first, Index((), ()))
    node.handle(received(ALICE, have(env)))
    (get,) = sent(node.handle(received(ALICE, told)))
    assert get == TableGet(A.origin, id_of(env), ZERO32)


def test_pieces_that_were_not_asked_for_are_ignored() -> None:
    node = bob()
    env, whole = signed(card(1))
    assert node.handle(received(ALICE, manifest(env, whole))) == []
    node.handle(received(ALICE, have(env)))
    assert node.handle(received(CAROL, manifest(env, whole))) == []
    other, _ = signed(card(2))
    assert node.handle(received(ALICE, manifest(other, whole))) == []
    assert node.handle(received(ALICE, Gone(A.origin, seed("other")))) == []


def test_who_does_not_hold_a_table_says_so_and_another_is_asked() -> None:
    node = bob()
    env, whole = signed(card(1))
    (get,) = sent(node.handle(received(ALICE, have(env))))
    assert isinstance(get, TableGet)
    node.handle(received(CAROL, have(env)))
    effects = node.handle(received(ALICE, Gone(A.origin, get.head)))
    assert [e.peer for e in effects if isinstance(e, Send)] == [CAROL]
    node.handle(received(CAROL, manifest(env, whole)))
    assert node.view(A.origin).head is not None


def test_what_is_not_held_is_gone_for_who_asks() -> None:
    node, _ = informed(card(1))
    for question in (
        TableGet(A.origin, seed("other"), ZERO32),
        CardsGet(A.origin, seed("other"), b"", 0),
        TableGet(seed("nobody"), seed("other"), ZERO32),
    ):
        assert [type(m) for m in sent(node.handle(received(CAROL, question)))] == [Gone]


def test_a_stranger_is_not_answered() -> None:
    node, _ = informed(card(1))
    assert node.handle(received(PeerId("stranger"), EchoGet(A.origin))) == []


def test_a_silent_source_is_asked_five_times_and_then_left() -> None:
    node = bob(pull_timeout_s=10)
    env, _ = signed(card(1))
    node.handle(received(ALICE, have(env)))
    asked = []
    for i in range(1, 8):
        effects = node.handle(SyncDue(NOW_S + 20 * i))
        asked += [m for m in sent(effects) if isinstance(m, TableGet)]
    assert len(asked) == 4
    (get,) = sent(node.handle(received(CAROL, have(env), NOW_S + 200)))
    assert isinstance(get, TableGet)  # told of again, it is wanted again


def test_a_source_that_goes_away_is_replaced() -> None:
    node = bob()
    env, _ = signed(card(1))
    node.handle(received(ALICE, have(env)))
    node.handle(received(CAROL, have(env)))
    effects = node.handle(PeerDown(ALICE, NOW_S))
    assert [e.peer for e in effects if isinstance(e, Send)] == [CAROL]


def test_tables_are_fetched_a_few_at_a_time_and_all_in_the_end() -> None:
    node = bob(pulls_max=2)
    origins = [keys(n) for n in range(5)]
    tables = {k.origin: signed(card(1), by=k) for k in origins}
    asked: list[TableGet] = []
    for k in origins:
        asked += sent(node.handle(received(ALICE, have(tables[k.origin][0], by=k))))  # type: ignore[arg-type]
    assert len(asked) == 2
    while asked:
        env, whole = tables[asked.pop(0).origin]
        effects = node.handle(received(ALICE, manifest(env, whole)))
        asked += [m for m in sent(effects) if isinstance(m, TableGet)]
    assert all(node.view(k.origin).head for k in origins)


def test_a_newer_head_takes_the_place_of_the_one_whose_table_is_on_its_way() -> None:
    node = bob()
    old, _ = signed(card(1))
    new, whole = signed(card(2), seq=(NOW_H << 16) + 2, prev_seq=(NOW_H << 16) + 1)
    node.handle(received(ALICE, have(old)))
    node.handle(received(ALICE, have(new)))
    node.handle(received(ALICE, manifest(new, whole)))
    assert node.view(A.origin).cards == (card(2),)
    assert node.handle(received(CAROL, have(old))) == []


# Reconciliation and the urgent plane --------------------------------------------------------------


def test_a_node_that_joins_late_gets_everything_that_is_held() -> None:
    line = Line(alice=replica("alice"), bob=replica("bob"), carol=replica("carol"))
    line.connect(("alice", "bob"))
    line.give(ALICE, publish(card(1), card(2)))
    line.give(ALICE, RetractOwn(leaf(2), NOW_S))
    line.give(BOB, publish(card(3)))
    line.connect(("bob", "carol"))
    for name in (A.origin, keys("bob").origin):
        assert line.nodes[CAROL].view(name) == line.nodes[BOB].view(name)


def test_the_proof_of_a_fork_and_of_a_burnt_root_reach_who_was_away() -> None:
    node, _ = informed(card(1))
    node.handle(received(CAROL, have(signed(card(2))[0])))
    dave = keys("dave")
    node.handle(received(CAROL, Have((dave.doc, keys("dave", op="x").doc), (), (), ())))
    line = Line(bob=node, carol=replica("carol"))
    line.connect()
    assert line.nodes[CAROL].view(A.origin).standing is Standing.FROZEN
    assert line.nodes[CAROL].view(dave.origin).standing is Standing.DEAD


def test_a_round_with_a_peer_that_holds_the_same_is_one_question_and_the_shortest_answer() -> None:
    line = Line(alice=replica("alice"), bob=replica("bob"))
    line.connect()
    line.give(ALICE, publish(card(1)))
    line.log.clear()
    line.give(ALICE, SyncDue(NOW_S))
    told = [decode_sync(e.frame) for _, e in line.log if isinstance(e, Send)]
    assert [type(message) for message in told] == [Digest, Compare]
    assert told[1] == Compare((), 0)


def test_each_round_asks_for_the_next_but_one_that_the_owner_asked_for() -> None:
    node = replica("alice")
    (wake,) = node.handle(SyncDue(NOW_S))
    assert isinstance(wake, WakeAfter)
    assert 15 <= wake.delay_s <= 45
    assert node.handle(SyncDue(NOW_S, again=False)) == []


def test_a_broadcast_from_a_stranger_is_believed_but_its_sender_is_not_asked() -> None:
    node = bob()
    env, _ = signed(card(1))
    stranger = PeerId("stranger")
    effects = node.handle(Received(stranger, encode(have(env)), NOW_S, urgent=True))
    assert not only(effects, Send)
    assert not only(effects, Broadcast)
    (get,) = sent(node.handle(received(CAROL, have(env))))
    assert isinstance(get, TableGet)


def test_old_news_is_left_to_reconciliation() -> None:
    node = bob()
    env, whole = signed(card(1), ts_h=NOW_H - 3, exp_h=NOW_H)
    node.handle(received(ALICE, have(env)))
    effects = node.handle(received(ALICE, manifest(env, whole)))
    assert [type(e) for e in effects] == [Save, OriginChanged]


def test_a_great_change_travels_as_a_manifest_and_pages_of_cards() -> None:
    line = Line(alice=replica("alice"), bob=replica("bob"))
    line.connect()
    line.give(ALICE, publish(*(card(n) for n in range(200))))
    line.log.clear()
    line.give(ALICE, publish(*(card(n, version=2) for n in range(200))))
    messages = [decode_sync(e.frame) for _, e in line.log if isinstance(e, Send)]
    assert not any(isinstance(message, Delta) for message in messages)
    assert {c.version for c in line.nodes[BOB].view(A.origin).cards} == {2}


def test_more_origins_than_fit_into_a_frame_are_compared_and_given_in_several() -> None:
    node = replica("bob")
    for n in range(700):
        node.handle(received(ALICE, Have((keys(n).doc,), (), (), ())))
    line = Line(bob=node, carol=replica("carol"))
    line.connect()
    assert line.nodes[CAROL].origins() == node.origins()
    told = [e.frame for name, e in line.log if isinstance(e, Send) and name == BOB]
    assert sum(isinstance(decode_sync(frame), Have) for frame in told) > 1


def test_summaries_are_cut_into_frames() -> None:
    long = Summary(bytes(16), 1, Standing.SOUND, 1, bytes(16), bytes(16_000))
    pages = [decode_sync(frame) for frame in frames.compares([long] * 9, answer=True)]
    assert [len(page.summaries) for page in pages if isinstance(page, Compare)] == [4, 4, 1]


# Restarts -----------------------------------------------------------------------------------------


def restarted(line: Line, name: str) -> Replica:
    node = replica(name, records=line.records(name))
    node.handle(SyncDue(line.now_s, again=False))
    return node


def test_a_replica_that_starts_from_its_records_is_the_same_replica() -> None:
    line = Line(alice=replica("alice"), bob=replica("bob"))
    line.connect()
    usage = [Usage(seed(1), leaf(9), 2_900, 3, 2)]
    line.give(ALICE, publish(card(1), card(2), card(3), usage=usage))
    line.give(ALICE, RetractOwn(leaf(3), NOW_S))
    line.give(BOB, publish(card(4)))
    line.give(BOB, received(CAROL, have(signed(card(1), by=keys("dave"))[0], by=keys("dave"))))
    line.give(BOB, received(CAROL, have(signed(card(2), by=keys("dave"))[0], by=keys("dave"))))
    line.give(BOB, received(CAROL, Have((keys("e").doc, keys("e", op="x").doc), (), (), ())))
    for name in (ALICE, BOB):
        before, after = line.nodes[name], restarted(line, name)
        assert after.origins() == before.origins()
        for origin in before.origins():
            assert after.view(origin) == before.view(origin)


def test_a_newer_own_head_that_was_heard_of_is_remembered_over_a_restart() -> None:
    line = Line(alice=replica("alice"))
    newer, _ = signed(card(1), seq=(NOW_H << 16) + 40)
    line.give(ALICE, PeerUp(BOB, NOW_S))
    line.give(ALICE, received(BOB, have(newer)))
    node = restarted(line, "alice")
    node.handle(PeerUp(BOB, NOW_S))
    node.handle(publish(card(2)))
    node.handle(received(BOB, Echo(A.origin, None, None)))
    head = node.own_head()
    assert head is not None and head.prev_seq == (NOW_H << 16) + 40


def test_own_records_that_were_never_written_are_refused_as_a_whole() -> None:
    line = Line(alice=replica("alice"), bob=replica("bob"))
    line.connect()
    line.give(ALICE, publish(card(1), card(2)))
    good = line.records("alice")
    for i, record in enumerate(good):
        torn = [*good[:i], Record(record.table, record.key, record.value[:-1]), *good[i + 1 :]]
        with pytest.raises(RecordError):
            replica("alice", records=torn)
        if record.table in ("key", "index", "card", "usage"):
            with pytest.raises(RecordError, match="records of origin"):
                replica("alice", records=[*good[:i], *good[i + 1 :]])
    with pytest.raises(RecordError, match="last own head"):
        replica("alice", records=[Record("own", b"last", b"\x00")])
    with pytest.raises(RecordError, match="another origin"):
        replica("bob", records=[Record("key", keys("bob").origin + b"\1", encode(A.doc))])
    with pytest.raises(RecordError, match="too large"):
        usage = Record("usage", A.origin, bytes(70_000))
        replica("alice", records=[r if r.table != "usage" else usage for r in good])


def test_of_a_foreign_origin_what_cannot_be_read_is_left_out_and_fetched_again() -> None:
    line = Line(alice=replica("alice"), bob=replica("bob"))
    line.connect()
    line.give(ALICE, publish(card(1), card(2)))
    line.give(ALICE, RetractOwn(leaf(2), NOW_S))
    good = line.records("bob")
    for i, record in enumerate(good):
        torn = [*good[:i], Record(record.table, record.key, record.value[:-1]), *good[i + 1 :]]
        node = replica("bob", records=torn)
        assert list(node.unread) == [A.origin]
        kept = node.view(A.origin)
        assert kept.cards == () and kept.head is None
        assert kept.retracted == (() if record.table in ("key", "retract") else (leaf(2),))
        again = Line(bob=node, alice=line.nodes[ALICE])
        again.disks[BOB] = {(r.table, r.key): r.value for r in torn}
        again.connect()
        assert node.view(A.origin) == line.nodes[BOB].view(A.origin)
        whole = replica("bob", records=again.records("bob"))
        assert not whole.unread and whole.view(A.origin) == node.view(A.origin)


def test_no_crash_between_any_two_orders_makes_a_node_sign_one_number_twice() -> None:
    told: dict[tuple[int, int], Head] = {}
    disk: dict[tuple[str, bytes], bytes] = {}
    for crash_after in [*range(6), *range(6), *range(6)]:
        node = replica("alice", records=[Record(*key, disk[key]) for key in sorted(disk)])
        node.handle(PeerUp(BOB, NOW_S))
        node.handle(publish(card(crash_after), card(10), card(11, version=len(told) + 1)))
        effects = node.handle(received(BOB, Echo(A.origin, None, None)))
        for effect in effects[:crash_after]:
            if isinstance(effect, Save):
                assert effect.durable
                for row in effect.deletes:
                    del disk[row]
                disk.update({(r.table, r.key): r.value for r in effect.puts})
            if isinstance(effect, Send):
                head = node.own_head()
                assert head is not None
                assert told.setdefault((head.epoch, head.seq), head) == head
    assert len(told) > 3
