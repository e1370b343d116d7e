"""The owner's word: scopes granted and withdrawn, and what follows from each at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from leaves.model import Instant

from .show import moment

if TYPE_CHECKING:
    from .app import App


def grant(app: App, scopes: Sequence[str]) -> list[str]:
    """Allow scopes; return all that are in force."""
    from .consent import Scope

    for scope in scopes:
        app.consent.grant_scope(app.user_id, Scope(scope))
    return sorted(app.consent.scopes(app.user_id))


def revoke(app: App, scopes: Sequence[str]) -> list[str]:
    """Withdraw scopes, or all if none is named; return those still in force."""
    from .consent import Scope

    if not scopes:
        app.consent.revoke_consent(app.user_id)
    for scope in scopes:
        app.consent.revoke_scope(app.user_id, Scope(scope))
    with app.lock("publish", wait=True):  # what is being published is out when this returns
        pass
    app.deploy_if_routed()  # without `fetch`, peers' leaves serve no more
    return sorted(app.consent.scopes(app.user_id))


def consent_log(app: App) -> list[dict[str, str]]:
    """Every decision, oldest first."""
    return [
        {
            "at": moment(Instant(int(record.timestamp))),
            "version": record.consent_version,
            "scopes": ", ".join(sorted(record.scopes)) if record.opted_in else "nothing",
        }
        for record in app.consent.get_consent_history(app.user_id)
    ]
