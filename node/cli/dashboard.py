"""`dashboard`: a link that lets one browser in to the pages of the running node."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from node import entering
from node.app import App
from node.terminal import Terminal

from .base import AsJson, command


@command.command
def dashboard(
    *,
    open_: Annotated[
        bool, Parameter(name="--open", negative="", help="Open it in your browser.")
    ] = False,
    new_token: Annotated[
        bool,
        Parameter(
            negative="", help="Draw a new token first: programs and browsers need it from then on."
        ),
    ] = False,
    json: AsJson = False,
) -> None:
    """Print a link to the pages of the running node; it is good once, for five minutes.

    The pages show what the node does with your work, and are for you alone: the link lets one
    browser in, for a week at most or until the node is started again. Programs use the token in
    api.token of the home instead. `groove-node dashboard --open` opens the link at once;
    `groove-node dashboard --new-token` if the token may have been seen by somebody.
    """
    out = Terminal(json)
    app = App.open()
    if new_token:
        entering.new_token(app)
    link = entering.link(app)
    out.done({"url": link}, link)
    if open_:
        import webbrowser  # 10 ms that no other command pays

        if not webbrowser.open(link):
            out.note("no browser was found: open the link yourself")
