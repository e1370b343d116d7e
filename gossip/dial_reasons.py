"""Why a dial failed, from the chain of exceptions that libp2p leaves of it."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterator

import trio

from .swarm_key import SwarmKeyError
from .transport_config import DialReason

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of libp2p's own imports; see `libp2p_fence`
    from libp2p.network.exceptions import SwarmException
    from libp2p.protocol_muxer.exceptions import MultiselectClientError, MultiselectError
    from libp2p.security.exceptions import HandshakeFailure
    from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
    from libp2p.transport.exceptions import UpgradeFailure

_CHAIN_MAX = 32
_NO_ROUTE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.ENETDOWN}


def reason_of(error: BaseException) -> DialReason:
    """The most telling of what lies beneath an exception."""
    found = {_reason(each) for each in _beneath(error)}
    for reason in DialReason:  # its order is from cause to symptom
        if reason in found:
            return reason
    return DialReason.OTHER


def _beneath(error: BaseException) -> Iterator[BaseException]:
    waiting, seen = [error], 0
    while waiting and seen < _CHAIN_MAX:
        seen += 1
        each = waiting.pop()
        yield each
        waiting += [cause for cause in (each.__cause__, each.__context__) if cause is not None]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions


def _reason(error: BaseException) -> DialReason:
    match error:
        case SwarmKeyError():
            return DialReason.WRONG_SWARM_KEY
        case PeerIDMismatchesPubkey():
            return DialReason.WRONG_PEER
        case ConnectionRefusedError():
            return DialReason.REFUSED
        case trio.TooSlowError() | TimeoutError():
            return DialReason.NO_ANSWER
        case OSError(errno=number) if number in _NO_ROUTE:
            return DialReason.NO_ROUTE
        case HandshakeFailure() | UpgradeFailure() | MultiselectError() | MultiselectClientError():
            return DialReason.HANDSHAKE
        case SwarmException() if "aximum connections" in str(error):
            return DialReason.FULL
        case _:
            return DialReason.OTHER
