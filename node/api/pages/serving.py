"""From a request to a page or an act, and back: the thread is asked, and bytes come out."""

from __future__ import annotations

import logging
import secrets
import sqlite3
import traceback
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import trio
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Send

import node.pictures
from node import night_book, show
from node.app import App
from node.errors import OwnerError

from . import acts, live
from .desk import Desk
from .hub import Hub
from .page import Ask, Frame, Page, rendered
from .views import VIEWS
from .worker import Worker, WorkerBusyError

log = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
MAP_SCRIPT = Path(node.pictures.__file__).parent / "page.js"
EXPORT_PART_BYTES = 1 << 18
SAID_MAX = 64  # messages that wait to be read after a button
FIELDS_MAX = 200  # of a form
FORM_BYTES_MAX = 64 << 10
LOOK_S = 0.1  # for the back end to say how it does
FORM_S = 10.0  # in which a form must have come
View = Callable[[Desk, Ask], Page]


class Pages:
    """The pages of one home."""

    def __init__(self, app: App, hub: Hub) -> None:
        self._app = app
        self._hub = hub
        self._desk = Desk(app, hub)
        self._worker = Worker(self._desk.catch_up)
        self._said: OrderedDict[str, tuple[str, bool]] = OrderedDict()
        self._live = live.Live(self._worker, self._desk)

    def routes(self) -> list[Route | Mount]:
        found: list[Route | Mount] = [
            Route(path, partial(self._page, view), methods=["GET"], name=f"page {path}")
            for path, view in VIEWS.items()
        ]
        return [
            *found,
            Route("/rights/export", self._export, methods=["GET"], name="export"),
            Route("/live", self._listen, methods=["GET"], name="live"),
            Route("/do/{act:path}", self._act, methods=["POST"], name="do"),
            Route("/static/map.js", self._map_script, methods=["GET"], name="static"),
            Mount("/static", StaticFiles(directory=STATIC), name="static"),
        ]

    async def _page(self, view: View, request: Request) -> Response:
        back_end: Mapping[str, Any] = {}
        if request.url.path == "/endpoint":
            with trio.move_on_after(LOOK_S):  # another server may be slow to say how it does
                back_end = await self._hub.look()
        ask = Ask(
            request.url.path,
            dict(request.query_params),
            {name: str(value) for name, value in request.path_params.items()},
            back_end,
        )
        return await self._shown(request, partial(view, self._desk, ask))

    async def _shown(
        self, request: Request, make: Callable[[], Page], said: tuple[str, bool] = ("", False)
    ) -> Response:
        """A page as bytes; what the owner can mend is a page too."""
        told = self._said.get(request.query_params.get("said", ""), said)
        frame = self._frame(request, *told)
        try:
            status, body = await self._worker.do(partial(self._made, make, frame))
        except WorkerBusyError:
            self._hub.counts.failures["pages_busy"] += 1
            return Response("too many pages are asked for at once\n", 503)
        return Response(body, status, media_type="text/html")

    def _made(self, make: Callable[[], Page], frame: Frame) -> tuple[int, bytes]:
        frame = replace(frame, paused=night_book.read_pause(self._app.home) is not None)
        try:
            page = make()
            return page.status, rendered(page, frame)
        except (OwnerError, sqlite3.Error, OSError) as problem:
            found = self._trouble(problem)
            return found.status, rendered(found, frame)
        except Exception as problem:  # a page that fails costs that page, and is counted
            # Not its words, which may quote what was read.
            last = traceback.extract_tb(problem.__traceback__)[-1]
            where, kind = f"{last.filename}:{last.lineno}", type(problem).__name__
            log.error("page failed path=%s problem=%s at=%s", frame.path, kind, where)
            found = self._trouble(problem)
            return found.status, rendered(found, frame)

    def _trouble(self, problem: Exception) -> Page:
        """What is wrong, as a page. The words of what nobody foresaw may quote anything."""
        self._hub.counts.failures[f"page_{type(problem).__name__}"] += 1
        match problem:
            case OwnerError():
                missing = type(problem).__name__ == "UnknownLeafError"
                status = 404 if missing else 503
                facts = {
                    "what": problem.what,
                    "unchanged": problem.unchanged,
                    "next_step": problem.next_step,
                }
            case sqlite3.Error() | OSError():
                status = 503
                facts = {
                    "what": "the home cannot be read now",
                    "unchanged": f"{type(problem).__name__}; nothing was changed.",
                    "next_step": "`groove-node doctor` says what is wrong with it.",
                }
            case _:
                status = 503
                facts = {
                    "what": f"this page failed ({type(problem).__name__})",
                    "unchanged": "Nothing was changed, and the endpoint goes on.",
                    "next_step": "`groove-node logs` has the details.",
                }
        return Page("trouble.html", "Trouble", facts, status=status)

    def _frame(self, request: Request, said: str = "", trouble: bool = False) -> Frame:
        return Frame(
            request.url.path,
            self._app.clock.now_s(),
            self._hub.form_token(request),
            said,
            trouble,
        )

    # Buttons

    async def _act(self, request: Request) -> Response:
        """Carry a button out, and go on to the page that shows what came of it."""
        try:
            values = await _fields(request)
        except ValueError:
            self._hub.counts.refused["form"] += 1
            return Response("this is no form of these pages\n", 400)
        form = dict(values)
        if not self._hub.form_fits(request, form.get("form_token", "")):
            self._hub.counts.refused["form"] += 1
            return Response("this form is not of your session; load the page again\n", 403)
        act = acts.ACTS.get(request.path_params["act"])
        if act is None:
            return Response("there is no such button\n", 404)
        names = {name for name, _ in values}
        forms = {name: tuple(v for n, v in values if n == name) for name in names}
        ask = Ask(request.url.path, form=form, forms=forms)
        try:
            came = await self._worker.do(partial(_acted, act, self._desk, ask))
        except WorkerBusyError:
            self._hub.counts.failures["pages_busy"] += 1
            return Response("too much is asked for at once; nothing was done\n", 503)
        match came:
            case Page():
                return await self._shown(request, lambda: came)
            case acts.Done():
                return self._on_to(came.to, came.said, came.trouble)

    def _on_to(self, path: str, said: str, trouble: bool) -> Response:
        """303, with the message kept here: an address that carries one could be made by anybody."""
        if said:
            name = secrets.token_urlsafe(9)
            self._said[name] = said, trouble
            while len(self._said) > SAID_MAX:
                self._said.popitem(last=False)
            path += ("&" if "?" in path else "?") + urlencode({"said": name})
        return RedirectResponse(path, 303)

    # What is not a page

    async def _listen(self, request: Request) -> Response:
        events = self._live.open()
        if events is None:
            return Response("too many pages listen\n", 503, headers={"Retry-After": "30"})
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return _Stream(events, media_type="text/event-stream", headers=headers)

    async def _map_script(self, request: Request) -> Response:
        return FileResponse(MAP_SCRIPT, media_type="text/javascript")

    async def _export(self, request: Request) -> Response:
        """The corpus as it lies on disk, a file after the other."""
        name = f"groove-{show.day(self._app.now())}.jsonl"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        files = await self._worker.do(partial(_files, self._app.home))
        return _Stream(_parts(files), media_type="application/x-ndjson", headers=headers)


