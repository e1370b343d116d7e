"""The simulated network: runs repeat, frames take their time, and nodes find each other again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import mean

import pytest
from gossip_kit import card

from gossip.config import GossipConfig
from gossip.events import Broadcast, Effect, Event, Received, Send, SyncDue
from gossip.ports import PeerId
from gossip.transport_config import MESH_DEGREE, MESH_HIGH, MESH_LOW
from simnet.faults import Links, flipped, tampered
from simnet.network import START_S, Network, Node, simulated_keys
from simnet.runs import play
from simnet.watch import Watcher

LEAVES = [card(n) for n in range(3)]


def quiet(size: int = 6, seed: int = 1, **more: object) -> Network:
    """A network whose nodes have found each other."""
    net = Network(size=size, seed=seed, **more)  # type: ignore[arg-type]
    net.run(5)
    return net


def first(net: Network) -> Node:
    return next(iter(net.nodes.values()))


def holds(node: Node, author: Node) -> bool:
    """True if a node holds the table that an author has signed."""
    if node.replica is None or author.replica is None:
        return False
    head = author.replica.own_head()
    return head is not None and node.replica.view(author.origin).head == head


def spread(net: Network, author: Node, within_s: float = 300) -> float | None:
    return net.run_until(lambda node: holds(node, author), within_s)


def retracted(node: Node, author: Node) -> bool:
    return node.replica is not None and node.replica.view(author.origin).retracted != ()


def islands(net: Network) -> list[int]:
    """Sizes of the groups of nodes that can hear each other."""
    left, sizes = {node.name: node for node in net.up()}, []
    while left:
        _, node = left.popitem()
        found, edge = 1, [node]
        while edge:
            for name in edge.pop().connected:
                if (other := left.pop(name, None)) is not None:
                    found += 1
                    edge.append(other)
        sizes.append(found)
    return sizes


# Determinism --------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    first, again, other = (play("churn", nodes=8, seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert first.trace_hash != other.trace_hash


def test_the_trace_does_not_depend_on_how_python_hashes_strings() -> None:
    code = "from simnet.runs import play; print(play('swarm', nodes=4, seed=3).trace_hash)"
    path = os.pathsep.join(sys.path)
    hashes = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    ]
    assert hashes == [play("swarm", nodes=4, seed=3).trace_hash] * 2


def test_a_frame_that_differs_in_one_bit_gives_another_trace() -> None:
    nets = [quiet(checked="never") for _ in range(2)]
    for net, frame in zip(nets, (b"\x00", b"\x01"), strict=True):
        net.inject(PeerId("n0001"), PeerId("n0000"), frame)
        net.run(1)
    assert nets[0].trace_hash() != nets[1].trace_hash()


# Links and lines ----------------------------------------------------------------------------------


def test_links_lose_double_and_delay_as_often_as_they_are_told() -> None:
    net = Network(size=4, seed=1)
    links = Links(loss=0.3, duplicate=0.2, delay=0.1)
    chance = Random(1)
    arrivals = [
        list(links.deliveries(b"frame", chance, net.faults, urgent=False)) for _ in range(4000)
    ]
    assert abs(sum(not copies for copies in arrivals) / 4000 - 0.3) < 0.03
    assert max(after for copies in arrivals for after, _ in copies) > 10


def test_a_network_loses_as_many_frames_as_its_links_do() -> None:
    net = quiet(12)
    net.links = Links(loss=0.4)
    before = net.sent.copy()
    net.run(3600)
    sent = (net.sent - before).total() - (net.sent - before)["bulk_bytes"]
    assert abs(net.faults["F1 loss"] / sent - 0.4) < 0.05


def test_tampering_changes_what_it_can_read_and_leaves_the_rest() -> None:
    chance = Random(1)
    assert tampered(b"\x00", chance) is None
    assert tampered(b"\x92\xaaecho-get/1\xc4\x20" + bytes(32), chance) is None
    assert flipped(b"\x00", chance) != b"\x00"


@dataclass
class Recorder:
    """A hostile node that only listens."""

    heard: list[tuple[int, bytes]] = field(default_factory=list)

    def handle(self, node: Node, event: Event) -> list[Effect]:
        if isinstance(event, Received):
            self.heard.append((event.now_s, event.frame))
        return []


def test_frames_queue_before_a_slow_line_in_the_order_in_which_they_came() -> None:
    net = quiet()
    slow = first(net)
    slow.hostile = listener = Recorder()
    slow.rate_bytes_s = 1000.0
    for n in range(5):
        net.inject(PeerId("n0001"), slow.name, bytes([n]) * 2000, delay_s=0.001 * n)
    before = slow.bytes_in
    net.run(30)
    times = [at - START_S for at, frame in listener.heard if len(frame) == 2000]
    order = [frame[0] for _, frame in listener.heard if len(frame) == 2000]
    assert order == [0, 1, 2, 3, 4]
    assert times[-1] - times[0] == pytest.approx(8, abs=1.01)  # 2 s for each, in whole seconds
    assert slow.bytes_in - before >= 10_000


def test_a_table_takes_as_long_as_the_line_of_its_sender_allows() -> None:
    waited = []
    for rate in (None, 500.0):
        net = quiet()
        author = first(net)
        author.rate_bytes_s = rate
        net.publish(author.name, *LEAVES)
        waited.append(spread(net, author) or 0.0)
    assert waited[1] > waited[0] + 2  # 1.5 KB at 500 B/s, if but once


def test_what_is_blocked_one_way_passes_the_other_way() -> None:
    net = quiet(4)
    a, b = (PeerId("n0000"), PeerId("n0001"))
    net.nodes[a].hostile, net.nodes[b].hostile = at_a, at_b = Recorder(), Recorder()
    net.blocked[a, b] = None
    net.inject(a, b, b"there")
    net.inject(b, a, b"back")
    net.run(1)
    assert b"there" not in [frame for _, frame in at_b.heard]
    assert b"back" in [frame for _, frame in at_a.heard]


def test_what_a_node_sends_and_hears_is_counted_at_the_node() -> None:
    net = quiet(12)
    net.publish(first(net).name, *LEAVES, urgent=True)
    net.run(300)
    sent = net.sent["bulk_bytes"] + net.sent["urgent_bytes"] + net.sent["lazy_bytes"]
    assert sum(node.bytes_out for node in net.nodes.values()) == sent
    assert 0 < sum(node.bytes_in for node in net.nodes.values()) <= sent


# Time ---------------------------------------------------------------------------------------------


def test_it_is_said_after_how_long_something_holds_at_a_share_of_the_nodes() -> None:
    net = quiet(20)
    author = first(net)
    net.publish(author.name, *LEAVES)
    half = net.run_until(lambda node: holds(node, author), 300, share=0.5)
    whole = spread(net, author)
    assert half is not None
    assert whole is not None
    assert whole > 0
    assert net.run_until(lambda node: False, within_s=1.0) is None
    assert net.run_until(lambda node: node is author, 1.0, nodes=[author]) == 0.0


def test_a_node_goes_by_its_own_clock() -> None:
    net = quiet()
    ahead = first(net)
    ahead.hostile = listener = Recorder()
    ahead.clock_ahead_s = 3600
    net.inject(PeerId("n0001"), ahead.name, b"frame")
    net.run(1)
    assert listener.heard[-1][0] - net.now_s in (3599, 3600)
    assert net.clock_s(ahead) == net.now_s + 3600
    net.heal()
    assert net.clock_s(ahead) == net.now_s


def test_a_question_and_its_answer_are_one_round_trip() -> None:
    net = quiet(4)
    net.preload(dict.fromkeys(net.nodes, LEAVES))
    newcomer = first(net)
    net.crash(newcomer.name)
    newcomer.disk = type(newcomer.disk)()
    net.checker.restored(newcomer)
    net.mark()
    assert net.round_trips(newcomer.name) == 0
    net.start(newcomer.name)
    others = [node for node in net.nodes.values() if node is not newcomer]
    waited = net.run_until(
        lambda node: all(holds(node, author) for author in others), 300, nodes=[newcomer]
    )
    assert waited is not None
    assert 2 <= net.round_trips(newcomer.name) <= 8


def test_a_sleeping_node_hears_nothing_and_catches_up_when_it_wakes() -> None:
    net = quiet(8)
    author, sleeper = list(net.nodes.values())[:2]
    net.suspend(sleeper.name)
    assert sleeper not in net.up()
    net.publish(author.name, *LEAVES, urgent=True)
    net.run(60)
    assert net.faults["F18 not heard"] > 0
    assert all(sleeper.name not in node.connected for node in net.up()), "its peers give it up"
    assert not holds(sleeper, author)
    net.resume(sleeper.name)
    assert spread(net, author) is not None
    assert sleeper.connected


def test_after_a_short_sleep_the_links_are_as_they_were() -> None:
    net = quiet(8)
    sleeper = first(net)
    before = dict(sleeper.connected)
    net.suspend(sleeper.name)
    net.run(10)
    net.resume(sleeper.name)
    net.run(60)
    assert sleeper.connected == before


# Nodes --------------------------------------------------------------------------------------------


@dataclass
class Shouting:
    """A hostile node that says the same to all, on both planes, whatever happens."""

    frame: bytes = b"\xc1"

    def handle(self, node: Node, event: Event) -> list[Effect]:
        return [Broadcast(self.frame), *(Send(peer, self.frame) for peer in node.connected)]


def test_a_hostile_node_is_asked_in_place_of_its_replica_and_judged_by_nobody() -> None:
    net = quiet(8)
    hostile = first(net)
    hostile.hostile = Shouting()
    net.run(300)
    assert hostile in net.up()
    assert hostile not in net.honest()
    author = net.honest()[0]
    net.publish(author.name, *LEAVES)
    assert spread(net, author) is not None, "the others go on"
    assert not holds(hostile, author), "its replica hears nothing"


def test_preloaded_tables_are_held_by_all_without_an_event_and_can_be_served() -> None:
    net = quiet(8)
    events, names = net.events, list(net.nodes)
    net.preload({names[0]: LEAVES, names[1]: LEAVES[:1]}, to=names[:-1])
    assert net.events == events
    author, late = net.nodes[names[0]], net.nodes[names[-1]]
    assert [node for node in net.nodes.values() if not holds(node, author)] == [late]
    assert spread(net, author) is not None
    net.publish(author.name, *LEAVES[:2])
    assert spread(net, author) is not None, "the next head follows the preloaded one"
    net.check()


def test_what_was_preloaded_survives_a_crash_where_there_are_disks() -> None:
    for disks in (True, False):
        net = quiet(6, disks=disks)
        net.preload({first(net).name: LEAVES})
        other = list(net.nodes.values())[1]
        net.crash(other.name)
        net.start(other.name)
        assert holds(other, first(net)) == disks


def test_cards_that_come_to_who_holds_them_are_counted_as_duplicates() -> None:
    net = quiet(6)
    author, other = list(net.nodes.values())[:2]
    net.record = True
    net.publish(author.name, *LEAVES)
    spread(net, author)
    assert net.sent["body_first"] == 5 * len(LEAVES)
    assert net.sent["body_duplicate"] == 0
    for src, dst, frame in list(net.frames):
        if dst == other.name:
            net.inject(src, dst, frame)
    net.run(1)
    assert net.sent["body_duplicate"] >= len(LEAVES)


@pytest.mark.parametrize("checked", ["each", "quiet", "never"])
def test_a_network_does_the_same_however_often_it_is_checked(checked: str) -> None:
    net = quiet(6, checked=checked)
    net.publish(first(net).name, *LEAVES)
    spread(net, first(net))
    plain = quiet(6)
    plain.publish(first(plain).name, *LEAVES)
    spread(plain, first(plain))
    assert net.trace_hash() == plain.trace_hash()
    assert (net.checker.checks["authenticity"] > 0) == (checked != "never")


def test_nodes_keep_to_the_config_they_are_given() -> None:
    rounds = []
    for interval_s in (30.0, 300.0):
        net = quiet(4, config=GossipConfig(sync_interval_s=interval_s))
        net.run(3600)
        rounds.append(net.events)
    assert rounds[0] > 5 * rounds[1]


def test_the_keys_of_a_simulated_origin_are_its_own_and_always_the_same() -> None:
    assert simulated_keys("a").doc == simulated_keys("a").doc
    assert simulated_keys("a").origin == simulated_keys("a", epoch=2).origin
    assert simulated_keys("a").origin != simulated_keys("b").origin


def test_equal_values_of_many_nodes_are_in_memory_once_and_others_are_kept_apart() -> None:
    net = quiet(8, checked="quiet")
    author, away, *_ = net.nodes.values()
    net.publish(author.name, *LEAVES)
    spread(net, author)
    net.crash(away.name)
    net.retract(author.name, LEAVES[0].leaf)
    net.run_until(lambda node: retracted(node, author), 300)
    tables = [table_of(node, author) for node in net.up() if node is not author]
    assert all(table is tables[0] for table in tables)
    net.start(away.name)
    assert table_of(away, author) is not tables[0], "it has not heard of the retraction"
    caught_up = net.run_until(lambda node: table_of(node, author) == tables[0], 300, nodes=[away])
    assert caught_up is not None


def table_of(node: Node, author: Node) -> object:
    assert node.replica is not None
    return node.replica._held[author.origin].table


def test_what_was_sent_to_an_earlier_life_of_a_node_does_not_arrive_in_the_next() -> None:
    net = quiet(4)
    node, peer = list(net.nodes.values())[:2]
    node.hostile = listener = Recorder()
    net.lines.carry(peer, node.name, b"for the first life", 0, urgent=False)
    net.crash(node.name)
    net.start(node.name)
    net.run(1)
    assert b"for the first life" not in [frame for _, frame in listener.heard]
    assert net.faults["F9 cut by crash"] == 1


# Links lost and found -----------------------------------------------------------------------------


@pytest.mark.parametrize("urgent", [False, True])
def test_what_an_earlier_life_of_its_sender_sent_does_not_arrive(urgent: bool) -> None:
    """Found by swarm, 20 nodes, seed 227: a record came before its key, and was blamed."""
    net = quiet(4)
    node = first(net)
    peer = net.nodes[next(iter(node.connected))]
    peer.hostile = heard = Recorder()
    net.lines.carry(node, peer.name, b"of the first life", 0, urgent=urgent)
    node.life += 1
    peer.connected[node.name] = node.life
    net.run(5)
    assert b"of the first life" not in [frame for _, frame in heard.heard]
    assert net.faults["F9 cut by crash"] == 1


def test_what_an_earlier_life_of_a_node_told_of_is_not_asked_for() -> None:
    net = quiet(4)
    node = first(net)
    peer = net.nodes[next(iter(node.connected))]
    asked: list[PeerId] = []
    net.lines.control(node, peer.name, lambda _, src, ids: asked.append(src), (b"id",), 20)
    node.life += 1
    peer.connected[node.name] = node.life
    net.run(5)
    assert asked == []


def test_faults_that_are_left_out_never_happen_whatever_is_asked_for() -> None:
    net = quiet(6, without=("loss", "partition"))
    net.links = Links(loss=0.9, duplicate=0.5)
    net.partition({first(net).name: 1})
    net.run(120)
    assert net.links == Links(duplicate=0.5)
    assert net.faults["F2 duplicate"] > 0
    assert net.faults["F1 loss"] == net.faults["F6 partition"] == net.faults["F6 cut off"] == 0


def test_who_watches_is_told_of_an_event_before_it_is_handled() -> None:
    net = quiet(4)
    node, told = first(net), list[tuple[str, Event]]()

    class Looking(Watcher):
        def handing(self, node: Node, event: Event) -> None:
            told.append(("before", event))

        def handed(self, node: Node, event: Event, effects: Sequence[Effect]) -> None:
            told.append(("after", event))

    net.watch(Looking(net))
    net.give(node.name, event := SyncDue(net.now_s, again=False))
    assert told[:2] == [("before", event), ("after", event)]


@pytest.mark.parametrize("degree", [4, 8, 16])
def test_nodes_have_as_many_links_as_they_are_given(degree: int) -> None:
    net = quiet(100, degree=degree, disks=False)
    assert abs(mean(len(node.connected) for node in net.up()) - degree) < 0.1 * degree
    assert islands(net) == [100]


@pytest.mark.parametrize("seed", range(4))
def test_where_eight_in_ten_nodes_vanish_the_rest_find_each_other_within_seconds(seed: int) -> None:
    net = quiet(200, seed, disks=False, checked="never")
    for node in Random(seed).sample(net.up(), 160):
        net.crash(node.name)
    net.run(15)
    assert islands(net) == [40], f"seed {seed}"
    author = net.up()[0]
    net.publish(author.name, *LEAVES)
    assert spread(net, author) is not None, f"seed {seed}"


def test_nodes_that_do_not_redial_stay_alone() -> None:
    net = quiet(60, redial=False, disks=False, checked="never")
    for node in Random(1).sample(net.up(), 50):
        net.crash(node.name)
    net.run(60)
    assert len(islands(net)) > 1


def test_a_mesh_at_rest_dials_nobody() -> None:
    net = quiet(40, disks=False)
    before = {node.name: dict(node.connected) for node in net.up()}
    net.run(3600)
    assert {node.name: node.connected for node in net.up()} == before


# The urgent plane ---------------------------------------------------------------------------------


def reach(seed: int, loss: float, size: int = 300) -> tuple[float, float]:
    """Return after how long an urgent record is at 99.9 %, and duplicates for each node."""
    net = quiet(size, seed, disks=False, checked="never", links=Links(loss=loss))
    author, before = first(net), net.sent.copy()
    net.retract(author.name, None)
    took = net.run_until(lambda node: retracted(node, author), 30, share=0.999, step_s=0.01)
    assert took is not None, f"seed {seed}: never at 99.9 %"
    net.run(10)
    urgent = net.sent - before
    return took, urgent["urgent_duplicate"] / urgent["urgent_first"]


@pytest.mark.parametrize(("loss", "most_s"), [(0.0, 0.7), (0.2, 0.9), (0.4, 5.0)])
def test_urgent_news_spread_as_fast_as_over_a_gossipsub_mesh(loss: float, most_s: float) -> None:
    reached = [reach(seed, loss) for seed in range(3)]
    assert max(took for took, _ in reached) < most_s, f"seeds 0 to 2: {reached}"
    assert all(1.5 < duplicates < 7 for _, duplicates in reached), f"seeds 0 to 2: {reached}"


@pytest.mark.parametrize("told", [True, False])
def test_what_the_mesh_did_not_carry_is_told_of_at_heartbeats_and_asked_for(told: bool) -> None:
    net = quiet(30)
    alone = list(net.nodes.values())[5]
    alone.hostile = listener = Recorder()
    for peer in alone.connected:
        net.blocked[peer, alone.name] = None
    for node in net.nodes.values():
        node.view = [name for name in net.nodes if name != node.name] if told else []
    net.retract(first(net).name, None)
    net.run(10)
    assert bool(listener.heard) == told


def test_the_mesh_is_a_part_of_the_links_of_the_degree_that_the_transport_has() -> None:
    net = quiet(100, disks=False, checked="never")
    for node in net.up():
        assert list(node.mesh) == [name for name in node.mesh if name in node.connected]
        assert all(node.name in net.nodes[name].mesh for name in node.mesh)
        assert min(MESH_LOW, len(node.connected)) - 1 <= len(node.mesh) <= MESH_HIGH
    mean = sum(len(node.mesh) for node in net.up()) / 100
    assert MESH_LOW <= mean <= MESH_DEGREE


def test_who_loses_its_mesh_takes_others_into_it() -> None:
    net = quiet(30)
    node = first(net)
    for name in list(node.mesh):
        net.crash(name)
    net.run(30)
    assert len(node.mesh) >= MESH_LOW - 1
    assert all(net.nodes[name].awake for name in node.mesh)


def test_a_broadcast_heard_twice_is_handed_over_once() -> None:
    net = quiet(8)
    listener = list(net.nodes.values())[3]
    listener.hostile = heard = Recorder()
    net.retract(first(net).name, None)
    net.run(10)
    frames = [frame for _, frame in heard.heard]
    assert net.sent["urgent_duplicate"] > 0
    assert max(frames.count(frame) for frame in frames) <= 8  # the bulk plane may tell it, too


def test_heartbeats_cost_nothing_where_there_is_nothing_to_tell() -> None:
    net = quiet(20)
    net.run(3600)
    assert net.sent["lazy_frames"] == 0
