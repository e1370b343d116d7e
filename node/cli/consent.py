"""What the node may do: `groove-node consent …`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from node import consenting, show
from node.app import App
from node.terminal import Terminal

from .base import AsJson, Yes, consent

ScopeName = Literal["capture", "train", "publish", "fetch"]


@consent.command(name="show")
def consent_show(*, json: AsJson = False) -> None:
    """The scopes in force."""
    out = Terminal(json)
    app = App.open()
    scopes = app.consent.scopes(app.user_id)
    out.table(("SCOPE", "", "MEANING"), show.scope_rows(scopes))
    out.done({"scopes": sorted(scopes)})


@consent.command(name="grant")
def consent_grant(
    scopes: Sequence[ScopeName], /, *, yes: Yes = False, json: AsJson = False
) -> None:
    """Allow one or more of capture, train, publish, fetch, after showing what each means."""
    out = Terminal(json)
    app = App.open()
    if not yes:
        out.line(show.DISCLOSURE)
        if not out.ask(f"Allow {', '.join(scopes)}?"):
            out.done({"granted": False}, "Nothing was changed.")
            return
    allowed = consenting.grant(app, scopes)
    out.done({"scopes": allowed}, f"allowed: {', '.join(allowed)}")


@consent.command(name="revoke")
def consent_revoke(scopes: Sequence[ScopeName] = (), /, *, json: AsJson = False) -> None:
    """Withdraw scopes, or all of them. Nothing is deleted: that is `data --delete`."""
    out = Terminal(json)
    left = consenting.revoke(App.open(), scopes)
    out.done({"scopes": left}, f"still allowed: {', '.join(left) or 'nothing'}")


@consent.command(name="log")
def consent_log(*, json: AsJson = False) -> None:
    """Every decision, with its date and the version of the terms."""
    out = Terminal(json)
    records = consenting.consent_log(App.open())
    out.table(("WHEN", "TERMS", "ALLOWED"), [(r["at"], r["version"], r["scopes"]) for r in records])
    out.done({"records": records})
