"""A network that loses, stalls, splits and kills: what was to arrive does, and views are equal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support_netns import Internet, Peer, Space, end, internet, needs_namespaces, start_peer

pytestmark = needs_namespaces()

LISTEN = "/ip4/0.0.0.0/tcp/4021"


@pytest.fixture
def net() -> Iterator[Internet]:
    with internet() as made:
        yield made


def peers(net: Internet, folder: Path, number: int, **config: Any) -> list[tuple[Peer, Space]]:
    """So many machines that can dial each other, each with one stack."""
    spaces = [net.host() for _ in range(number)]
    return [
        (start_peer(net, space, folder / space.name, listen=LISTEN, **config), space)
        for space in spaces
    ]


def address(of: tuple[Peer, Space]) -> str:
    return f"/ip4/{of[1].ip}/tcp/4021/p2p/{of[0].peer}"


def link(a: tuple[Peer, Space], b: tuple[Peer, Space]) -> None:
    a[0].order(do="know", address=address(b))
    b[0].wait_for("connected", lambda line: line["peer"] == a[0].peer)
    a[0].wait_for("connected", lambda line: line["peer"] == b[0].peer)


def bundle_of(holder: Peer, size: int) -> str:
    holder.order(do="add", size=size)
    root: str = holder.wait_for("added")["root"]
    return root


def views_are_equal(several: list[Peer], leaves: int) -> None:
    """Wait until all hold the same of everybody, and so many leaves in all."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        views = []
        for peer in several:
            peer.order(do="view")
            views.append(peer.wait_for("view")["view"])
        if all(view == views[0] for view in views) and sum(map(len, views[0].values())) == leaves:
            return
        time.sleep(0.3)
    raise AssertionError(f"views differ after 60 s: {views}")


@pytest.mark.parametrize("percent", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_what_is_sent_arrives_although_packets_are_lost(
    net: Internet, tmp_path: Path, percent: int
) -> None:
    a, b = peers(net, tmp_path, 2)
    for _, space in (a, b):
        space.lose(percent)
    link(a, b)
    size = 2_000_000 if percent < 10 else 300_000
    root = bundle_of(a[0], size)
    b[0].order(do="fetch", root=root, size=size)
    assert b[0].wait_for("fetched")["whole"]
    a[0].order(do="publish", leaves=[1, 2, 3])
    views_are_equal([a[0], b[0]], 3)
    a[0].order(do="retract", leaf=2)
    b[0].wait_for("retracted")
    views_are_equal([a[0], b[0]], 2)


def test_a_bundle_and_the_gossip_share_a_narrow_line(net: Internet, tmp_path: Path) -> None:
    a, b = peers(net, tmp_path, 2)
    a[1].rate(8)  # a megabyte a second
    link(a, b)
    size = 2_500_000
    b[0].order(do="fetch", root=bundle_of(a[0], size), size=size)
    b[0].wait_for("fetching", lambda line: line["tenth"] >= 2)
    a[0].order(do="publish", leaves=[1])
    heard = b[0].wait_for("heard", lambda line: line["leaves"] == 1)
    assert not [line for line in b[0].seen if line["event"] == "fetched"], heard
    assert b[0].wait_for("fetched")["whole"]


@pytest.mark.slow
def test_after_a_partition_all_hold_the_same_again(net: Internet, tmp_path: Path) -> None:
    three = peers(net, tmp_path, 3, health_check_s=1.0)
    a, b, c = three
    link(a, b)
    link(b, c)
    link(c, a)
    a[0].order(do="publish", leaves=[1])
    views_are_equal([each for each, _ in three], 1)
    c[1].cut()
    for near in (a, b):
        near[0].wait_for("disconnected", lambda line: line["peer"] == c[0].peer)
    a[0].order(do="publish", leaves=[1, 2])
    c[0].order(do="publish", leaves=[7, 8])
    views_are_equal([a[0], b[0]], 2)
    c[1].heal()
    views_are_equal([each for each, _ in three], 4)


def test_a_bundle_is_finished_from_another_when_its_holder_dies(
    net: Internet, tmp_path: Path
) -> None:
    a, b, c = peers(net, tmp_path, 3)
    a[1].rate(40)
    link(c, a)
    size = 6_000_000
    root = bundle_of(a[0], size)
    assert bundle_of(b[0], size) == root
    c[0].order(do="fetch", root=root, size=size)
    c[0].wait_for("fetching", lambda line: line["tenth"] >= 3)
    end(a[0].process)  # kill -9
    link(c, b)
    got = c[0].wait_for("fetched")
    assert got["whole"] and sum(got["sources"].values()) <= 1.02 * size
    assert set(got["sources"]) == {a[0].peer, b[0].peer}
