"""/metrics for Prometheus: what the node did and how it stands, in figures.

A label is a word of the program's own or the id of a leaf, never anything that somebody wrote, and
of each metric there is a bounded number of series. What stands in the home is read in a thread, at
most once in FRESH_S however often one asks; a part that cannot be read is left out, and counted.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from leaves.model import Stage
from node import gate, overview
from node.app import App
from node.errors import OwnerError
from node.governor import State
from node.tally import Tally

from .counts import Counts
from .spread import STEPS_S, Spread

if TYPE_CHECKING:
    from leaves.model import Forest

FRESH_S = 5.0
SERIES_MAX = 200  # of one metric; what is rarer is added up as `other`
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Node = Callable[[App], Mapping[str, Any] | None]
Key = tuple[str, ...]
Part = Callable[[App], Iterable[Metric]]


def routes(app: App, counts: Counts, node: Node = overview.running) -> list[Route]:
    """GET /metrics. node: what the running node says of itself, as its run file has it."""
    home = _Home(App(app.home, app.clock, app.adapters), node)
    turn = trio.Lock()

    async def metrics(request: Request) -> Response:
        async with turn:
            if home.is_stale(trio.current_time()):
                await app.adapters.in_thread(home.read)
                home.read_s = trio.current_time()
        return Response(text(counts, home), media_type=None, headers={"content-type": CONTENT_TYPE})

    return [Route("/metrics", metrics, methods=["GET"], name="metrics")]


def text(counts: Counts, home: Collector) -> bytes:
    """Everything in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Endpoint(counts))
    registry.register(home)
    return generate_latest(registry)


# ---- what the endpoint did ---------------------------------------------------------------------


class _Endpoint(Collector):
    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        counts = self._counts
        requests: dict[Key, int] = {
            (name, str(status)): n for (name, status), n in counts.requests.items()
        }
        yield _counter("requests", "Requests answered.", requests, "route", "status")
        for name, help_, counted, label in (
            ("answered", "Answers, by who made them.", counts.answered, "by"),
            ("fallbacks", "Answers by another than was meant.", counts.fallbacks, "cause"),
            ("failures", "What went wrong.", counts.failures, "cause"),
            ("refused", "Requests and clients not let in.", counts.refused, "cause"),
        ):
            yield _counter(name, help_, {(key,): n for key, n in counted.items()}, label)
        aborted = "Answers that the client did not wait for."
        yield CounterMetricFamily("groove_aborted", aborted, value=counts.aborted)
        yield GaugeMetricFamily("groove_streams_open", "Answers under way.", value=counts.streams)
        first = "From the request to the first byte of its answer."
        yield _histogram("first_byte_seconds", first, counts.first_byte)
        yield _histogram("request_duration_seconds", "To its last byte.", counts.took)


def _counter(
    name: str, help_: str, counted: Mapping[Key, int], *labels: str
) -> CounterMetricFamily:
    family = CounterMetricFamily(f"groove_{name}", help_, labels=labels)
    for key, n in _bounded(counted, len(labels)).items():
        family.add_metric(key, n)
    return family


def _bounded(counted: Mapping[Key, int], width: int) -> dict[Key, int]:
    ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    kept = dict(ordered[:SERIES_MAX])
    if rest := sum(n for _, n in ordered[SERIES_MAX:]):
        kept[("other",) * width] = rest
    return kept


