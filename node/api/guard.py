"""Between the server and the routes: lets in what `rules` allow and whom it knows, and counts.

It reads a body whole before a route sees any of it, under a cap and a deadline, so that no route
waits for a client; and it answers for a route that failed. What comes in is hostile until a token,
a session or the owner's socket has said otherwise, and then still only as large as is allowed.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qsl

import trio
from starlette.requests import HTTPConnection

from .config import ApiConfig
from .counts import Counts
from .entry import Session, Sessions, cookie_name, is_form_of
from .refusals import Refusal, body_of
from .rules import FORM, Head, Kind, Rule, has_body, refused, rule_of
from .token import Token

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_S = 15.0  # for a body, and a second more for each BODY_BYTES_PER_S of it that came
BODY_BYTES_PER_S = 256 << 10
BODIES_AT_ONCE = 8  # of the largest size: what all requests together may hold in memory
PARTS_MAX = 20_000  # of a body; a client that is well sends some kilobytes at a time
FIELDS_MAX = 200  # of a form
KEY = "groove.caller"

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# With no-referrer a browser says of a form, even of ours, that its origin is "null".
HEADERS = (
    (b"content-security-policy", CSP.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_NOT_CACHED = (b"cache-control", b"no-store")
_UNKNOWN = Refusal("token", 401, "The token is missing or wrong. It is in api.token in the home "
                   "of the node: send it as `Authorization: Bearer TOKEN`, or as `x-api-key`.",
                   ((b"www-authenticate", b"Bearer"),))  # fmt: skip
_NO_SESSION = Refusal("session", 401, "Run `groove-node dashboard` on this machine, and open the "
                      "link that it prints: it lets this browser in.")  # fmt: skip
_NO_FORM = Refusal("form_token", 403, "The form is of an older visit: load the page again, and "
                   "send it from there.")  # fmt: skip
_BROKEN = Refusal("unexpected", 500, "The node made a mistake. Its log says where.")
_CRUMBS = Refusal("crumbs", 400, "The body comes in too many parts.")
_LATE = Refusal("late", 408, "The body of the request did not come in time.")
_BUSY = Refusal("busy", 503, "Too much is being sent here at once. Try again in a moment.",
                ((b"retry-after", b"1"),))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as far as it is known."""

    kind: Literal["token", "session", "socket", "open"]
    form_token: str = ""  # to stand in each form of a page; empty if none is needed


class _GoneError(Exception):
    """The client went away while its request was read."""


class _RefusedError(Exception):
    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.cause)
        self.refusal = refusal


def caller(request: HTTPConnection | Mapping[str, Any]) -> Caller:
    """Who made this request, of which the guard has let in the head."""
    scope = request.scope if isinstance(request, HTTPConnection) else request
    found = scope.get(KEY)
    return found[0] if found else Caller("open")


def fields(request: HTTPConnection) -> dict[str, str]:
    """The fields of the posted form; of a name that is given twice the last."""
    found = request.scope.get(KEY)
    return dict(found[1]) if found else {}


