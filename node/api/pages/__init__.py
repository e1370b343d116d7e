"""The dashboard: what the node is, does, decided and may do, for its owner's eyes alone.

    hub, worker what pages need of the endpoint; the one thread in which they read and act
    desk, page  what was read lately; how a view's facts become a page
    views       one module for each page: facts in plain data
    acts        the buttons: each does what a command does
    live, map   what changed, told as it happens; the map, made in a child
    templates, static
                what is shown; the only script is live.js and the map's

A page says what the commands say, for it asks the same functions. It needs no script to be read,
and none of it comes from another host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.routing import Mount, Route

    from node.app import App

    from .hub import Hub


def routes(app: App, hub: Hub | None = None) -> list[Route | Mount]:
    """Everything under `/` that is for a browser. Opens nothing before the first page is asked."""
    from .hub import Hub
    from .serving import Pages

    return Pages(app, hub or Hub()).routes()