def _histogram(name: str, help_: str, spreads: Mapping[str, Spread]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(f"groove_{name}", help_, labels=("route",))
    for route, spread in list(spreads.items())[:SERIES_MAX]:
        buckets: list[tuple[str, float]] = []
        so_far = 0
        for step, n in zip((*map(str, STEPS_S), "+Inf"), spread.counts, strict=True):
            so_far += n
            buckets.append((step, so_far))
        family.add_metric((route,), buckets, sum_value=spread.sum_s)
    return family


# ---- how the home stands -----------------------------------------------------------------------


class _Home(Collector):
    """What was last read of the home."""

    def __init__(self, app: App, node: Node) -> None:
        self._app = app
        self._node = node
        self._read: list[Metric] = []
        self.read_s: float | None = None

    def is_stale(self, now_s: float) -> bool:
        return self.read_s is None or now_s - self.read_s > FRESH_S

    def collect(self) -> Iterator[Metric]:
        yield from self._read

    def read(self) -> None:
        """Read all parts anew. For a thread."""
        found: list[Metric] = [InfoMetricFamily("groove_node", "This node.", {"version": _own()})]
        unread = GaugeMetricFamily(
            "groove_unread_parts", "Parts of these metrics not had.", labels=("part",)
        )
        parts: dict[str, Part] = {
            "leaves": _leaves,
            "corpus": _corpus,
            "sources": _sources,
            "rounds": _rounds,
            "foreign": _foreign,
            "node": lambda app: _running(self._node(app)),
        }
        for name, part in parts.items():
            try:
                found += part(self._app)
            except (OwnerError, OSError, sqlite3.Error):
                unread.add_metric((name,), 1)
            else:
                unread.add_metric((name,), 0)
        self._read = [*found, unread]


@cache
def _own() -> str:
    return version("groove-node")


def _gauge(name: str, help_: str, values: Mapping[str, float], label: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"groove_{name}", help_, labels=(label,))
    for key, value in list(values.items())[:SERIES_MAX]:
        family.add_metric((key,), value)
    return family


def _leaves(app: App) -> Iterator[Metric]:
    forest: Forest = app.forests.forest()
    grown = [leaf for leaf in forest if leaf.level > 1]
    stages = Counter(leaf.stage for leaf in grown)
    by_stage = {stage.value: float(stages[stage]) for stage in Stage}
    yield _gauge("leaves", "Own leaves, by stage.", by_stage, "stage")
    live = sorted((x for x in grown if x.stage.live), key=lambda x: (-x.sessions, x.id))
    sessions: dict[str, float] = {leaf.id: float(leaf.sessions) for leaf in live}
    yield _gauge("leaf_sessions", "Sessions of the largest own leaves.", sessions, "leaf")
    waiting = len(app.forests.proposals.waiting())
    yield GaugeMetricFamily("groove_proposals_waiting", "For the owner's word.", value=waiting)


def _corpus(app: App) -> Iterator[Metric]:
    yield GaugeMetricFamily("groove_corpus_bytes", "On disk.", value=_corpus_bytes(app))
    counts = Tally(app.home).read()
    queue: dict[Key, int] = {(word,): n for word, n in counts.queue.items()}
    yield _counter("capture_items", "Offered to capture, by what became of them.", queue, "outcome")
    waiting = gate.queue.counters.waiting if gate.queue is not None else 0
    yield GaugeMetricFamily("groove_capture_queue_items", "Waiting now.", value=waiting)


def _corpus_bytes(app: App) -> int:
    """Of its files, without what reading them needs: that is loaded with consent alone."""
    folder = app.home / "training_data"
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())


def _sources(app: App) -> Iterator[Metric]:
    sources = Tally(app.home).read().sources
    taken: dict[Key, int] = {(name,): each.sessions for name, each in sources.items()}
    yield _counter("captured_sessions", "Sessions taken in, by source.", taken, "source")
    bad: dict[Key, int] = {(name,): each.malformed for name, each in sources.items()}
    yield _counter("captured_malformed", "Records that could not be read.", bad, "source")


def _rounds(app: App) -> Iterator[Metric]:
    is_open = app.forests.open_round() is not None
    yield GaugeMetricFamily("groove_round_open", "1 while a round is under way.", value=is_open)
    if (last := app.forests.last_round()) and last.finished is not None:
        when = float(last.finished)
        name = "groove_round_last_finished_timestamp_seconds"
        yield GaugeMetricFamily(name, "When the last round ended.", value=when)


def _foreign(app: App) -> Iterator[Metric]:
    states = Counter(known.state.value for known in app.foreign.all())
    found = {state: float(n) for state, n in sorted(states.items())}
    yield _gauge("foreign_leaves", "Peers' leaves, by how far each has come.", found, "state")


def _running(node: Mapping[str, Any] | None) -> Iterator[Metric]:
    peers = node["peers"] if node else []
    yield GaugeMetricFamily("groove_peers_connected", "Now.", value=len(peers))
    for name, key in (("received", "bytes_in"), ("sent", "bytes_out")):
        total = sum(each[key] for each in peers)
        help_ = f"Bytes {name} on the connections that stand now."
        yield GaugeMetricFamily(f"groove_connected_{name}_bytes", help_, value=total)
    state = node["night"].get("state") if node and node.get("night") else None
    states = {each.value: float(each.value == state) for each in State}
    yield _gauge("night_state", "1 for how it stands with unattended work.", states, "state")
