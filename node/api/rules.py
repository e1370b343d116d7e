"""Who may ask for what, by what stands in the head of a request: tables first, then the checks.

A browser that shows a foreign page can send requests here, with the owner's cookie and with a host
name of the page's choosing that leads to 127.0.0.1. So: the host is one of three names, the origin
is absent or the same, the browser itself says that the page is ours (Sec-Fetch-Site), a cookie is
good for pages only, and what changes anything is a POST that a foreign page cannot make unasked.
No answer carries a header of CORS.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from .refusals import Refusal

HEADERS_MAX = 100
HEADER_BYTES_MAX = 32 << 10
PATH_BYTES_MAX = 2048
QUERY_BYTES_MAX = 8192
PAGE_BYTES_MAX = 64 << 10  # of a posted form

FORM = "application/x-www-form-urlencoded"
# None of these can be sent by a foreign page without asking first, which is never granted.
DATA = frozenset(("application/json", "application/x-ndjson", "application/x-protobuf"))
FILES = DATA | {"multipart/form-data"}  # passed through to an upstream: sound, images, files


class Kind(Enum):
    OPEN = "open"  # nothing of the owner's is to be had there
    TOKEN = "token"  # programs: the token alone, never a cookie
    PAGE = "page"  # people: a session, or the token


READ = frozenset(("GET", "HEAD"))
READ_POST = READ | {"POST"}


@dataclass(frozen=True, slots=True)
class Rule:
    """Of one path and all below it."""

    path: str
    kind: Kind
    methods: frozenset[str]
    types: frozenset[str] = frozenset()  # of what is posted
    body_bytes_max: int | None = 0  # None: what [api] says


# The first that fits holds; what fits none is a page.
RULES = (
    Rule("/healthz", Kind.OPEN, READ),
    Rule("/static", Kind.OPEN, READ),
    Rule("/entry/link", Kind.TOKEN, frozenset(("POST",)), DATA, 1024),
    Rule("/entry", Kind.OPEN, READ_POST, frozenset((FORM,)), 4096),
    Rule("/metrics", Kind.TOKEN, READ),
    Rule("/v1/audio", Kind.TOKEN, READ_POST, FILES, None),
    Rule("/v1/images", Kind.TOKEN, READ_POST, FILES, None),
    Rule("/v1/files", Kind.TOKEN, READ_POST | {"DELETE"}, FILES, None),
    Rule("/v1", Kind.TOKEN, READ_POST | {"DELETE"}, DATA, None),
    Rule("/api", Kind.TOKEN, READ_POST, DATA, None),
    Rule("/ingest", Kind.TOKEN, frozenset(("POST",)), DATA, None),
    Rule("/exit", Kind.PAGE, frozenset(("POST",)), frozenset((FORM,)), PAGE_BYTES_MAX),
    Rule("/do", Kind.PAGE, frozenset(("POST",)), frozenset((FORM,)), PAGE_BYTES_MAX),
)
PAGES = Rule("/", Kind.PAGE, READ_POST, frozenset((FORM,)), PAGE_BYTES_MAX)

# Two of these, and one part of the machine may go by the first and another by the second.
_ONCE = frozenset(
    (
        *(b"authorization", b"content-length", b"content-type", b"cookie", b"host", b"origin"),
        *(b"sec-fetch-site", b"transfer-encoding", b"x-api-key"),
    )
)
_FETCH_SITES = frozenset((b"none", b"same-origin"))
_HOST = re.compile(rb"(?:127\.0\.0\.1|localhost|\[::1\])(?::([1-9][0-9]{0,4}))?")


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a request, as far as it decides anything."""

    method: str
    path: str  # decoded, as the routes see it
    raw: bytes  # as it was sent, without the query
    query: bytes
    headers: Mapping[bytes, bytes]  # the last of each name, which is lower case
    port: int | None  # that was connected to; None on a Unix socket
    count: Counter[bytes]
    size: int  # bytes of all headers

    @classmethod
    def of(cls, scope: Mapping[str, Any]) -> Head:
        given: Iterable[tuple[bytes, bytes]] = [(n.lower(), v) for n, v in scope["headers"]]
        server = scope.get("server") or ("", None)
        return cls(
            method=scope["method"],
            path=scope["path"],
            raw=scope.get("raw_path") or scope["path"].encode(),
            query=scope.get("query_string", b""),
            headers=dict(given),
            port=server[1],
            count=Counter(name for name, _ in given),
            size=sum(len(name) + len(value) + 4 for name, value in given),
        )


