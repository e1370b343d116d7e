"""The address book on disk: read, saved, mended.

It is worth less than a start: one that is damaged is moved aside with a word, and peers are found
again from groove.toml, from invitations and from each other.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from gossip.addresses import BY_MDNS, AddressBook, AddressError, Entry, Source
from gossip.addresses import peer_of as peer_of
from gossip.ports import PeerId

from .errors import OwnerError
from .home import write_atomic
from .mailbox import Dial, Forget

if TYPE_CHECKING:
    from .app import App

log = logging.getLogger(__name__)

FILE: Final = "peers.json"
DAMAGED: Final = "peers.json.damaged"


class PeersError(OwnerError):
    """An address in groove.toml cannot be dialled."""


def load(app: App) -> AddressBook:
    """The peers of the book on disk and of groove.toml. Raises PeersError."""
    book = _read(app.home / FILE)
    for address in app.config.mesh.peers:
        try:
            book.add(address, Source.OWNER)
        except AddressError as problem:
            raise PeersError(
                f"mesh.peers in {app.home / 'groove.toml'}: {problem}",
                unchanged="Nothing was dialled.",
                next_step="Mend the address, or take it out of groove.toml.",
            ) from None
    return book


def save(app: App, book: AddressBook) -> None:
    """Replace the file whole, so that a kill leaves the old book or the new."""
    write_atomic(app.home / FILE, book.to_json())


def expected(app: App) -> AddressBook:
    """The book as it will be once the orders that wait are carried out."""
    book = load(app)
    for letter in app.mailbox.waiting():
        match letter.order:
            case Dial(address):
                try:
                    book.add(address, Source.OWNER)
                except AddressError:
                    continue  # the running node answers it so
            case Forget(peer):
                book.remove(PeerId(peer))
            case _:
                continue
    return book


def named_by(entry: Entry) -> str:
    """Who named an address, in a word or two."""
    if entry.source is Source.OWNER:
        return "you"
    if entry.by == BY_MDNS:
        return "local network"
    return "itself" if entry.by == peer_of(entry.address) else entry.by or "a peer"


def announced(addresses: Sequence[str], peer: PeerId) -> list[str]:
    """The addresses of [mesh.transport] announce, each with the peer at its end. PeersError."""
    found = []
    for address in addresses:
        whole = address if "/p2p/" in address else f"{address}/p2p/{peer}"
        try:
            named = peer_of(whole)
        except AddressError as problem:
            named, reason = None, str(problem)
        else:
            reason = f"{address!r} is another peer's"
        if named != peer:
            raise PeersError(
                f"mesh.transport.announce in groove.toml: {reason}",
                unchanged="Nothing was announced.",
                next_step="Give one such as /ip4/203.0.113.7/tcp/4021 or /dns4/NAME/tcp/4021.",
            )
        found.append(whole)
    return found


def _read(path: Path) -> AddressBook:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return AddressBook()
    try:
        return AddressBook.from_json(data)
    except (msgspec.DecodeError, AddressError, UnicodeDecodeError, RecursionError) as problem:
        aside = path.with_name(DAMAGED)
        path.replace(aside)
        log.warning("address book damaged, moved aside to=%s problem=%s", aside, problem)
        return AddressBook()
