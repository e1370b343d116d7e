"""What multiaddrs say, how far they reach, and what a stranger may have dialled."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.keys import private_key, public_bytes
from gossip.multiaddrs import (
    AddressError,
    Reach,
    expand,
    group_of,
    is_fit_for_strangers,
    parse,
    peer_of_key,
    reach_of_link,
)

PEER = "12D3KooWESxuEAK5uxcJPX8nTjvNCGNQ2p72jbaoxKFE6QBoFhmF"
RELAY = "12D3KooWCumDBTj5ZECwYwaziMZw8u3rZwL8qJi8P2N2YMeDPak1"


@pytest.mark.parametrize(
    "address",
    [
        f"/ip4/198.51.100.7/tcp/4021/p2p/{PEER}",
        f"/ip6/2001:db8::7/tcp/4021/p2p/{PEER}",
        f"/dns4/node.example.org/tcp/4021/p2p/{PEER}",
        f"/dns6/node.example.org/tcp/65535/p2p/{PEER}",
        f"/ip4/198.51.100.7/tcp/4021/p2p/{RELAY}/p2p-circuit/p2p/{PEER}",
        "/ip4/0.0.0.0/tcp/0",
    ],
)
def test_an_address_is_what_it_was_when_it_is_written_again(address: str) -> None:
    place = parse(address)
    assert str(place) == address
    assert parse(place.without_peer()).peer is None


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "localhost:4021",
        "/ip4/198.51.100.7",
        "/ip4/198.51.100.7/udp/4021/quic-v1",
        "/ip4/198.51.100.700/tcp/4021",
        "/ip4/2001:db8::7/tcp/4021",
        "/ip6/198.51.100.7/tcp/4021",
        "/ip6/fe80::1%eth0/tcp/4021",
        "/ip4/198.51.100.7/tcp/65536",
        "/ip4/198.51.100.7/tcp/4021/ws",
        "/ip4/198.51.100.7/tcp/4021/p2p/short",
        f"/ip4/198.51.100.7/tcp/4021/p2p/{RELAY}/p2p/{PEER}",
        "/dns4/-bad-/tcp/4021",
        "/dns4/" + "a." * 130 + "/tcp/4021",
        "/ip4/198.51.100.7/tcp/４０２１",
    ],
)
def test_what_cannot_be_dialled_is_no_address(wrong: str) -> None:
    with pytest.raises(AddressError):
        parse(wrong)


@given(st.text(max_size=300))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    for each in (text, f"/ip4/{text}/tcp/1", f"/dns/{text}/tcp/{text}"):
        with suppress(AddressError):
            assert parse(str(parse(each))) == parse(each)


@pytest.mark.parametrize(
    ("ip", "reach"),
    [
        ("127.0.0.1", Reach.LOOPBACK),
        ("::1", Reach.LOOPBACK),
        ("::ffff:127.0.0.1", Reach.LOOPBACK),
        ("0.0.0.0", Reach.LOOPBACK),
        ("10.1.2.3", Reach.PRIVATE),
        ("172.31.0.1", Reach.PRIVATE),
        ("192.168.1.1", Reach.PRIVATE),
        ("::ffff:192.168.1.1", Reach.PRIVATE),
        ("100.64.0.1", Reach.PRIVATE),
        ("169.254.7.7", Reach.PRIVATE),
        ("fd00::1", Reach.PRIVATE),
        ("fe80::1", Reach.PRIVATE),
        ("198.51.100.7", Reach.PUBLIC),
        ("2001:db8::7", Reach.PUBLIC),
    ],
)
def test_how_far_an_address_reaches(ip: str, reach: Reach) -> None:
    kind = "ip6" if ":" in ip else "ip4"
    assert parse(f"/{kind}/{ip}/tcp/4021").reach is reach


def test_a_link_through_a_relay_or_of_an_unknown_kind_is_taken_for_one_from_afar() -> None:
    assert reach_of_link("/ip4/127.0.0.1/tcp/5") is Reach.LOOPBACK
    assert reach_of_link(f"/ip4/127.0.0.1/tcp/5/p2p/{RELAY}/p2p-circuit") is Reach.PUBLIC
    assert reach_of_link("/memory/7") is Reach.PUBLIC


@pytest.mark.parametrize(
    ("address", "fit"),
    [
        ("/ip4/198.51.100.7/tcp/4021", True),
        ("/ip6/2001:db8::7/tcp/4021", True),
        ("/ip4/198.51.100.7/tcp/25", False),
        ("/ip4/198.51.100.7/tcp/0", False),
        ("/ip4/0.0.0.0/tcp/4021", False),
        ("/ip4/255.255.255.255/tcp/4021", False),
        ("/ip4/224.0.0.251/tcp/5353", False),
        ("/ip4/169.254.169.254/tcp/8080", False),
        ("/ip6/fe80::1/tcp/4021", False),
        ("/dns4/localhost/tcp/4021", False),
        ("/ip4/127.0.0.1/tcp/4021", True),  # by whom, is another question
        ("/ip6/::1/tcp/4021", True),
        ("/ip4/0.1.2.3/tcp/4021", False),
        ("/ip4/198.19.0.1/tcp/4021", False),
        ("/ip6/64:ff9b::808:808/tcp/4021", False),
        ("/ip6/2002:808:808::1/tcp/4021", False),
    ],
)
def test_a_stranger_has_no_names_no_services_and_no_multicast_dialled(
    address: str, fit: bool
) -> None:
    assert is_fit_for_strangers(parse(address)) is fit


def test_a_group_is_the_16_of_ipv4_and_the_32_of_ipv6() -> None:
    assert group_of("/ip4/198.51.1.1/tcp/1") == group_of("/ip4/198.51.2.2/tcp/2")
    assert group_of("/ip4/198.51.1.1/tcp/1") != group_of("/ip4/198.52.1.1/tcp/1")
    assert group_of("/ip6/2001:db8:1::1/tcp/1") == group_of("/ip6/2001:db8:2::1/tcp/1")
    assert group_of("/ip6/2001:db8::1/tcp/1") != group_of("/ip6/2001:db9::1/tcp/1")


def test_everywhere_means_the_addresses_of_the_interfaces() -> None:
    hosts = ("127.0.0.1", "::1", "10.0.0.2", "198.51.100.7", "2001:db8::7", "fe80::1%eth0")
    assert expand([f"/ip4/0.0.0.0/tcp/4021/p2p/{PEER}"], hosts) == [
        f"/ip4/198.51.100.7/tcp/4021/p2p/{PEER}",
        f"/ip4/10.0.0.2/tcp/4021/p2p/{PEER}",
        f"/ip4/127.0.0.1/tcp/4021/p2p/{PEER}",
    ]
    assert expand(["/ip6/::/tcp/4021"], hosts) == ["/ip6/2001:db8::7/tcp/4021", "/ip6/::1/tcp/4021"]
    relayed = f"/ip4/198.51.100.9/tcp/1/p2p/{RELAY}/p2p-circuit/p2p/{PEER}"
    assert expand([relayed, relayed], hosts) == [relayed]


@pytest.mark.network
def test_a_peers_name_is_the_one_that_libp2p_gives_it() -> None:
    from gossip.libp2p_fence import peer_id_of

    for seed in (bytes(32), os.urandom(32)):
        assert peer_of_key(public_bytes(private_key(seed))) == peer_id_of(seed)
