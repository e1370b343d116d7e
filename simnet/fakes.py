"""Simulated models and a simulated medium: topics instead of texts, losses as a function of data.

A text names its topic in its first word, and that is all that any of these read of it. An adapter
carries in its tensors how much of which topic it learned, so that a peer who got it as a bundle,
through every real check, measures by it what its maker measured.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import numpy as np
import trio
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gossip.ports import Arrived, Channel, Connected, Disconnected, PeerId, TransportEvent
from gossip.relaying import RelayState
from gossip.transport_config import DialError, TransportConfig
from leaves.bundle import Exposure, read_adapter
from leaves.model import Matrix, Vector, unit
from leaves.ports import (
    Cluster,
    Clusterer,
    Clustering,
    ClusterSizes,
    EvaluateJob,
    Example,
    Executor,
    Losses,
    PreferenceJob,
    Probed,
    ProbeJob,
    Report,
    Schedule,
    Trained,
    TrainJob,
    silent,
)
from leaves.training.canaries import Exposures
from leaves.training.chassis import open_chassis
from leaves.training.tensors import pack
from node.adapters import Adapters, Pace
from node.capture.second_scan import SecondScan
from node.config import NightConfig
from node.examining import Gate
from node.governor import Senses
from node.senses import SensesPort

T = TypeVar("T")

# Losses in nats per token: what the bare chassis says, what any adapter gains by the style alone,
# and what it gains on its topics by its sessions: HELP · share · (1 - exp(-sessions / ENOUGH)).
BARE, STYLE, HELP, ENOUGH = 3.0, 0.15, 0.6, 60.0
NOISE, OWN_NOISE = 0.05, 0.02  # of a session under all adapters, and of it under each
# Of a node whose owner sleeps: a poll each half second for thirty nights is all that would be done.
PACE = Pace(poll_s=300.0, refresh_s=1800.0, retry_s=7200.0, rounds_s=1200.0, night_s=1800.0)
SLOTS = 16  # numbers in which an adapter says what it learned: topics are hashed to them


def seeded(*parts: object) -> int:
    """A number that is the same in every process, whatever PYTHONHASHSEED is."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def topic_of(text: str) -> str:
    """The topic that a text is about."""
    return text.partition(" ")[0]


# ---- the chassis -------------------------------------------------------------------------------


