"""Getting a link to the dashboard from the running node, for whoever may read the home's token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from . import overview
from .errors import OwnerError

if TYPE_CHECKING:
    from .app import App

WITHIN_S = 5.0
ANSWER_BYTES_MAX = 64 << 10


class NoDashboardError(OwnerError):
    """There are no pages to be let in to."""


def new_token(app: App) -> None:
    """Put another token in place of the old, which is void once the node has met the new one."""
    from .api import token

    token.replace(app.home)


def link(app: App) -> str:
    """A link that lets one browser in, once. Raises NoDashboardError."""
    import http.client  # 6 ms that no other command pays

    from .api import token

    url = _url(app)
    secret = token.read_or_make(app.home)
    place = urlsplit(url)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=WITHIN_S)
    headers = {"Authorization": f"Bearer {secret}", "Host": place.netloc}
    try:
        connection.request("POST", "/entry/link", headers=headers)
        answer = connection.getresponse()
        blob = answer.read(ANSWER_BYTES_MAX)
    except (OSError, http.client.HTTPException) as problem:
        raise _none(
            f"the node at {url} does not answer: {problem}",
            "Look with `groove-node doctor`, or start the node again.",
        ) from None
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise _none(
            f"the node at {url} does not take the token of {app.home / token.FILE} "
            f"(status {answer.status})",
            "Wait a second and try again; if it lasts, start the node again: it reads the token "
            "then.",
        )
    made = msgspec.json.decode(blob, type=_Link).url
    if not made.startswith(f"{url}/"):
        raise _none(f"the node at {url} gave a link to elsewhere", "Start the node again.")
    return made


class _Link(msgspec.Struct):
    url: str


def listens(node: Mapping[str, Any], url: str) -> bool:
    """Whether the node's own process listens at a URL of its run file: what is told there gets the
    token, and a stranger may have taken the port of a node that was killed.

    Where a machine does not say who listens, the run file is believed.
    """
    import psutil  # 20 ms

    if url.startswith("unix:"):
        return True  # in a folder that nobody else may enter
    if not node.get("pid"):  # the run file is damaged
        return False
    place = urlsplit(url)
    try:
        found = psutil.Process(node["pid"]).net_connections(kind="tcp")
    except psutil.AccessDenied:
        return True
    except psutil.Error:
        return False
    return any(each.status == psutil.CONN_LISTEN and each.laddr[1] == place.port for each in found)


def _url(app: App) -> str:
    node = overview.running(app)
    if node is None:
        raise _none("no node runs here", "Start one with `groove-node run`, then run this again.")
    api = node.get("api") or {}
    url = str(api.get("url") or "")
    if not url:
        why = f": {api['trouble']}" if api.get("trouble") else ""
        raise _none(
            f"the running node has no endpoint{why}",
            "`listen` under [api] in groove.toml says where one listens; then start it again.",
        )
    if not listens(node, url):
        raise _none(
            f"another program listens at {url}, or none does",
            "Start the node again: it says where its endpoint is.",
        )
    if url.startswith("unix:"):
        raise _none(
            f"the endpoint is a socket file ({url}), which no browser opens",
            'Set `listen = "127.0.0.1:4022"` under [api] in groove.toml, and start the node again.',
        )
    return url


def _none(what: str, next_step: str) -> NoDashboardError:
    return NoDashboardError(what, unchanged="No link was made.", next_step=next_step)
