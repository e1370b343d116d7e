"""`lifecycle`: what can happen to a leaf, and when."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from leaves.lifecycle import Rules
from node import config, home
from node.terminal import Terminal

from .base import AsJson, command


@command.command
def lifecycle(
    *,
    markdown: Annotated[
        bool,
        Parameter(negative="", help="The page docs/lifecycle.md, with the rules as shipped."),
    ] = False,
    json: AsJson = False,
) -> None:
    """The stages of a leaf's life, and what has to be so for each change, by your rules."""
    from node.pictures import life

    out = Terminal(json)
    if markdown:
        page = life.page(Rules())
        out.line(page.rstrip("\n"))
        out.done({"page": page})
        return
    rows = life.rows(config.load(home.home_path()).rules)
    out.table(life.COLUMNS, rows, within=100)
    names = [title.lower() for title in life.COLUMNS]
    out.done({"changes": [dict(zip(names, row, strict=True)) for row in rows]})
