"""/metrics: what Prometheus reads, and a board that asks for nothing else."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support_endpoint import endpoint, running

from node.api import metrics
from node.api.counts import Counts
from node.api.spread import STEPS_S, Spread
from node.app import App
from node.errors import OwnerError
from node.home import private_dir
from node.tally import SourceCounts, Tally

DOCS = Path(__file__).parents[1] / "docs"
NODE: dict[str, Any] = {
    "peers": [{"peer": "p", "address": "/ip4/10.0.0.1", "bytes_in": 5, "bytes_out": 7}] * 2,
    "night": {"state": "rests"},
}


@pytest.fixture
def app(tmp_path: Path) -> App:
    private_dir(tmp_path / "home")
    made = App(tmp_path / "home")
    Tally(made.home).add_queue({"captured": 3})
    Tally(made.home).add_source("codex", SourceCounts(sessions=4, malformed=1))
    return made


def busy() -> Counts:
    counts = Counts()
    counts.requests["chat", 200] = 9
    counts.answered["leaf"] = 5
    counts.fallbacks["encoder_busy"] = 2
    counts.failures["upstream_down"] = 1
    counts.refused["token"] = 4
    counts.aborted, counts.streams = 3, 2
    for seconds in (0.0005, 0.001, 0.3, 500.0):
        counts.first_byte["chat"].add(seconds)
        counts.took["chat"].add(seconds)
    return counts


def read(app: App, counts: Counts) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """All samples as Prometheus' own parser reads them, by name and labels."""
    home = metrics._Home(app, lambda _: NODE)
    home.read()
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(metrics.text(counts, home).decode()):
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def test_the_figures_are_those_that_were_counted(app: App) -> None:
    found = read(app, busy())
    assert found["groove_requests_total"] == {(("route", "chat"), ("status", "200")): 9}
    assert found["groove_fallbacks_total"] == {(("cause", "encoder_busy"),): 2}
    assert found["groove_refused_total"] == {(("cause", "token"),): 4}
    assert found["groove_aborted_total"] == {(): 3}
    assert found["groove_peers_connected"] == {(): 2}
    assert found["groove_connected_received_bytes"] == {(): 10}
    assert found["groove_night_state"][(("state", "rests"),)] == 1
    assert found["groove_captured_sessions_total"] == {(("source", "codex"),): 4}
    assert found["groove_capture_items_total"] == {(("outcome", "captured"),): 3}
    assert set(found["groove_unread_parts"].values()) == {0}
    assert sum(found["groove_leaves"].values()) == 0


def test_a_histogram_adds_up(app: App) -> None:
    found = read(app, busy())
    buckets = {dict(key)["le"]: n for key, n in found["groove_first_byte_seconds_bucket"].items()}
    assert buckets["0.001"] == 2, "a value on a step is within it"
    assert buckets["0.5"] == 3
    assert buckets["120"] == 3
    assert buckets["+Inf"] == 4
    assert len(buckets) == len(STEPS_S) + 1
    assert found["groove_first_byte_seconds_count"] == {(("route", "chat"),): 4}
    assert sum(found["groove_first_byte_seconds_sum"].values()) == pytest.approx(500.3015)


def test_no_metric_has_more_series_than_the_bound(app: App) -> None:
    counts = busy()
    for number in range(1000):
        counts.failures[f"cause-{number}"] = 1
        counts.first_byte[f"route-{number}"] = Spread()
    found = read(app, counts)
    assert len(found["groove_failures_total"]) == metrics.SERIES_MAX + 1
    assert sum(found["groove_failures_total"].values()) == 1001
    assert len(found["groove_first_byte_seconds_count"]) == metrics.SERIES_MAX


def test_a_part_that_cannot_be_read_is_left_out_and_counted(app: App) -> None:
    def damaged(_: App) -> None:
        raise OwnerError("damaged")

    home = metrics._Home(app, damaged)
    home.read()
    text = metrics.text(Counts(), home).decode()
    assert 'groove_unread_parts{part="node"} 1.0' in text
    assert "groove_corpus_bytes" in text
    assert "groove_peers_connected" not in text


def test_names_and_units_are_as_the_convention_has_them(app: App) -> None:
    home = metrics._Home(app, lambda _: NODE)
    home.read()
    for family in text_string_to_metric_families(metrics.text(busy(), home).decode()):
        assert re.fullmatch(r"groove_[a-z_]+", family.name)
        assert family.documentation, family.name
        if family.type == "histogram":
            assert family.name.endswith("_seconds")
        assert not re.search(r"_(ms|kb|mb|minutes|hours)$", family.name)


def test_the_board_asks_for_nothing_that_is_not_there(app: App) -> None:
    counts = busy()
    names = set(read(app, counts)) | {"groove_round_last_finished_timestamp_seconds"}
    names |= {"groove_leaf_sessions", "groove_foreign_leaves"}  # once there is a leaf
    board = json.loads((DOCS / "grafana.json").read_text())
    asked: set[str] = set()
    for panel in board["panels"]:
        for target in panel["targets"]:
            found = set(re.findall(r"groove_\w+", target["expr"]))
            assert found, target["expr"]
            asked |= found
    assert asked <= names, asked - names
    told = set(re.findall(r"`(groove_\w+)`", (DOCS / "prometheus.md").read_text()))
    bare = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
    assert told <= bare, told - bare
    assert bare - told <= {"groove_node_info"}, "a metric is not in docs/prometheus.md"


def test_prometheus_is_let_in_by_the_token_and_the_home_is_not_read_each_time(app: App) -> None:
    reads = 0

    def node(_: App) -> dict[str, Any]:
        nonlocal reads
        reads += 1
        return NODE

    made = endpoint(app.home, time.monotonic)
    with running(made, *metrics.routes(app, made.counts, node)):
        assert httpx.get(f"{made.url}/metrics").status_code == 401
        for _ in range(3):
            answer = httpx.get(f"{made.url}/metrics", headers=made.bearer)
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert 'groove_requests_total{route="metrics",status="200"} 2.0' in answer.text
        assert 'groove_refused_total{cause="token"} 1.0' in answer.text
    assert reads == 1
