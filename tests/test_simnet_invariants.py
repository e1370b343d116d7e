"""The invariants can fail: each is broken by a guard that is dropped, or by a lie told to it.

A mutant that no seed kills would mean that an invariant sleeps. What no mutant of the core can
bring about, because another rule stands before it, is shown to the checker as it would look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pytest
from msgspec.structs import replace

from gossip import author, core, envelope, holdings, keys, origin, pull, records, view
from gossip.events import Effect, Event, LeafRetracted, OriginChanged, Refused, Save, Send
from gossip.ports import PeerId, Record
from gossip.wire import SYNC_FRAME_BYTES_MAX, Card, Cards, encode
from simnet import byzantine, invariants
from simnet.invariants import STATEMENTS, InvariantError
from simnet.network import Network, Node
from simnet.runs import play
from simnet.scenarios.common import Tree, cards, has_head, link_up, settle, until

Patch = pytest.MonkeyPatch


def _without_monotonic_heads(patch: Patch) -> None:
    real = origin.Claims.with_head

    def with_head(self: origin.Claims, head: envelope.Signed) -> origin.Claims:  # type: ignore[type-arg]
        claims = real(self, head)
        same_epoch = head.value.epoch == self.epoch and claims.standing.value == 0
        return records.replace(claims, head=head) if same_epoch else claims

    patch.setattr(origin.Claims, "with_head", with_head)
    patch.setattr(core.Replica, "_hear_head", _trusting_hear_head)


def _trusting_hear_head(  # type: ignore[no-untyped-def]
    self: core.Replica, sealed, via, *, brought: bool = False
) -> Iterator[object]:
    claims = self._held[sealed.value.origin].claims
    known = claims.head is not None and claims.head.id == sealed.id
    if not known and sealed.value.epoch == claims.epoch and claims.standing.value == 0:
        yield from self._want(core.open_head(sealed, claims), via)


def _without_signatures(patch: Patch) -> None:
    patch.setattr(envelope, "verify", lambda public, signature, message: True)


def _without_the_merkle_root(patch: Patch) -> None:
    patch.setattr(pull, "commits_to", lambda head, index: True)


def _without_the_hash_of_a_card(patch: Patch) -> None:
    patch.setattr(pull, "_add", _trusting_add)


def _trusting_add(pull_, index, cards, usage, held) -> None:  # type: ignore[no-untyped-def]
    by_leaf = {card.leaf: card for card in (*held.live(), *cards)}
    for row in index.rows:
        if row.leaf in by_leaf:
            pull_.cards[row.card] = by_leaf[row.leaf]
    pull_.usage = usage


def _without_waiting_for_the_whole(patch: Patch) -> None:
    patch.setattr(pull.Pulls, "_is_whole", lambda self, origin, pull: pull.index is not None)


def _without_the_echo(patch: Patch) -> None:
    patch.setattr(author.Author, "heard", lambda self, head: False)


def _forgetting_retractions_at_load(patch: Patch) -> None:
    real = core.load

    def load(rows: Iterable[Record], *more: bytes) -> object:
        return real([row for row in rows if row.table != "retract"], *more)

    patch.setattr(core, "load", load)


def _without_retractions(patch: Patch) -> None:
    patch.setattr(origin.Claims, "is_retracted", lambda self, leaf: False)


def _telling_before_saving(patch: Patch) -> None:
    real = core.Replica.handle

    def handle(self: core.Replica, event: Event) -> list[Effect]:
        return sorted(real(self, event), key=lambda effect: not isinstance(effect, Send))

    patch.setattr(core.Replica, "handle", handle)


def _saving_without_sync(patch: Patch) -> None:
    real = core.changes

    def changes(old: core.Held, new: core.Held, *, durable: bool) -> Save | None:
        return real(old, new, durable=False)

    patch.setattr(core, "changes", changes)


def _without_fork_detection(patch: Patch) -> None:
    patch.setattr(origin, "conflict", lambda a, b: False)


def _seeing_forks_everywhere(patch: Patch) -> None:
    patch.setattr(origin, "conflict", lambda a, b: a.id != b.id)


def _without_reconciliation(patch: Patch) -> None:
    patch.setattr(holdings.Holdings, "compared", lambda self, theirs: iter(()))


def _without_expiry(patch: Patch) -> None:
    patch.setattr(view.OriginView, "usable", property(lambda self: self.cards))


def _without_bounds(patch: Patch) -> None:
    patch.setattr(origin, "out_of_bounds", lambda head, key: None)


def _splitting_without_the_parent(patch: Patch) -> None:
    real = Tree.split

    def split(self: Tree, leaf: bytes) -> list[Card]:
        children = real(self, leaf)
        del self.live[leaf]
        return children

    patch.setattr(Tree, "split", split)


def _families_by_order(patch: Patch) -> None:
    patch.setattr(invariants, "partition", tuple)


MUTANTS: dict[Callable[[Patch], None], tuple[str, set[str]]] = {
    _without_monotonic_heads: ("replay-everything", {"monotonic", "no resurrection"}),
    _without_signatures: ("tampering", {"authenticity", "monotonic", "fork"}),
    _without_the_merkle_root: ("mix-and-match", {"authenticity"}),
    _without_the_hash_of_a_card: ("tampering", {"authenticity"}),
    _without_waiting_for_the_whole: ("byzantine-third", {"authenticity", "atomic"}),
    _without_the_echo: ("restored-backup", {"no self-fork", "fork", "authenticity"}),
    _forgetting_retractions_at_load: ("retraction", {"durability"}),
    _without_retractions: ("retraction", {"retraction", "liveness", "authenticity"}),
    _telling_before_saving: ("churn", {"no self-fork", "fork", "monotonic", "authenticity"}),
    _saving_without_sync: ("churn", {"no self-fork", "fork", "monotonic", "durability"}),
    _without_fork_detection: ("fork", {"liveness", "convergence"}),
    _seeing_forks_everywhere: ("partition-heal", {"fork"}),
    _without_reconciliation: ("late-joiner", {"liveness", "convergence"}),
    _without_expiry: ("eclipse", {"freshness"}),
    _without_bounds: ("byzantine-half", {"freshness"}),
    _splitting_without_the_parent: ("split", {"lineage"}),
    _families_by_order: ("propagation", {"families"}),
}


@pytest.fixture(autouse=True)
def _no_verdict_is_remembered() -> Iterator[None]:
    """A verdict of a mutant must not outlive it."""
    keys.verify.cache_clear()
    yield
    keys.verify.cache_clear()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__.strip("_"))
def test_dropping_a_guard_breaks_an_invariant_on_some_seed(
    mutant: Callable[[Patch], None], monkeypatch: Patch
) -> None:
    scenario, expected = MUTANTS[mutant]
    mutant(monkeypatch)
    for seed in range(12):
        run = play(scenario, nodes=8, seed=seed)
        if run.broken is not None:
            assert run.broken.invariant in expected, str(run.broken)
            return
    pytest.fail(f"no seed from 0 to 11 noticed in {scenario}")


# ---- told to the checker ------------------------------------------------------------------------


def spread() -> tuple[Network, Node, Node, Tree]:
    """Four nodes that hold the tree of one of them: a parent that has split, and another leaf."""
    net = Network(size=4, seed=1)
    link_up(net)
    owner, other, *_ = net.nodes.values()
    tree = Tree(net, owner)
    a, _ = tree.grow(2)
    tree.split(a.leaf)
    tree.publish()
    until(net, lambda node: has_head(node, owner), what="hold the tree")
    return net, owner, other, tree


def broken_by(net: Network, node: Node, *effects: Effect) -> str:
    with pytest.raises(InvariantError) as caught:
        net.checker.check(net, node, effects)
    assert str(caught.value).startswith("seed 1: ")
    return caught.value.invariant


def showing(node: Node, owner: Node, patch: Patch, **changed: object) -> OriginChanged:
    """Have a replica show something else of an origin than it holds."""
    assert node.replica is not None
    real = node.replica.view(owner.origin)
    false = records.replace(real, **changed)  # type: ignore[arg-type]
    patch.setattr(core.Replica, "view", lambda self, name: false)
    return OriginChanged(owner.origin)


def test_a_card_that_leaves_a_node_after_its_retraction_was_heard_is_noticed() -> None:
    net, owner, other, tree = spread()
    leaf, card = next(iter(tree.live.items()))
    frame = encode(Cards(owner.origin, bytes(32), (card,), ()))
    net.checker.check(net, other, [Send(owner.name, frame)])
    heard = LeafRetracted(owner.origin, leaf)
    assert broken_by(net, other, heard, Send(owner.name, frame)) == "retraction"


def test_all_cards_of_an_origin_stay_where_all_of_it_was_withdrawn() -> None:
    net, owner, other, tree = spread()
    frame = encode(Cards(owner.origin, bytes(32), tuple(tree.live.values()), ()))
    heard = LeafRetracted(owner.origin, None)
    assert broken_by(net, other, heard, Send(owner.name, frame)) == "retraction"


def test_a_child_without_its_parent_is_noticed(monkeypatch: Patch) -> None:
    net, owner, other, tree = spread()
    monkeypatch.setattr(invariants.Checker, "_authentic", lambda *_: None)
    children = tuple(card for card in tree.live.values() if card.parents)
    changed = showing(other, owner, monkeypatch, cards=children)
    assert broken_by(net, other, changed) == "atomic"


def test_a_child_beside_the_parent_of_before_is_noticed(monkeypatch: Patch) -> None:
    net, owner, other, tree = spread()
    monkeypatch.setattr(invariants.Checker, "_authentic", lambda *_: None)
    before = tuple(replace(card, version=1) for card in tree.live.values())
    assert broken_by(net, other, showing(other, owner, monkeypatch, cards=before)) == "atomic"


def test_a_leaf_that_is_its_own_ancestor_is_noticed() -> None:
    net, owner, _, tree = spread()
    parent = next(leaf for leaf, card in tree.live.items() if not card.parents)
    child = next(card for card in tree.live.values() if card.parents)
    tree.change(child.parents[0], parents=(child.leaf,))
    assert parent in tree.live
    with pytest.raises(InvariantError, match="its own ancestor"):
        tree.publish()
    assert owner.replica is not None
    assert net.checker.checks["lineage"] > 0


def test_a_frame_that_is_too_large_is_noticed() -> None:
    net, owner, other, _ = spread()
    frame = bytes(SYNC_FRAME_BYTES_MAX + 1)
    assert broken_by(net, other, Send(owner.name, frame)) == "bounded"


def test_an_answer_without_measure_is_noticed() -> None:
    net, owner, other, _ = spread()
    sends = [Send(owner.name, bytes(SYNC_FRAME_BYTES_MAX))] * 65
    assert broken_by(net, other, *sends) == "bounded"


def test_who_is_blamed_must_be_hostile() -> None:
    net, owner, other, _ = spread()
    refused = Refused(owner.name, "bad signature")
    assert broken_by(net, other, refused) == "blame"
    owner.hostile = byzantine.Silent()
    net.checker.check(net, other, [refused])
    assert net.checker.refused["bad signature", True] == 2


def test_a_node_that_shows_less_than_it_showed_of_itself_after_a_crash_is_noticed() -> None:
    net, owner, *_ = spread()
    net.crash(owner.name)
    empty = type(owner.disk)()
    owner.disk = empty
    with pytest.raises(InvariantError, match="own head fell"):
        net.start(owner.name)


def test_a_disk_that_was_set_back_may_show_less() -> None:
    net, owner, *_ = spread()
    net.crash(owner.name)
    owner.disk = type(owner.disk)()
    net.checker.restored(owner)
    net.start(owner.name)
    assert owner.replica is not None


def test_a_retraction_that_a_crash_forgets_is_noticed() -> None:
    net, owner, other, tree = spread()
    net.checker.check(net, other, [LeafRetracted(owner.origin, next(iter(tree.live)))])
    net.crash(other.name)
    text = f"lost 1 retractions, as of n0000's leaf {next(iter(tree.live)).hex()[:8]}"
    with pytest.raises(InvariantError, match=text):
        net.start(other.name)


def test_two_heads_under_one_number_are_told_apart_by_their_hashes() -> None:
    net, owner, _, tree = spread()
    assert owner.replica is not None
    view = owner.replica.view(owner.origin)
    assert view.head is not None
    other = replace(view.head, n_live=9)
    net.checker._told_once(owner, view.head)
    with pytest.raises(InvariantError) as caught:
        net.checker._told_once(owner, other)
    number = f"({view.head.epoch}, {view.head.seq}, "
    assert caught.value.text.count(number) == 2
    assert tree.live


def test_what_is_not_signed_is_told_by_the_name_of_its_node(monkeypatch: Patch) -> None:
    net, owner, other, _ = spread()
    changed = showing(other, owner, monkeypatch, cards=())
    with pytest.raises(InvariantError, match=r"n0001: the table of head .* of n0000 is not"):
        net.checker.check(net, other, [changed])


def test_what_never_comes_about_is_said_with_how_many_nodes_lack_it_and_some_of_them() -> None:
    net = Network(size=8, seed=1)
    text = r"8 of 8 nodes do not hold n0003's head after 1 s: n0000, .*n0004, \.\.\."
    with pytest.raises(InvariantError, match=text):
        until(net, lambda node: False, 1.0, what="hold n0003's head")


def test_nodes_that_differ_are_named() -> None:
    net, owner, *_ = spread()
    settle(net)
    net.partition({owner.name: 1})
    net.publish(owner.name, *cards(net, owner, range(1)))
    assert net.checker.difference(net) == "n0000 and n0001 of n0000"
    assert not net.checker.converged(net)
    assert net.checker.converged(net, of=[node.origin for node in net.honest() if node != owner])


def test_a_network_that_is_not_checked_can_still_be_settled() -> None:
    net = Network(size=4, seed=1, checked="never")
    link_up(net)
    author = next(iter(net.nodes.values()))
    net.publish(author.name, *cards(net, author, range(2)))
    assert settle(net)["heal_rounds"] >= 0
    assert net.checker.checks["authenticity"] == 0


def test_what_a_scenario_demands_is_counted_and_may_fail() -> None:
    net = Network(size=4, seed=9)
    net.checker.require(True, "liveness", "it came")
    assert net.checker.checks["liveness"] == 1
    with pytest.raises(InvariantError, match="seed 9: liveness: it never came"):
        net.checker.require(False, "liveness", "it never came")


def test_every_statement_that_has_a_number_has_one_of_its_own() -> None:
    numbers = [text.split(":")[0] for text in STATEMENTS.values() if text.startswith("I")]
    assert len(numbers) == len(set(numbers))
    assert set(numbers) == {f"I{n}" for n in (*range(1, 9), *range(10, 16))}


def test_what_is_broken_is_told_with_its_seed_and_what_led_to_it() -> None:
    net, owner, other, _ = spread()
    with pytest.raises(InvariantError) as caught:
        net.checker.check(net, other, [Send(PeerId("x"), bytes(SYNC_FRAME_BYTES_MAX + 1))])
    assert caught.value.tail
    assert str(caught.value).startswith("seed 1: bounded: n0001: ")
    assert owner.name == "n0000"
