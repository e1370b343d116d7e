"""One module for each page: it asks the functions that commands ask, and answers plain facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from node.api.pages import map_page
from node.api.pages.desk import Desk
from node.api.pages.page import Ask, Page

from . import endpoint, home, leaf, mesh, resources, rights, rounds, routing, tree

View = Callable[[Desk, Ask], Page]

VIEWS: Final[Mapping[str, View]] = {
    "/": home.home,
    "/stop": home.stop,
    "/leaves": tree.tree,
    "/leaves/{leaf}": leaf.leaf,
    "/leaves/{leaf}/retract": leaf.retract,
    "/rounds": rounds.rounds,
    "/rounds/proposal/{proposal}": rounds.proposal,
    "/routing": routing.routing,
    "/map": map_page.page,
    "/mesh": mesh.mesh,
    "/rights": rights.data,
    "/rights/grant": rights.grant,
    "/resources": resources.resources,
    "/endpoint": endpoint.endpoint,
}