class Guard:
    """ASGI middleware; one for the endpoint."""

    def __init__(
        self,
        asgi: Asgi,
        *,
        token: Token,
        config: ApiConfig,
        counts: Counts,
        sessions: Sessions | None = None,
    ) -> None:
        self._asgi = asgi
        self._token = token
        self._config = config
        self._counts = counts
        self.sessions = sessions or Sessions(trio.current_time)
        self._held = 0  # bytes of bodies that are in memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._asgi(scope, receive, send)
            return
        if scope["type"] != "http":
            self._counts.refused["websocket"] += 1
            await send({"type": "websocket.close", "code": 1008})
            return
        body = _Body(self, receive)
        try:
            await self._serve(scope, body, send)
        finally:
            body.let_go()  # whatever became of it, and at whichever step

    async def _serve(self, scope: Scope, body: _Body, send: Send) -> None:
        begun_s = trio.current_time()
        head = Head.of(scope)
        answer = _Answer(send, head.method, rule_of(head.path))
        try:
            caller_, given = await self._let_in(head, answer.rule, body)
        except _RefusedError as problem:
            self._counts.refused[problem.refusal.cause] += 1
            await self._refuse(answer, head, problem.refusal)
            self._counts.requests["refused", answer.status] += 1
            return
        except _GoneError:
            self._counts.aborted += 1
            return
        scope[KEY] = (caller_, given)
        try:
            await self._asgi(scope, body.replay, answer.send)
        except Exception as problem:  # the top of a request: one that fails is one that fails
            await self._failed(answer, head, problem)
        finally:
            self._measure(scope, answer, begun_s)

    # ---- who is let in ---------------------------------------------------------------------------

    async def _let_in(
        self, head: Head, rule: Rule, body: _Body
    ) -> tuple[Caller, Mapping[str, str]]:
        """Who asks, and the form that was sent. Reads a body only of those who may send one."""
        if refusal := refused(head, rule):
            raise _RefusedError(refusal)
        who, session = await self._known(head, rule)
        largest = rule.body_bytes_max
        await body.read(head, self._config.body_bytes_max if largest is None else largest)
        given: Mapping[str, str] = {}
        if head.method == "POST" and FORM in rule.types and has_body(head):
            given = body.form()
        posted = session if head.method == "POST" else None
        if posted is not None and not is_form_of(posted, given.get("form_token", "")):
            raise _RefusedError(_NO_FORM)
        return who, given

    async def _known(self, head: Head, rule: Rule) -> tuple[Caller, Session | None]:
        """Who asks. Raises if somebody must be known here and is not."""
        if head.port is None:
            return Caller("socket"), None  # the mode of the socket has let the owner in alone
        for given in _tokens(head):
            if await self._token.is_it(given):
                return Caller("token"), None
        match rule.kind:
            case Kind.OPEN:
                return Caller("open"), None
            case Kind.TOKEN:
                raise _RefusedError(_UNKNOWN)
            case Kind.PAGE:
                for cookie in _cookies(head, cookie_name(head.port)):
                    if session := self.sessions.get(cookie, self._token.generation):
                        return Caller("session", session.form_token), session
                raise _RefusedError(_NO_SESSION)

    def hold(self, size: int) -> None:
        """Account for a part of a body that is kept in memory."""
        if self._held + size > BODIES_AT_ONCE * self._config.body_bytes_max:
            raise _RefusedError(_BUSY)
        self._held += size

    def let_go(self, size: int) -> None:
        self._held -= size

    # ---- what becomes of it ----------------------------------------------------------------------

    async def _refuse(self, answer: _Answer, head: Head, refusal: Refusal) -> None:
        log.debug("request refused cause=%s status=%d", refusal.cause, refusal.status)
        kind, body = body_of(refusal, head.path)
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        status = {"status": refusal.status, "headers": [*headers, *refusal.headers]}
        await answer.send({"type": "http.response.start", **status})
        await answer.send({"type": "http.response.body", "body": body})

    async def _failed(self, answer: _Answer, head: Head, problem: Exception) -> None:
        """Log where, and never what: the words of an error may be the client's."""
        self._counts.failures["unexpected"] += 1
        frames = traceback.extract_tb(problem.__traceback__)[-4:]
        where = " < ".join(f"{x.name}:{x.lineno}" for x in reversed(frames))
        log.error("request failed problem=%s where=%s", type(problem).__name__, where)
        if not answer.status:
            await self._refuse(answer, head, _BROKEN)

    def _measure(self, scope: Scope, answer: _Answer, begun_s: float) -> None:
        name = getattr(scope.get("route"), "name", None) or "unknown"
        self._counts.requests[name, answer.status] += 1  # 0: nobody waited for an answer
        self._counts.took[name].add(trio.current_time() - begun_s)
        if answer.first_s is not None:
            self._counts.first_byte[name].add(answer.first_s - begun_s)


