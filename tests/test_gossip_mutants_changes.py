"""Boundaries of the change of a table that is given together with the news of its head.

As in `test_gossip_mutants`: each was found by changing one thing in the code.
"""

from __future__ import annotations

import pytest
from gossip_kit import (
    ALICE,
    CAROL,
    NOW_H,
    NOW_S,
    A,
    bob,
    card,
    have,
    informed,
    only,
    received,
    seed,
    sent,
    signed,
)
from msgspec.structs import replace

from gossip import frames, hearing, origin, table
from gossip.core import Replica
from gossip.envelope import Signed, id_of, read
from gossip.events import PeerUp, Send, TellDue
from gossip.holdings import DELTAS_MAX
from gossip.origin import Claims
from gossip.ports import PeerId
from gossip.records import Held
from gossip.wire import (
    SYNC_FRAME_BYTES_MAX,
    Compare,
    Delta,
    Digest,
    Echo,
    EchoGet,
    Env,
    Have,
    Head,
    Manifest,
    Summary,
    TableGet,
    decode_sync,
    encode,
)

SEQ = NOW_H << 16
KEYED = Claims(A.origin).with_key(A.doc)
GROWTH = {0: 0, 1: 200, 2: 1000, 4: 120_000}  # by how many bytes more they take than 0


def opened(env: Env) -> Signed[Head]:
    return hearing.open_head(read(env, Head), KEYED)


def following(env: Env, n: int = 1) -> tuple[Env, Delta]:
    """The head after alice's first, over that table and a second card; and the change."""
    first = opened(env).value
    after, _ = signed(card(1), card(2), seq=SEQ + n, prev_seq=SEQ, prev=id_of(env))
    return after, Delta(after, SEQ, first.table_root, (card(2),), (), ())


def brought_up_to_date() -> tuple[Replica, Summary]:
    """Who holds alice's second table, and had the first; and who has still the first, in brief."""
    node, env = informed(card(1))
    after, change = following(env)
    node.handle(received(ALICE, change))
    assert node.view(A.origin).head == opened(after).value
    return node, origin.summary(KEYED.with_head(opened(env)))


def others(count: int) -> tuple[Summary, ...]:
    """Origins of which neither side holds anything."""
    return tuple(origin.nothing_of(seed("other", n)[:16]) for n in range(count))


def test_the_change_is_given_among_as_many_origins_as_news_are_of_and_no_more() -> None:
    node, old = brought_up_to_date()
    few, many = others(DELTAS_MAX - 1), others(DELTAS_MAX)
    (change,) = sent(node.handle(received(CAROL, Compare((*few, old), 0))))
    (whole,) = sent(node.handle(received(CAROL, Compare((*many, old), 0))))
    assert (type(change), type(whole)) == (Delta, Have)


def test_who_only_tells_what_it_holds_is_given_the_head_and_may_ask_elsewhere() -> None:
    node, old = brought_up_to_date()
    (given,) = sent(node.handle(received(CAROL, Compare((old,), 1))))
    assert isinstance(given, Have) and len(given.heads) == 1


def test_a_change_of_a_table_that_is_on_its_way_answers_no_other_question() -> None:
    node, env = informed(card(1))
    dave = PeerId("dave")
    (question,) = sent(node.handle(PeerUp(dave, now_s := NOW_S + 60)))
    assert isinstance(question, Digest)
    after, change = following(env)
    node.handle(received(ALICE, have(after), now_s))
    assert node.handle(received(dave, change, now_s)) == [], "alice was asked for it"
    again = [effect.peer for effect in only(node.handle(TellDue(now_s + 2)), Send)]
    assert dave in again


def test_a_change_of_a_table_that_is_not_kept_is_ignored() -> None:
    node = bob(new_tables_bytes_max=1)
    env, _ = signed(card(1))
    node.handle(received(ALICE, have(env)))
    held = Echo(A.origin, A.doc, env)
    assert sent(node.handle(received(CAROL, EchoGet(A.origin)))) == [held]
    assert node.view(A.origin).head is None, "it is held without its table"
    assert node.handle(received(ALICE, following(env)[1])) == []
    assert sent(node.handle(received(CAROL, EchoGet(A.origin)))) == [held]


@pytest.mark.parametrize(("more_bytes", "kind"), [(0, Delta), (1, Manifest)])
def test_a_change_may_fill_a_frame_to_the_last_byte(more_bytes: int, kind: type) -> None:
    env, before = signed(card(0))
    small = [replace(card(n), growth_q=0) for n in range(1, 150)]

    def held(widths: list[int]) -> tuple[Held, bytes]:
        grown = [replace(c, growth_q=GROWTH[w]) for c, w in zip(small, widths, strict=True)]
        after, whole = signed(card(0), *grown, seq=SEQ + 1, prev_seq=SEQ, prev=id_of(env))
        puts = tuple(c for c in whole.live() if c.leaf != card(0).leaf)
        change = Delta(after, SEQ, table.root(before.index), puts, (), ())
        claims = KEYED.with_head(opened(after))
        return Held(claims, whole, (opened(env), before.index)), encode(change)

    room = SYNC_FRAME_BYTES_MAX + more_bytes - len(held([0] * len(small))[1])
    wide, rest = divmod(room, 4)
    widths = [4] * wide + [rest // 2 * 2, rest % 2] + [0] * (len(small) - wide - 2)
    one, change = held(widths)
    assert len(change) == SYNC_FRAME_BYTES_MAX + more_bytes
    assert one.claims.head is not None
    asked = TableGet(A.origin, one.claims.head.id, id_of(env))
    assert isinstance(decode_sync(frames.table(one, asked)), kind)