def write_chassis(folder: Path) -> Path:
    """Write the smallest Llama that opens, one layer of 16; nothing ever computes with it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    at = "model.layers.0"
    shapes = {
        f"{at}.self_attn.q_proj": (SLOTS, SLOTS),
        f"{at}.self_attn.v_proj": (SLOTS, SLOTS),
    }
    weights = {f"{name}.weight": rng.normal(0, 1, shape) for name, shape in shapes.items()}
    weights["model.embed_tokens.weight"] = rng.normal(0, 1, (64, SLOTS))
    floats = {name: array.astype(np.float32) for name, array in weights.items()}
    (folder / "model.safetensors").write_bytes(pack(floats, {"format": "pt"}))
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*marks, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={t: n for n, t in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(marks)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# ---- encoder and clusterer ---------------------------------------------------------------------


def direction(name: str, dimensions: int) -> Vector:
    """The unit vector that a name stands for."""
    drawn = np.random.default_rng(seeded(name)).normal(0, 1, (1, dimensions)).astype(np.float32)
    row: Vector = unit(drawn)[0]
    return row


@dataclass
class TopicEncoder:
    """A point near its topic's centre; the same text gives the same point.

    centres: where topics are that are not just anywhere, such as two that are nearly one.
    """

    centres: Callable[[str], Vector]
    dimensions: int = 384
    enc8: bytes = b"topics-1"
    name: str = "topics"
    spread: float = 0.35  # of a session about its centre, which has length 1

    def encode(self, texts: Sequence[str], report: Report = silent) -> Matrix:
        return np.stack([self.encode_one(text) for text in texts])

    def encode_one(self, text: str) -> Vector:
        near = self.centres(text) + self.spread * direction(text, self.dimensions)
        row: Vector = unit(near[None])[0]
        return row


@dataclass
class LabelClusterer:
    """A domain of each topic, and parts where there are any: as the sessions' ids say.

    label: of a session id, its topic and the part of it, "" if it has none.
    """

    label: Callable[[str], tuple[str, str]]

    def cluster(
        self, ids: Sequence[str], vectors: Matrix, sizes: ClusterSizes, report: Report = silent
    ) -> Clustering:
        topics: dict[str, list[str]] = {}
        parts: dict[tuple[str, str], list[str]] = {}
        for id_ in sorted(ids):
            topic, part = self.label(id_)
            topics.setdefault(topic, []).append(id_)
            if part:
                parts.setdefault((topic, part), []).append(id_)
        known = [topic for topic in sorted(topics) if len(topics[topic]) >= sizes.domain]
        there = {id_ for topic in known for id_ in topics[topic]}
        noise = tuple(sorted(id_ for id_ in ids if id_ not in there))
        whole = (Cluster(1, tuple(sorted(there)), None),) if len(there) >= sizes.branch else ()
        above = 0 if whole else None
        domains = tuple(Cluster(2, tuple(topics[topic]), above) for topic in known)
        fine = tuple(
            Cluster(3, tuple(members), known.index(topic))
            for (topic, _), members in sorted(parts.items())
            if topic in known and len(members) >= sizes.specialisation
        )
        return Clustering((whole, domains, fine), noise)


# ---- trainer and evaluator ---------------------------------------------------------------------


def learned(data: bytes, chassis: Path) -> tuple[np.ndarray[Any, np.dtype[np.float64]], float]:
    """What an adapter says that it learned: the share of each slot, and of how many sessions."""
    tensors = read_adapter(data, open_chassis(chassis)).tensors
    first = tensors[min(name for name in tensors if ".lora_A." in name)].astype(np.float64)
    shares = np.maximum(first[0], 0.0)
    return shares / max(float(shares.sum()), 1e-9), float(first[1, 0]) * 1e6


def slot(topic: str) -> int:
    return seeded("slot", topic) % SLOTS


class TopicTrainer:
    """Writes an adapter of the right form that says what it was trained on, and of how much."""

    def train(self, job: TrainJob, report: Report = silent) -> Trained:
        return _written(job.work, job.chassis, job.schedule, job.examples)

    def prefer(self, job: PreferenceJob, report: Report = silent) -> Trained:
        examples = tuple(Example(pair.session, pair.prompt, "") for pair in job.pairs)
        return _written(job.work, job.chassis, job.schedule, examples)

    def stop(self) -> None:
        """Nothing runs on."""


def _written(work: Path, chassis: Path, schedule: Schedule, examples: Sequence[Example]) -> Trained:
    done = work / "adapter.safetensors"
    opened = open_chassis(chassis)
    rng = np.random.default_rng(seeded(schedule.seed, *(each.session for each in examples)))
    shapes = opened.adapter_shapes(schedule.rank, opened.targets)
    tensors = {n: rng.normal(0, 1e-5, shape).astype(np.float32) for n, shape in shapes.items()}
    first = tensors[min(name for name in tensors if ".lora_A." in name)]
    counts = Counter(slot(topic_of(example.prompt)) for example in examples)
    first[0] = [1e-3 * counts[at] / max(len(examples), 1) for at in range(SLOTS)]
    first[1, 0] = len(examples) / 1e6
    about = {"rank": str(schedule.rank), "alpha": str(schedule.alpha), "format": "pt"}
    done.write_bytes(pack(tensors, about))
    sha256 = hashlib.sha256(done.read_bytes()).hexdigest()
    return Trained(done, sha256, 20 * len(examples), 1.0, 2.0, 1.0)


@dataclass
class QuietMachine:
    """`node.senses.SensesPort` of a machine as the simulation says that it is."""

    now: Senses = field(default_factory=Senses)
    unknown: dict[str, str] = field(default_factory=dict)
    own_cpu_s: float = 0.0

    def read(self) -> Senses:
        return self.now


class TopicEvaluator:
    """An adapter is good on the topics that it learned, by how many sessions it learned them."""

    def losses(self, job: EvaluateJob, report: Report = silent) -> Losses:
        by_label = {label: self._under(job, adapter) for label, adapter in job.adapters}
        return Losses(by_label, (10,) * len(job.examples))

    def _under(self, job: EvaluateJob, adapter: Path | None) -> tuple[float, ...]:
        data = adapter.read_bytes() if adapter else b""
        shares, sessions = learned(data, job.chassis) if adapter else (np.zeros(SLOTS), 0.0)
        by = hashlib.sha256(data).hexdigest()
        enough = 1.0 - math.exp(-sessions / ENOUGH)
        found = []
        for example in job.examples:
            loss = BARE + NOISE * (seeded("noise", example.session) / 2**63 - 1.0)
            if adapter is not None and not example.session.startswith("general/"):
                share = float(shares[slot(topic_of(example.prompt))])
                loss -= STYLE + HELP * share * enough
                loss += OWN_NOISE * (seeded(by, example.session) / 2**63 - 1.0)
            found.append(loss)
        return tuple(found)

    def probe(self, job: ProbeJob, report: Report = silent) -> Probed:
        """Nothing is known by heart."""
        return Probed((3,) * len(job.examples), (10,) * len(job.examples))

    def generate(
        self,
        chassis: Path,
        adapters: Sequence[tuple[str, Path | None]],
        prompts: Sequence[str],
        tokens: int,
        report: Report = silent,
    ) -> dict[str, tuple[str, ...]]:
        """The topic again."""
        return {label: tuple(map(topic_of, prompts)) for label, _ in adapters}

    def stop(self) -> None:
        """Nothing runs on."""

    def pause(self) -> None:
        """Nothing runs."""

    def resume(self) -> None:
        """Nothing was stopped."""


# ---- the medium --------------------------------------------------------------------------------


@dataclass
class Medium:
    """What carries frames between the nodes of a world. A link has a delay of its own.

    apart: says of two peers that nothing passes between them now.
    """

    seed: int
    ends: dict[PeerId, MemoryTransport] = field(default_factory=dict)
    apart: Callable[[PeerId, PeerId], bool] = lambda a, b: False
    frames: Counter[str] = field(default_factory=Counter)

    def delay_s(self, a: PeerId, b: PeerId) -> float:
        """20 to 200 ms, the same both ways."""
        return 0.02 + 0.18 * (seeded(self.seed, *sorted((a, b))) / 2**64)

    def connect(self, a: MemoryTransport, b: MemoryTransport) -> None:
        if b.peer in a.links:
            return
        for near, far in ((a, b), (b, a)):
            near.links[far.peer] = None
            near.put(Connected(far.peer, far.address), self.delay_s(a.peer, b.peer))

    def cut(self, a: PeerId, b: PeerId) -> None:
        """End the link between two peers, if there is one."""
        for near, far in ((a, b), (b, a)):
            end = self.ends.get(near)
            if end is not None and far in end.links:
                del end.links[far]
                end.put(Disconnected(far), 0.0)

    def part(self) -> None:
        """End all links between peers that are apart now."""
        for a in list(self.ends):
            for b in list(self.ends[a].links):
                if self.apart(a, b):
                    self.cut(a, b)

    def gone(self, peer: PeerId) -> None:
        """A node has ended: its links end at once, for the others too."""
        end = self.ends.pop(peer, None)
        for far in list(end.links if end else ()):
            other = self.ends.get(far)
            if other is not None and peer in other.links:
                del other.links[peer]
                other.put(Disconnected(peer), 0.0)


class MemoryTransport:
    """One node's end: frames arrive in order and whole, a link's delay later."""

    def __init__(self, medium: Medium, peer: PeerId) -> None:
        self.peer = peer
        self.address = address_of(peer)
        self.links: dict[PeerId, None] = {}
        self._medium = medium
        self._events: list[tuple[float, int, TransportEvent]] = []
        self._posted = 0  # breaks ties at equal times, so events never compare
        self._filled = trio.Event()

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        self._medium.ends[self.peer] = self
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            if self._medium.ends.get(self.peer) is self:
                self._medium.gone(self.peer)

    def put(self, event: TransportEvent, delay_s: float) -> None:
        self._posted += 1
        heapq.heappush(self._events, (trio.current_time() + delay_s, self._posted, event))
        self._filled.set()

    def peer_id(self) -> PeerId:
        return self.peer

    def addresses(self) -> list[str]:
        return [self.address]

    async def dial(self, address: str) -> PeerId:
        await trio.lowlevel.checkpoint()
        far = self._medium.ends.get(PeerId(address.rpartition("/")[2]))
        if far is None or self._medium.apart(self.peer, far.peer):
            raise DialError(f"nobody answers at {address}")
        self._medium.connect(self, far)
        return far.peer

    async def probe(self, peer: PeerId, within_s: float) -> bool:
        await trio.lowlevel.checkpoint()
        return peer in self.links

    def standing(self) -> dict[str, Any]:
        return {"lives": 1, "last_death": "", "counts": {}}

    def relays(self) -> list[RelayState]:
        return []

    def relayed(self) -> None:
        return None

    async def send(self, peer: PeerId, channel: Channel, frame: bytes) -> bool:
        await trio.lowlevel.checkpoint()
        return self._carry(peer, channel, frame)

    async def broadcast(self, frame: bytes) -> None:
        await trio.lowlevel.checkpoint()
        for peer in list(self.links):
            self._carry(peer, None, frame)

    def _carry(self, peer: PeerId, channel: Channel | None, frame: bytes) -> bool:
        far = self._medium.ends.get(peer)
        if peer not in self.links or far is None:
            return False
        self._medium.frames[channel or "urgent"] += 1
        far.put(Arrived(self.peer, channel, frame), self._medium.delay_s(self.peer, peer))
        return True

    async def next_event(self) -> TransportEvent:
        await trio.lowlevel.checkpoint()
        while True:
            if not self._events:
                self._filled = trio.Event()
                await self._filled.wait()
            due, now = self._events[0][0], trio.current_time()
            if due <= now:
                return heapq.heappop(self._events)[2]
            self._filled = trio.Event()
            with trio.move_on_after(due - now):
                await self._filled.wait()  # something may come that is due before it

    async def disconnect(self, peer: PeerId, reason: str) -> None:
        await trio.lowlevel.checkpoint()
        self._medium.cut(self.peer, peer)


def address_of(peer: PeerId) -> str:
    return f"/ip4/127.0.0.1/tcp/4131/p2p/{peer}"


def peer_named(number: int) -> PeerId:
    """A peer id of the shape that address books accept."""
    return PeerId(f"node{number:04d}".ljust(46, "x"))


# ---- all of it, as a node takes it -------------------------------------------------------------


class NothingFound(SecondScan):
    """A second scan that finds nothing: made-up sessions hold no secret."""

    def scan(self, texts: Sequence[str]) -> list[str]:
        return [""] * len(texts)


@dataclass
class Simulated(Adapters):
    """One node's adapters. What works does so at once, for a thread's wait would let `MockClock`
    run ahead. begin: runs one of the node's commands."""

    seed: str
    peer: PeerId
    medium: Medium
    encodes: TopicEncoder
    clusters: LabelClusterer
    begin: Callable[[list[str]], int]
    pace: Pace = PACE
    watches: bool = False
    roams: bool = False
    answers: bool = False
    machine: QuietMachine = field(default_factory=QuietMachine)
    starts: int = 0  # of the node so far: each draws anew

    def __post_init__(self) -> None:
        self._secrets = Random(f"{self.seed}/secrets")

    def random(self) -> Random:
        self.starts += 1
        return Random(f"{self.seed}/{self.starts}")

    def secret(self) -> bytes:
        return self._secrets.randbytes(32)

    async def in_thread(self, work: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        return work()

    def transport(self, key: bytes, config: TransportConfig) -> MemoryTransport:
        return MemoryTransport(self.medium, self.peer)

    async def in_spare_thread(self, work: Callable[[], T]) -> T:
        return await self.in_thread(work)

    def senses(self, home: Path, config: NightConfig) -> SensesPort:
        return self.machine

    def start(
        self, command: list[str], environment: Mapping[str, str], begun: Callable[[int], None]
    ) -> Awaitable[int]:
        async def run() -> int:
            await trio.lowlevel.checkpoint()
            return self.begin(command)

        return run()

    def encoder(self) -> TopicEncoder:
        return self.encodes

    def clusterer(self, make: Callable[[Executor], Clusterer]) -> LabelClusterer:
        return self.clusters

    def trainer(self, threads: int) -> TopicTrainer:
        return TopicTrainer()

    def evaluator(self, threads: int) -> TopicEvaluator:
        return TopicEvaluator()

    def second_scan(self, cache: Path) -> AbstractContextManager[SecondScan]:
        return NothingFound(cache)

    def gate(self, app: Any, schedule: Schedule, report: Report) -> Gate:
        """The real one, of a recipe that remembers little."""
        levels = (Exposure(1, 16, 1.0, 0), Exposure(100, 1, 4.0, 0))
        recipe = Exposures(levels, 9.0, 128, 1000, 1.0)
        return Gate(app.chassis, app.evaluator, recipe, "simulated")