def _files(home: Path) -> list[Path]:
    return sorted((home / "training_data").glob("training_*.jsonl"))


async def _parts(files: list[Path]) -> AsyncGenerator[bytes, None]:
    for path in files:
        async with await trio.open_file(path, "rb") as file:
            while part := await file.read(EXPORT_PART_BYTES):
                yield part


class _Stream(StreamingResponse):
    """Closes its generator also when the client goes in the middle of a write: what it holds, such
    as a place among those who listen, is given back at once."""

    def __init__(self, parts: AsyncGenerator[bytes, None], **how: Any) -> None:
        super().__init__(parts, **how)
        self._parts = parts

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._parts):
            await super().stream_response(send)


async def _fields(request: Request) -> list[tuple[str, str]]:
    """The fields of a form, in their order. Raises ValueError if it is none, or too large."""
    body = b""
    with trio.move_on_after(FORM_S) as limit:
        async for part in request.stream():
            body += part
            if len(body) > FORM_BYTES_MAX:
                raise ValueError("too large")
    if limit.cancelled_caught:
        raise ValueError("too slow")
    return parse_qsl(
        body.decode("utf-8"), keep_blank_values=True, max_num_fields=FIELDS_MAX, errors="strict"
    )


def _acted(act: acts.Act, desk: Desk, ask: Ask) -> acts.Done | Page:
    try:
        return act(desk, ask)
    except OwnerError as problem:
        lines = [problem.what, problem.unchanged, problem.next_step]
        return acts.Done(acts.back(ask), "\n".join(filter(None, lines)), trouble=True)