def rule_of(path: str) -> Rule:
    for rule in RULES:
        if path == rule.path or path.startswith(f"{rule.path}/"):
            return rule
    return PAGES


def refused(head: Head, rule: Rule) -> Refusal | None:
    """What is wrong with the head, but for who asks; None if nothing is."""
    return (
        _ill_formed(head)
        or (_foreign(head) if head.port is not None else _foreign_to_socket(head))
        or _unfit(head, rule)
    )


def _ill_formed(head: Head) -> Refusal | None:
    if sum(head.count.values()) > HEADERS_MAX or head.size > HEADER_BYTES_MAX:
        return Refusal("headers", 431, "The request has too many headers, or too long ones.")
    if len(head.raw) > PATH_BYTES_MAX or len(head.query) > QUERY_BYTES_MAX:
        return Refusal("path", 414, "The address is too long.")
    if not head.raw.startswith(b"/") or _winding(head.path):
        return Refusal("path", 400, "The path is none: it begins with / and is walked one way.")
    if any(head.count[name] > 1 for name in _ONCE):
        return Refusal("headers", 400, "A header is given twice that must be given once.")
    if head.count[b"transfer-encoding"] and head.count[b"content-length"]:
        return Refusal("headers", 400, "The length of the body is given in two ways.")
    return None


def _winding(path: str) -> bool:
    """Whether two readers of a path may come to different places."""
    parts = path.split("/")[1:]
    odd = any(ord(each) < 32 or each in "\\\x7f" for each in path)
    return odd or "." in parts or ".." in parts or "" in parts[:-1]


def _foreign(head: Head) -> Refusal | None:
    """A page of another origin, or a name of another's that leads here (DNS rebinding)."""
    host = head.headers.get(b"host", b"")
    named = _HOST.fullmatch(host)
    if not named or int(named[1] or 80) != head.port:
        return Refusal(
            "host", 421, f"This server is 127.0.0.1:{head.port}, and answers to no other name."
        )
    origin = head.headers.get(b"origin")
    if origin is not None and origin != b"http://" + host:
        return Refusal("origin", 403, "Pages of other origins may not ask here.")
    site = head.headers.get(b"sec-fetch-site")
    if site is not None and site not in _FETCH_SITES:
        return Refusal("fetch_site", 403, "Pages of other sites may not ask here.")
    return None


def _foreign_to_socket(head: Head) -> Refusal | None:
    """No browser comes by a Unix socket; what looks like one is something that passes it on."""
    if b"origin" in head.headers:
        return Refusal("origin", 403, "Pages may not ask here: the socket is for programs.")
    if head.headers.get(b"sec-fetch-site", b"none") != b"none":
        return Refusal("fetch_site", 403, "Pages may not ask here: the socket is for programs.")
    return None


def _unfit(head: Head, rule: Rule) -> Refusal | None:
    """The method, or what is sent with it, is not for this path."""
    if b"websocket" in head.headers.get(b"upgrade", b"").lower():
        return Refusal("websocket", 400, "No websocket is spoken here.")
    if head.method not in rule.methods:
        allow = ", ".join(sorted(rule.methods)).encode()
        return Refusal("method", 405, "This is not done with that method.", ((b"allow", allow),))
    if not has_body(head):
        return None
    if head.method != "POST":
        return Refusal("body", 400, "Nothing is to be sent along with that method.")
    kind = head.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind.decode("latin-1") not in rule.types:
        wanted = ", ".join(sorted(rule.types)) or "nothing"
        return Refusal("content_type", 415, f"What is posted here is of the type {wanted}.")
    return None


def has_body(head: Head) -> bool:
    """Whether something is sent along: a length of zero is nothing."""
    return b"transfer-encoding" in head.headers or (
        head.headers.get(b"content-length", b"0").strip() != b"0"
    )
