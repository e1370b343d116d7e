"""Invitations: what goes in comes out, and what is damaged on the way says so."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.invites import (
    ADDRESSES_MAX,
    CHARS_MAX,
    Invite,
    InviteError,
    read,
    worth_telling,
    written,
)
from gossip.keys import private_key, public_bytes
from gossip.multiaddrs import AddressError, peer_of_key
from gossip.wire import encode

PEERS = [peer_of_key(public_bytes(private_key(bytes([n]) * 32))) for n in range(3)]
PEER, RELAY, _ = PEERS
ADDRESSES = (
    f"/ip4/198.51.100.7/tcp/4021/p2p/{PEER}",
    f"/ip6/2001:db8::7/tcp/4021/p2p/{PEER}",
    f"/dns4/node.example.org/tcp/4021/p2p/{PEER}",
    f"/ip4/198.51.100.9/tcp/4021/p2p/{RELAY}/p2p-circuit/p2p/{PEER}",
)
INVITE = Invite(ADDRESSES, bytes(range(32)), bytes(range(32, 64)))
TEXT = written(INVITE)

hosts = st.ip_addresses(v=4).filter(lambda ip: not (ip.is_unspecified or ip.is_multicast))
addresses = st.builds("/ip4/{}/tcp/{}/p2p/{}".format, hosts, st.integers(1, 65_535), st.just(PEER))
invites = st.builds(
    Invite,
    st.lists(addresses, min_size=1, max_size=ADDRESSES_MAX).map(tuple),
    st.binary(min_size=32, max_size=32),
    st.just(b"") | st.binary(min_size=32, max_size=32),
)


@given(invites)
def test_an_invitation_is_read_as_it_was_written(invite: Invite) -> None:
    assert read(written(invite)) == invite


def test_capitals_and_line_breaks_do_no_harm() -> None:
    broken = "\n> ".join([TEXT[:70], TEXT[70:]]).replace("> ", "")
    assert read(TEXT.upper()) == read(f"  {broken}\n") == INVITE
    assert INVITE.peer == PEER


@given(st.data())
def test_a_letter_changed_left_out_or_added_is_noticed(data: st.DataObject) -> None:
    at = data.draw(st.integers(len("groove1"), len(TEXT) - 1))
    letter = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
    changed = TEXT[:at] + letter + TEXT[at + 1 :]
    for wrong in (TEXT[:at] + TEXT[at + 1 :], TEXT[:at], TEXT[:at] + letter + TEXT[at:], changed):
        try:
            assert read(wrong) == INVITE  # a last letter holds bits that mean nothing
        except InviteError as problem:
            assert "copy it again" in str(problem)


@given(st.text(max_size=400))
def test_any_text_is_an_invitation_or_refused(text: str) -> None:
    for each in (text, f"groove1{text}"):
        with pytest.raises(InviteError):
            read(each)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "does not begin with groove1"),
        ("hello", "does not begin with groove1"),
        ("groove2" + TEXT[7:], "newer version"),
        ("groove23" + TEXT[7:], "newer version"),
        ("groove1", "cut short"),
        (TEXT + "!", "copy it again"),
        (TEXT[:-1] + "1", "no invitation has"),
        ("groove1" + "a" * CHARS_MAX, "no invitation has so many"),
    ],
)
def test_what_is_no_invitation_says_why(text: str, said: str) -> None:
    with pytest.raises(InviteError, match=said):
        read(text)


def sealed(body: object) -> str:
    """A string whose checksum is right, whatever it holds."""
    data = encode(body)
    check = hashlib.sha256(b"groove/invite/1\0" + data).digest()[:4]
    return "groove1" + base64.b32encode(data + check).decode().lower().rstrip("=")


@pytest.mark.parametrize(
    "body",
    [
        [],
        {"peer": PEER},
        [PEER, [], bytes(32), b""],
        [PEER, ["/ip4/198.51.100.7/tcp/4021"] * (ADDRESSES_MAX + 1), bytes(32), b""],
        [PEER, ["/ip4/198.51.100.7/tcp/0"], bytes(32), b""],
        [PEER, ["/ip4/0.0.0.0/tcp/4021"], bytes(32), b""],
        [PEER, [f"/ip4/198.51.100.7/tcp/4021/p2p/{RELAY}"], bytes(32), b""],
        [PEER, ["/ip4/198.51.100.7/tcp/4021"], bytes(31), b""],
        [PEER, ["/ip4/198.51.100.7/tcp/4021"], bytes(32), b"short"],
        ["nobody", ["/ip4/198.51.100.7/tcp/4021"], bytes(32), b""],
        [PEER, ["/ip4/198.51.100.7/tcp/4021"], bytes(32), b"", 0],
    ],
)
def test_what_another_program_made_is_held_to_the_same(body: object) -> None:
    with pytest.raises(InviteError, match="not made by groove-node"):
        read(sealed(body))


def test_an_invitation_is_to_one_peer() -> None:
    other = f"/ip4/198.51.100.7/tcp/4021/p2p/{RELAY}"
    for wrong in ((), (ADDRESSES[0], other), ("/ip4/198.51.100.7/tcp/4021",)):
        with pytest.raises(AddressError):
            written(Invite(wrong, bytes(32)))


def test_what_works_from_afar_is_told_first() -> None:
    near = [f"/ip4/{host}/tcp/4021/p2p/{PEER}" for host in ("127.0.0.1", "10.0.0.2")]
    assert worth_telling([*near, *ADDRESSES, near[0]]) == [
        ADDRESSES[2],
        ADDRESSES[0],
        ADDRESSES[1],
        ADDRESSES[3],
        near[1],
        near[0],
    ]
