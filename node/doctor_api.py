"""What `doctor` finds of the endpoint: its port, its token, and what answers behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import trio

from . import overview
from .api import listening, token
from .api.config import ApiConfig
from .api.serving import configured
from .errors import OwnerError
from .finding import Finding
from .show import size

if TYPE_CHECKING:
    from .api.ports import Backend
    from .app import App

LOOK_S = 5.0  # for a server to say how it is


def endpoint(app: App) -> Iterator[Finding]:
    """Port, token and back end. Nothing is started."""
    config = configured(app)
    if not config.listen:
        yield Finding("endpoint", "ok", "none, as `listen` under [api] says")
        return
    node = overview.running(app)
    stands = node.get("api") or {} if node else None
    yield _place(app, config, stands)
    yield _token(app)
    told = (stands or {}).get("backend") or {}
    yield _backend(config, told if "ready" in told else _looked_at(app, config))


def _place(app: App, config: ApiConfig, stands: Mapping[str, Any] | None) -> Finding:
    """Where it listens, or whether it could. stands: of the running node, None if none runs."""
    other = "choose another `listen` under [api], such as 127.0.0.1:4122"
    if stands:
        if url := stands.get("url"):
            return Finding("endpoint", "ok", f"answers and dashboard at {url}")
        if trouble := stands.get("trouble"):
            return Finding("endpoint", "note", f"the node runs without: {trouble}", other)
        return Finding("endpoint", "note", "not open yet", "look again in a minute, or at the log")
    if stands is not None:
        return Finding("endpoint", "note", "the node runs without", "start it again")
    try:
        place = listening.parse(config.listen, app.home)
        match place:
            case listening.Tcp():
                listening.bind(place).close()
            case listening.Unix(path):
                text = f"unix:{path}, once a node runs"
                return Finding("endpoint", "ok", text)
    except listening.ListenBusyError as problem:
        return Finding("endpoint", "note", problem.what, other)
    except OwnerError as problem:
        return Finding("endpoint", "bad", problem.what, problem.next_step)
    return Finding("endpoint", "ok", f"{config.listen} is free")


def _token(app: App) -> Finding:
    """That nobody else can read it. Its text is shown nowhere."""
    path = app.home / token.FILE
    try:
        token.read(app.home)
    except FileNotFoundError:
        return Finding("token", "ok", "none yet: the first start of the node draws it")
    except OwnerError as problem:
        return Finding("token", "bad", problem.what, problem.next_step)
    return Finding("token", "ok", f"{path}, private")


def _backend(config: ApiConfig, told: Mapping[str, Any]) -> Finding:
    name = config.backend + (f" at {config.backend_url}" if config.backend_url else "")
    if not told.get("ready"):
        why = told.get("why") or "it does not say why"
        return Finding("back end", "bad", f"{name}: {why}", _mend(config))
    text = f"{name}, ready"
    if told.get("running") and (memory := told.get("memory_bytes")):
        text += f", {told.get('adapters', 0)} adapters in {size(int(memory))}"
    elif told.get("running") is False:
        text += ": the chassis is loaded by the first request"
    return Finding("back end", "ok", text)


def probed(app: App) -> Finding:
    """Whether the back end really answers with the adapter that it is asked for, tried."""
    from .api.backends import probe

    found = probe.examine(app, configured(app))
    if found.sound:
        return Finding("probe", "ok", found.text, found.advice)
    unknown = found.verdict is probe.Verdict.NOT_PROBED
    return Finding("probe", "note" if unknown else "bad", found.text, found.advice)


def _mend(config: ApiConfig) -> str:
    if config.backend == "builtin":
        return "groove-node init converts the chassis; the log says more"
    return "start the server, or see to `backend_url` under [api]"


def _looked_at(app: App, config: ApiConfig) -> Mapping[str, Any]:
    """How the back end does, asked from here. Starts no child and loads no model."""
    from .api.backends import open_backend

    try:
        return trio.run(_asked, open_backend(app, config))
    except (OwnerError, OSError, ExceptionGroup) as problem:
        return {"ready": False, "why": getattr(problem, "what", type(problem).__name__)}


async def _asked(backend: Backend) -> Mapping[str, Any]:
    told: Mapping[str, Any] = {"why": f"it has not answered in {LOOK_S:.0f} s"}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(backend.run)
        await trio.sleep(0)
        with trio.move_on_after(LOOK_S):
            told = await backend.look()
        nursery.cancel_scope.cancel()
    return told
