"""The owner's word: what is shown before, what is granted and withdrawn, what follows at once."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaves.model import Instant

from . import disclosure
from .disclosure import Shown
from .show import moment

if TYPE_CHECKING:
    from .app import App
    from .capture import PIIScrubber
    from .consent import Allowed, ConsentRecord

SAMPLES = 3  # of the owner's latest asks, in the preview


def grant(
    app: App, scopes: Sequence[str], sources: Sequence[str] = (), folders: Sequence[Path] = ()
) -> dict[str, list[str]]:
    """Allow scopes, sources and folders as one decision; return all that is in force.

    To be called once the owner has seen `disclosure.TEXT`: the receipt says so.
    """
    from .consent import Scope

    app.consent.grant(
        app.user_id,
        [Scope(scope) for scope in scopes],
        sources=sources,
        folders=folders,
        disclosure=disclosure.SHA256,
    )
    return in_force(app)


def revoke(
    app: App,
    scopes: Sequence[str],
    sources: Sequence[str] = (),
    folders: Sequence[Path] = (),
) -> dict[str, list[str]]:
    """Withdraw some of it, or all if nothing is named; return what is still in force."""
    from .consent import Scope

    if not (scopes or sources or folders):
        app.consent.revoke_consent(app.user_id)
    else:
        named = [Scope(scope) for scope in scopes]
        app.consent.withdraw(app.user_id, named, sources=sources, folders=folders)
    with app.lock("publish", wait=True):  # what is being published is out when this returns
        pass
    app.deploy_if_routed()  # without `fetch`, peers' leaves serve no more
    return in_force(app)


def in_force(app: App) -> dict[str, list[str]]:
    """All that is allowed now."""
    return _listed(app.consent.allowed(app.user_id))


def standing(app: App) -> dict[str, Any]:
    """How consent stands: in force or why not, what is allowed and since when, how to say yes."""
    consent, user = app.consent, app.user_id
    history = consent.get_consent_history(user)
    allowed = in_force(app)
    return {
        "standing": consent.standing(user).value,
        "reason": consent.why_off(user),
        **allowed,
        "since": _since(history, allowed),
        "again": _again(history),
    }


def is_new(app: App, scope: str) -> bool:
    """True if a scope is not in force. Makes no store where there is none yet."""
    return not (app.home / "consent.db").exists() or not app.allows(scope)


def preview(app: App, sources: Sequence[str]) -> tuple[bool, list[Shown]]:
    """The owner's latest asks before and after scrubbing, and whether they are the owner's own.

    sources: only of these; empty means any. Reads the histories of other tools and stores nothing:
    what comes back is for the terminal alone. Without a history, an example.
    """
    from .capture import PIIScrubber
    from .capture.known import Known
    from .capture.known_sources import gather
    from .capture.sources.latest import latest_asks
    from .capture.sources.source import formats

    # Not `app.scrubber`: that one remembers what it gathered, and nobody has said yes so far.
    scrubber = PIIScrubber(Known(gather(os.environ, [Path.cwd()]), None))
    chosen = [each for each in formats() if not sources or each.name in sources]
    samples = latest_asks(chosen, SAMPLES)
    shown = [_shown(scrubber, each.source, each.folder, each.text) for each in samples]
    return bool(shown), shown or [_shown(scrubber, "an example", None, disclosure.EXAMPLE)]


def _shown(scrubber: PIIScrubber, source: str, folder: str | None, text: str) -> Shown:
    """Cut only what is scrubbed already: a cut through a secret would hide it from the rules."""
    from .capture.scrubber import ScrubError

    try:
        after, found = scrubber.scrub(text), scrubber.find(text)
    except ScrubError:
        return Shown(source, folder, disclosure.cut(text, 0), None, ())
    first = min((each.start for each in found), default=0)
    start = max(0, first - disclosure.LEAD_CHARS)
    start = start if len(text) > disclosure.SHOWN_CHARS and after[:start] == text[:start] else 0
    reasons = dict.fromkeys(f"{each.label} ({each.reason})" for each in found)
    before, after = disclosure.cut(text, start), disclosure.cut(after, start)
    return Shown(source, folder, before, after, tuple(reasons))


def consent_log(app: App) -> list[dict[str, str]]:
    """Every decision, oldest first."""
    return [
        {
            "at": moment(Instant(int(record.timestamp))),
            "version": record.consent_version,
            "scopes": ", ".join(sorted(record.scopes)) if record.opted_in else "nothing",
            "sources": ", ".join(sorted(record.sources)),
            "folders": ", ".join(sorted(map(str, record.folders))),
            "by": f"the node: {record.metadata.get('reason', '')}" if record.suspended else "you",
        }
        for record in app.consent.get_consent_history(app.user_id)
    ]


def receipts(app: App) -> list[dict[str, Any]]:
    """Every receipt as it is stored, oldest first."""
    from .receipts import read

    listed = []
    for receipt in app.consent.receipts():
        said = read(receipt.body, receipt.hash)
        listed.append(
            {
                "hash": receipt.hash,
                "number": said.number if said else None,  # None: it was altered
                "at": moment(Instant(int(said.at))) if said else "-",
                "scopes": list(said.scopes) if said else [],
                "sources": list(said.sources) if said else [],
                "folders": list(said.folders) if said else [],
                "disclosure": said.disclosure if said else "",
                "signed": bool(receipt.signature),
                "signed_late": bool(said and receipt.signed_at and receipt.signed_at > said.at),
                "body": receipt.body,
                "signature": receipt.signature.hex(),
                "key_doc": receipt.key_doc.hex(),
            }
        )
    return listed


def verify(app: App) -> list[str]:
    """What is wrong with the receipts; nothing if each proves itself and none is missing."""
    return app.consent.problems(app.origin)


def _listed(allowed: Allowed) -> dict[str, list[str]]:
    return {
        "scopes": sorted(allowed.scopes),
        "sources": sorted(allowed.sources),
        "folders": sorted(map(str, allowed.folders)),
    }


def _since(history: Sequence[ConsentRecord], allowed: dict[str, list[str]]) -> dict[str, str]:
    """Since when each thing that is in force has been so without a break."""
    return {
        name: moment(Instant(int(_start(history, name))))
        for name in {name for names in allowed.values() for name in names}
    }


def _start(history: Sequence[ConsentRecord], name: str) -> float:
    """When the last unbroken run of decisions began that all allow something."""
    start_s = history[-1].timestamp
    for record in reversed(history):
        if not any(name in names for names in _listed(record.allowed).values()):
            break
        start_s = record.timestamp
    return start_s


def _again(history: Iterable[ConsentRecord]) -> str:
    """The command that grants again what the owner last agreed to."""
    words = ["groove-node", "consent", "grant"]
    last = next((each for each in reversed(list(history)) if each.opted_in), None)
    words += sorted(last.scopes) if last and last.scopes else ["capture"]
    for source in sorted(last.sources) if last else ():
        words += ["--source", source]
    for folder in sorted(last.folders) if last else ():
        words += ["--folder", str(folder)]
    return shlex.join(words)