class _Answer:
    """What is sent back, with the headers that every answer has."""

    def __init__(self, send: Send, method: str, rule: Rule) -> None:
        self._send = send
        self._method = method
        self.rule = rule
        self.status = 0
        self.first_s: float | None = None  # when its first byte was sent

    async def send(self, message: Message) -> None:
        match message["type"]:
            case "http.response.start":
                self.status = message["status"]
                message = {**message, "headers": self._headers(message.get("headers", ()))}
            case "http.response.body" if self.first_s is None:
                self.first_s = trio.current_time()
        await self._send(message)

    def _headers(self, given: Any) -> list[tuple[bytes, bytes]]:
        headers = [(bytes(name).lower(), bytes(value)) for name, value in given]
        if self.rule.kind is Kind.TOKEN:  # an upstream's word is no word of this server's
            headers = [
                (name, value)
                for name, value in headers
                if name != b"set-cookie" and not name.startswith(b"access-control-")
            ]
        names = {name for name, _ in headers}
        ours = [header for header in (*HEADERS, _NOT_CACHED) if header[0] not in names]
        return headers + ours


class _Body:
    """The body of a request: read once, under a cap and a deadline, and given to the route."""

    def __init__(self, guard: Guard, receive: Receive) -> None:
        self._guard = guard
        self._receive = receive
        self._body = bytearray()
        self._held = 0
        self._whole = False
        self._given = False

    async def read(self, head: Head, largest: int) -> None:
        declared = head.headers.get(b"content-length", b"0").strip()
        if not declared.isdigit() or len(declared) > 18:
            raise _RefusedError(Refusal("headers", 400, "The length of the body is no number."))
        if int(declared) > largest:
            raise _RefusedError(_too_large(largest))
        begun_s = trio.current_time()
        parts = 0
        with trio.move_on_after(BODY_S) as scope:
            while not self._whole:
                message = await self._receive()
                await trio.lowlevel.checkpoint()  # others' turn: all of it may be here already
                parts += 1
                if parts > PARTS_MAX:
                    raise _RefusedError(_CRUMBS)
                if message["type"] == "http.disconnect":
                    raise _GoneError
                part = message.get("body", b"")
                if len(self._body) + len(part) > largest:
                    raise _RefusedError(_too_large(largest))
                self._guard.hold(len(part))
                self._held += len(part)
                self._body += part
                self._whole = not message.get("more_body", False)
                scope.deadline = begun_s + BODY_S + len(self._body) / BODY_BYTES_PER_S
        if not self._whole:
            raise _RefusedError(_LATE)

    def form(self) -> dict[str, str]:
        try:
            return dict(
                parse_qsl(
                    self._body.decode("utf-8"),
                    keep_blank_values=True,
                    max_num_fields=FIELDS_MAX,
                    errors="strict",
                )
            )
        except ValueError:
            raise _RefusedError(Refusal("malformed", 400, "The form cannot be read.")) from None

    async def replay(self) -> Message:
        """What the route receives: the body in one piece, and then only that the client went."""
        if self._given:
            return await self._receive()
        self._given = True
        return {"type": "http.request", "body": bytes(self._body), "more_body": False}

    def let_go(self) -> None:
        self._guard.let_go(self._held)
        self._held = 0


def _too_large(largest: int) -> Refusal:
    return Refusal("size", 413, f"The body is larger than the {largest:,} bytes that are taken.")


def _tokens(head: Head) -> list[str]:
    scheme, _, bearer = head.headers.get(b"authorization", b"").partition(b" ")
    given = [bearer.strip()] if scheme.lower() == b"bearer" else []
    given.append(head.headers.get(b"x-api-key", b"").strip())
    return [each.decode("latin-1") for each in given if each]


def _cookies(head: Head, name: str) -> list[str]:
    pairs = head.headers.get(b"cookie", b"").decode("latin-1").split(";")
    split = [pair.strip().partition("=") for pair in pairs]
    return [value for key, _, value in split if key == name][:4]
