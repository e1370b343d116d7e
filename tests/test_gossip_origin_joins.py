"""The join, step by step: whatever is said in whatever order, all who hear it all agree.

Hypothesis plays origins with everything they may say (honest chains, two histories, keys that
revoke, keys that contradict, retractions) to several replicas' claims, lets them tell each other
parts, and holds what may never fall against what was held before.
"""

from __future__ import annotations

from gossip_kit import NOW_H, keys, leaf, seed
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gossip.envelope import Signed, seal
from gossip.keys import Keys
from gossip.origin import Claims, is_behind, item, join, lacking, summary
from gossip.wire import ZERO32, Head, Retract, Scope, Standing

EPOCHS: dict[str, Keys] = {
    "first": keys("alice"),
    "second": keys("alice", 2),
    "third": keys("alice", 3, revoked=(1, 2)),
    "fourth": keys("alice", 4, revoked=(3, 4)),  # of itself: a key that is stolen at once
    "rival": keys("alice", 2, op="other"),
}
ORIGIN = EPOCHS["first"].origin
NODES = 3


def head(by: Keys, seq: int, after: Signed[Head] | None, branch: int) -> Signed[Head]:
    return seal(
        Head(
            *(ORIGIN, by.doc.epoch, seq, after.value.seq if after else 0),
            *(after.id if after else ZERO32, seed("table", seq, branch), 0),
            *(NOW_H, NOW_H + 168, 0, bytes(8), ZERO32),
        ),
        by.op,
    )


class Joining(RuleBasedStateMachine):
    """Three nodes that hear an origin in parts."""

    @initialize()
    def start(self) -> None:
        self.nodes = [Claims(ORIGIN) for _ in range(NODES)]
        self.before = list(self.nodes)
        self.chains: dict[str, list[Signed[Head]]] = {name: [] for name in EPOCHS}

    @rule(node=st.integers(0, NODES - 1), name=st.sampled_from([*EPOCHS][:4]))
    def hears_a_key(self, node: int, name: str) -> None:
        self.nodes[node] = self.nodes[node].with_key(EPOCHS[name].doc)

    @rule(node=st.integers(0, NODES - 1))
    def hears_a_second_key_for_one_epoch(self, node: int) -> None:
        if 2 in self.nodes[node].keys:
            self.nodes[node] = self.nodes[node].with_key(EPOCHS["rival"].doc)

    @rule(name=st.sampled_from([*EPOCHS][:4]))
    def signs_the_next_head(self, name: str) -> None:
        chain = self.chains[name]
        if len(chain) < 6:
            chain.append(head(EPOCHS[name], len(chain) + 1, chain[-1] if chain else None, 0))

    @rule(node=st.integers(0, NODES - 1), name=st.sampled_from([*EPOCHS][:4]), at=st.integers(0, 5))
    def hears_a_head(self, node: int, name: str, at: int) -> None:
        chain, claims = self.chains[name], self.nodes[node]
        if chain and EPOCHS[name].doc.epoch in claims.keys:
            self.nodes[node] = claims.with_head(chain[at % len(chain)])

    @rule(node=st.integers(0, NODES - 1), name=st.sampled_from([*EPOCHS][:2]), at=st.integers(1, 6))
    def hears_a_head_of_another_history(self, node: int, name: str, at: int) -> None:
        chain, claims = self.chains[name], self.nodes[node]
        if EPOCHS[name].doc.epoch in claims.keys:
            after = chain[at - 2] if 2 <= at <= len(chain) + 1 else None
            self.nodes[node] = claims.with_head(head(EPOCHS[name], at, after, 1))

    @rule(
        node=st.integers(0, NODES - 1),
        name=st.sampled_from([*EPOCHS][:4]),
        gone=st.sampled_from([None, 1, 2, 3]),
    )
    def hears_a_retraction(self, node: int, name: str, gone: int | None) -> None:
        by, claims = EPOCHS[name], self.nodes[node]
        if by.doc.epoch in claims.keys:
            what = None if gone is None else leaf(gone)
            said = seal(Retract(ORIGIN, by.doc.epoch, what, NOW_H, Scope.PUBLISH), by.op)
            self.nodes[node] = claims.with_retract(said)

    @rule(giver=st.integers(0, NODES - 1), taker=st.integers(0, NODES - 1))
    def tells_what_the_other_lacks(self, giver: int, taker: int) -> None:
        theirs, mine = self.nodes[taker], self.nodes[giver]
        told = join(theirs, lacking(mine, summary(theirs)))
        assert item(told) == item(join(theirs, mine))
        if not is_behind(summary(theirs), summary(mine)):
            assert item(told) == item(theirs)
        self.nodes[taker] = told

    @invariant()
    def nothing_that_only_grows_falls(self) -> None:
        for was, now in zip(self.before, self.nodes, strict=True):
            if now.standing is Standing.DEAD:
                assert now.head is None
                continue
            assert was.standing is not Standing.DEAD
            assert was.keys.keys() <= now.keys.keys()
            assert was.retracts.keys() <= now.retracts.keys()
            if was.standing is Standing.FROZEN and was.epoch == now.epoch:
                assert now.standing is Standing.FROZEN
            if was.head is not None and now.head is not None:
                a, b = was.head.value, now.head.value
                assert (a.epoch, a.seq) <= (b.epoch, b.seq)
        self.before = list(self.nodes)

    @invariant()
    def a_head_stands_only_under_the_highest_key_and_only_if_that_is_sound(self) -> None:
        for claims in self.nodes:
            assert (claims.head is None) or claims.standing is Standing.SOUND
            assert claims.head is None or claims.head.value.epoch == claims.epoch
            assert not (claims.is_revoked and claims.standing is Standing.SOUND)
            assert item(join(claims, claims)) == item(claims)

    @invariant()
    def all_who_have_told_each_other_everything_agree(self) -> None:
        agreed = list(self.nodes)
        for _ in range(NODES + 1):
            for i in range(NODES):
                for j in range(NODES):
                    agreed[i] = join(agreed[i], lacking(agreed[j], summary(agreed[i])))
        assert len({item(claims) for claims in agreed}) == 1


Joining.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, print_blob=True
)
test_claims_join = Joining.TestCase
