"""The way of a person to the pages: a link that is good once, and a session in its place.

`groove-node dashboard` shows the token and is given a link. Opening the link changes nothing (mail
and chat programs open links to preview them); its button does: the code in it is spent, and the
browser gets a cookie. Sessions are in memory alone, so a restart of the node ends them.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)
from starlette.routing import Route

SESSIONS_MAX = 16  # browsers and profiles of one owner; of more, the one unused for longest goes
SESSION_IDLE_S = 12 * 3600.0
SESSION_S = 7 * 24 * 3600.0
LINKS_MAX = 8
LINK_S = 300.0

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>groove-node</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"></head>
<body><main><h1>groove-node</h1>{body}</main></body></html>
"""
_BUTTON = """<form method="post" action="/entry">
<input type="hidden" name="code" value="{code}">
<p>This link opens the dashboard of the node on this machine, in this browser, once.</p>
<button autofocus>Open the dashboard</button></form>"""
_SPENT = """<p>This link was used already, or is older than five minutes, or the node was started
again since. <code>groove-node dashboard</code> makes another.</p>"""

_LEFT = """<p>This browser is not let in any more. <code>groove-node dashboard</code> prints a
link that lets it in again.</p>"""


@dataclass(slots=True)
class Session:
    """One browser that was let in."""

    form_token: str  # stands in each form of a page: a foreign page cannot know it
    generation: int  # of the token by which it was let in
    begun_s: float
    used_s: float


class Sessions:
    """The browsers that were let in, and the links that still let one in."""

    def __init__(self, now: Callable[[], float]) -> None:
        """now: seconds that never go back, such as `trio.current_time`."""
        self._now = now
        self._sessions: dict[bytes, Session] = {}  # by the digest of the cookie
        self._links: dict[bytes, float] = {}  # by the digest of the code: when it was made

    def link(self) -> str:
        """A new code, good once; of too many the oldest is void."""
        code = secrets.token_urlsafe(32)
        while len(self._links) >= LINKS_MAX:
            self._links.pop(next(iter(self._links)))
        self._links[_digest(code)] = self._now()
        return code

    def spend(self, code: str) -> bool:
        """Whether the code is good; it is not any more."""
        made_s = self._links.pop(_digest(code), None)
        return made_s is not None and self._now() - made_s <= LINK_S

    def open(self, generation: int = 0) -> tuple[str, Session]:
        """A new session and the value of its cookie."""
        while len(self._sessions) >= SESSIONS_MAX:
            oldest = min(self._sessions, key=lambda digest: self._sessions[digest].used_s)
            self._sessions.pop(oldest)
        cookie = secrets.token_urlsafe(32)
        now_s = self._now()
        session = Session(secrets.token_urlsafe(32), generation, now_s, now_s)
        self._sessions[_digest(cookie)] = session
        return cookie, session

    def get(self, cookie: str, generation: int = 0) -> Session | None:
        """The session of this cookie, which is used by that; None if there is none (any more)."""
        digest = _digest(cookie)
        session = self._sessions.get(digest)
        if session is None:
            return None
        now_s = self._now()
        stale = now_s - session.used_s > SESSION_IDLE_S or now_s - session.begun_s > SESSION_S
        if stale or session.generation != generation:
            self._sessions.pop(digest)
            return None
        session.used_s = now_s
        return session

    def close(self, cookie: str) -> None:
        self._sessions.pop(_digest(cookie), None)


def is_form_of(session: Session, given: str) -> bool:
    return hmac.compare_digest(_digest(given), _digest(session.form_token))


def cookie_name(port: int) -> str:
    """Cookies are shared by all ports of a host, so that two nodes need two names."""
    return f"groove_{port}"


def cookie_of(value: str, port: int) -> str:
    """The header that sets it; an empty value ends it."""
    end = "" if value else "; Max-Age=0"
    return f"{cookie_name(port)}={value}; Path=/; HttpOnly; SameSite=Strict{end}"


def routes(sessions: Sessions, generation: Callable[[], int]) -> list[Route]:
    """/entry, /entry/link and /exit; /healthz for those who ask whether somebody answers.

    generation: of the token that holds now.
    """
    from .guard import caller, fields

    async def page(request: Request) -> Response:
        code = html.escape(request.query_params.get("code", "")[:100], quote=True)
        return HTMLResponse(_PAGE.format(body=_BUTTON.format(code=code)))

    async def enter(request: Request) -> Response:
        if not sessions.spend(fields(request).get("code", "")):
            return HTMLResponse(_PAGE.format(body=_SPENT), status_code=403)
        cookie, _ = sessions.open(generation())
        server = request.scope["server"]
        return RedirectResponse(
            "/", status_code=303, headers={"set-cookie": cookie_of(cookie, server[1])}
        )

    async def link(request: Request) -> Response:
        if caller(request).kind != "token":
            told = {"error": {"message": "The dashboard is not to be had over a Unix socket."}}
            return JSONResponse(told, status_code=409)
        host = request.headers["host"]
        return JSONResponse({"url": f"http://{host}/entry?code={sessions.link()}"})

    async def leave(request: Request) -> Response:
        port = request.scope["server"][1]
        if port is not None:
            sessions.close(request.cookies.get(cookie_name(port), ""))
        headers = {"set-cookie": cookie_of("", port)} if port is not None else {}
        return HTMLResponse(_PAGE.format(body=_LEFT), headers=headers)

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    return [
        Route("/healthz", healthz, methods=["GET"], name="healthz"),
        Route("/exit", leave, methods=["POST"], name="exit"),
        Route("/entry", page, methods=["GET"], name="entry"),
        Route("/entry", enter, methods=["POST"], name="enter"),
        Route("/entry/link", link, methods=["POST"], name="entry_link"),
    ]


def _digest(secret: str) -> bytes:
    # Looked up by digest: how long a look-up takes tells nothing of the secrets that are there.
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
