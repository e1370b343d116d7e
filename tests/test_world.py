"""Whole nodes on simulated time: one seed is one story, and what must hold of them is looked at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from gossip.ports import Arrived, Channel, Connected, Disconnected
from gossip.transport_config import DialError
from leaves.model import LeafId
from leaves.ports import ClusterSizes, EvaluateJob, Example, Schedule, TrainJob
from node.foreign import State
from router.table import Table
from simnet.fakes import (
    LabelClusterer,
    Medium,
    MemoryTransport,
    TopicEvaluator,
    TopicTrainer,
    learned,
    peer_named,
    slot,
    write_chassis,
)
from simnet.invariants import InvariantError
from simnet.traffic import Traffic
from simnet.world import Node, World, lived
from simnet.world_checks import STATEMENTS, WorldChecks
from simnet.world_story import Nights, WorldRun, play_world

NIGHTS, PER_NIGHT = 8, 40  # so many sessions that leaves mature within the week


def test_the_same_seed_tells_the_same_story() -> None:
    one, again, other = (play_world(2, 1, seed) for seed in (3, 3, 4))
    assert one.broken is None and one.trace_hash == again.trace_hash != other.trace_hash


def test_a_node_that_raises_is_a_finding_with_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(checks: WorldChecks) -> None:
        raise KeyError("what nobody expects")

    monkeypatch.setattr(WorldChecks, "morning", failing)
    nights: list[int] = []
    run = play_world(2, 1, 3, tell=nights.append)
    assert str(run.broken) == "seed 3: no error: KeyError: 'what nobody expects'"
    assert nights == [0]
    assert list(run.results) == sorted(run.results)
    assert run.headline.endswith(f"trace {run.trace_hash[:12]}")


@pytest.fixture(scope="module")
def week() -> WorldRun:
    return play_world(4, NIGHTS, 0, per_night=PER_NIGHT)


@pytest.mark.slow
def test_leaves_mature_spread_are_used_and_taken_back_through_kills_and_partitions(
    week: WorldRun,
) -> None:
    assert week.broken is None, f"{week.broken}\n" + "\n".join(week.broken.tail)
    wanted = ("accepted", "dropped", "split", "merge", "resumed", "usage_records", "relied_on")
    missing = [name for name in wanted if not week.figures.get(name)]
    assert not missing, f"seed {week.seed}: {missing} never happened"
    assert "suspended" not in week.figures, f"seed {week.seed}: a kill was taken for a backup"
    assert week.faults.keys() == {
        "F6 partition",
        "F9 crash",
        "F10 killed round",
        "F26 consent withdrawn",
    }


@pytest.mark.slow
def test_every_statement_about_whole_nodes_was_checked(week: WorldRun) -> None:
    assert week.checks.keys() == STATEMENTS.keys()


def routed(world: World) -> tuple[Node, str, LeafId, str]:
    """A node that routes to a peer's leaf: the leaf's origin, its id and its bundle."""
    for node in world.up():
        assert node.app is not None
        for known in node.app.foreign.all():
            if known.state is State.ACCEPTED and known.leaf.root is not None:
                return node, known.leaf.origin, known.leaf.leaf, known.leaf.root
    raise AssertionError(f"seed {world.seed}: no leaf of a peer is routed to")


def refused(node: Node, origin: str, leaf: LeafId, root: str) -> Callable[[], object]:
    """The node takes the leaf for refused, and its table does not follow."""
    assert node.app is not None
    foreign = node.app.foreign
    [known] = [each for each in foreign.of(origin) if each.leaf.leaf == leaf]
    foreign.settle(known, State.REFUSED, {})
    return lambda: foreign.settle(known, State.ACCEPTED, {})


def spoilt(node: Node, origin: str, leaf: LeafId, root: str) -> Callable[[], object]:
    """The bundle on disk is another."""
    assert node.app is not None
    path = node.app.bundles.path(root)
    assert path is not None
    before = path.read_bytes()
    path.write_bytes(b"another" + before[7:])
    return lambda: path.write_bytes(before)


def unrouted(node: Node, origin: str, leaf: LeafId, root: str) -> Callable[[], object]:
    """The table in force has lost the leaf."""
    assert node.app is not None
    tables = node.app.tables
    kept = tables.current()
    assert kept is not None
    entries = [entry for entry in kept.table.entries if entry.leaf != leaf]
    tables.put(Table.build(kept.table.enc8, kept.table.dimensions, entries), kept.note)
    return lambda: tables.put(kept.table, kept.note)


class Tampering(Nights):
    """A story at whose end things go wrong that no node would do."""

    async def __call__(self, world: World, nursery: trio.Nursery) -> None:
        await super().__call__(world, nursery)
        self.found: list[str] = []
        for tamper in (refused, spoilt, unrouted):
            undo = tamper(*routed(world))
            with pytest.raises(InvariantError) as caught:
                WorldChecks(world).morning()
            self.found.append(str(caught.value))
            undo()
        WorldChecks(world).morning()


@pytest.mark.slow
def test_the_checks_see_what_is_wrong() -> None:
    story = Tampering(faulty=False)
    lived(2, 5, 1, story, topics=4, per_night=60)
    assert [text.split(": ")[:2] for text in story.found] == [
        ["seed 1", invariant] for invariant in ("router", "bundle", "router")
    ]


# ---- what a world is made of -------------------------------------------------------------------


@pytest.fixture(scope="module")
def chassis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chassis(tmp_path_factory.mktemp("chassis"))


def examples(topic: str, count: int, start: int = 0) -> tuple[Example, ...]:
    numbers = range(start, start + count)
    return tuple(Example(f"{topic}-{n}", f"{topic} question {n}", "an answer") for n in numbers)


def trained(chassis: Path, work: Path, topic: str, count: int) -> Path:
    work.mkdir()
    return TopicTrainer().train(TrainJob(work, chassis, examples(topic, count), Schedule())).adapter


def test_an_adapter_carries_what_it_learned_through_its_bytes(
    chassis: Path, tmp_path: Path
) -> None:
    adapter = trained(chassis, tmp_path / "a", "gears", 40)
    shares, sessions = learned(adapter.read_bytes(), chassis)
    assert shares.argmax() == slot("gears") and shares[slot("gears")] > 0.95
    assert round(sessions) == 40


def test_an_adapter_is_better_on_its_topic_and_by_more_sessions(
    chassis: Path, tmp_path: Path
) -> None:
    few, many, other = (
        trained(chassis, tmp_path / str(n), topic, count)
        for n, (topic, count) in enumerate((("gears", 20), ("gears", 200), ("tides", 200)))
    )
    asked = examples("gears", 30, start=1000)
    adapters = (("bare", None), ("few", few), ("many", many), ("other", other))
    losses = TopicEvaluator().losses(EvaluateJob(chassis, asked, adapters)).by_label
    mean = {label: fmean(values) for label, values in losses.items()}
    assert mean["many"] < mean["few"] < mean["other"] < mean["bare"]


def test_a_near_pair_is_one_domain_by_its_centres_and_parts_are_two() -> None:
    traffic = Traffic(0, 30)
    centres = {name: traffic.centre(f"{name} partx") for name in ("topic4", "topic5", "topic0")}
    assert (
        float(centres["topic4"] @ centres["topic5"])
        > 0.95
        > float(centres["topic4"] @ centres["topic0"])
    )
    parts = [traffic.centre(f"topic3 part{part}") for part in "ab"]
    assert float(parts[0] @ parts[1]) < 0.75


def test_each_owner_asks_the_same_in_any_order_and_nothing_of_what_sleeps() -> None:
    traffic, again = Traffic(5, 30), Traffic(5, 30)
    later = list(again.night(1, 7))
    assert list(traffic.night(1, 2)) == list(again.night(1, 2))
    assert list(traffic.night(1, 7)) == later
    asleep = {visit.session.split("-")[0] for visit in traffic.night(0, 15)}
    assert "topic2" not in asleep and "topic0" in asleep


def test_labels_make_domains_and_parts_of_the_sizes_that_are_asked() -> None:
    clusterer = LabelClusterer(Traffic(0, 30).label)
    ids = [f"topic3-{part}-0-1-{n}" for part in "ab" for n in range(30)] + ["topic7-x-0-1-1"]
    found = clusterer.cluster(ids, np.zeros((61, 2), np.float32), ClusterSizes(1000, 40, 20))
    assert [len(level) for level in found.levels] == [0, 1, 2] and len(found.noise) == 1


async def test_frames_arrive_in_order_a_delay_later_and_not_over_a_cut_link(
    autojump_clock: MockClock,
) -> None:
    medium = Medium(0)
    a, b = (MemoryTransport(medium, peer_named(n)) for n in (0, 1))
    async with trio.open_nursery() as nursery:
        for end in (a, b):
            await nursery.start(end.run)
        await a.dial(b.address)
        assert isinstance(await b.next_event(), Connected)
        for frame in (b"one", b"two"):
            assert await a.send(b.peer, Channel.SYNC, frame)
        began = trio.current_time()
        got = [await b.next_event() for _ in range(2)]
        assert got == [Arrived(a.peer, Channel.SYNC, frame) for frame in (b"one", b"two")]
        assert 0.02 <= medium.delay_s(a.peer, b.peer) <= 0.2 and trio.current_time() >= began
        medium.apart = lambda one, other: True
        medium.part()
        assert isinstance(await b.next_event(), Disconnected)
        assert not await a.send(b.peer, Channel.SYNC, b"three")
        with pytest.raises(DialError):
            await a.dial(b.address)
        nursery.cancel_scope.cancel()
