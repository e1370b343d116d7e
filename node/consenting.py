"""The owner's word: what is shown before, what is granted and withdrawn, what follows at once."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaves.model import Instant

from .consent import deleted, disclosure
from .consent.deleted import refuse_if_undone
from .consent.disclosure import Shown
from .consent.folders import inside, named, project_folder
from .consent.receipts import missing, read
from .errors import MisuseError, OwnerError
from .show import moment

if TYPE_CHECKING:
    from .app import App
    from .capture import PIIScrubber
    from .consent import Allowed, ConsentRecord

SAMPLES = 3  # of the owner's latest asks, in the preview


def check_grant(
    app: App, scopes: Sequence[str], source: Sequence[str], folder: Sequence[Path]
) -> None:
    """Refuse what cannot be granted before anybody is asked."""
    if not (scopes or source or folder):
        raise MisuseError(
            "nothing was named",
            unchanged="Nothing was changed.",
            next_step="`groove-node consent grant capture` asks for capture; others are train, "
            "publish, fetch.",
        )
    refuse_if_undone(app.home)
    if (source or folder) and "capture" not in scopes and is_new(app, "capture"):
        raise MisuseError(
            "sources and folders are allowed for capture, and capture is not granted",
            unchanged="Nothing was changed.",
            next_step="`groove-node consent grant capture --source NAME --folder DIR` grants both.",
        )
    for each in folder:
        if not project_folder(each).is_dir():
            raise MisuseError(
                f"{each}: no such folder",
                unchanged="Nothing was changed.",
                next_step="Name the folder of a project; what lies inside is allowed with it.",
            )


def grant(
    app: App, scopes: Sequence[str], sources: Sequence[str] = (), folders: Sequence[Path] = ()
) -> dict[str, list[str]]:
    """Allow scopes, sources and folders as one decision; return all that is in force.

    To be called once the owner has seen `disclosure.text`: the receipt says so.
    """
    from .consent import Scope

    app.consent.grant(
        app.user_id,
        [Scope(scope) for scope in scopes],
        sources=sources,
        folders=folders,
        disclosure=disclosure.sha256(disclosure.text(scopes, sources, folders)),
    )
    return in_force(app)


def not_in_force(
    app: App, scopes: Sequence[str], sources: Sequence[str], folders: Sequence[Path]
) -> list[str]:
    """What of these is not allowed anyway: to withdraw it changes nothing."""
    allowed = app.consent.allowed(app.user_id)
    idle = [scope for scope in scopes if scope not in allowed.scopes]
    idle += [source for source in sources if source not in allowed.sources]
    return idle + [
        str(folder)
        for folder in folders
        if not any(inside(each, [named(folder)]) for each in allowed.folders)
    ]


def stored(app: App) -> int:
    """How many records there are; 0 if that cannot be read: it must stop no withdrawal."""
    try:
        return sum(not record.closes for record in app.corpus.records())
    except OwnerError:
        return 0


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
    """How consent stands: in force or why not, what is allowed and since when, how to say yes.

    undone: the last full deletion, if this home is from before it; else None.
    """
    consent, user = app.consent, app.user_id
    history = consent.get_consent_history(user)
    allowed = in_force(app)
    last = deleted.undone(app.home)
    return {
        "standing": consent.standing(user).value,
        "reason": consent.why_off(user),
        **allowed,
        "since": _since(history, allowed),
        "undone": last and {"at": moment(Instant(int(last.at))), "records": last.records},
        "again": "groove-node data --delete" if last else _again(history),
    }


def is_new(app: App, scope: str) -> bool:
    """True if a scope is not in force. Makes no store where there is none yet."""
    return not _has_store(app) or not app.allows(scope)


def _has_store(app: App) -> bool:
    return (app.home / "consent.db").exists()


def preview(
    app: App, scopes: Sequence[str], sources: Sequence[str], folders: Sequence[Path]
) -> tuple[str, list[Shown]] | None:
    """The latest asks that a grant would newly capture, before and after scrubbing.

    None if it captures nothing more. Where it captures no history that is here, the first of the
    pair says so, and the second is an example. Reads the histories of other tools and stores
    nothing: what comes back is for the terminal alone.
    """
    from .capture import PIIScrubber
    from .capture.known import Known
    from .capture.known_sources import gather
    from .capture.sources.formats import formats
    from .capture.sources.latest import latest_asks
    from .consent import FOLDER_SOURCES, NOTHING, Allowed, Scope, named_by

    asked = named_by(map(Scope, scopes), sources, folders)
    before = app.consent.allowed(app.user_id) if _has_store(app) else NOTHING
    after = before | asked
    lists = Allowed(frozenset(), after.sources, after.folders)
    is_new = Scope.CAPTURE not in before.scopes
    if Scope.CAPTURE not in after.scopes or not (is_new or not lists.within(before)):
        return None
    # Not `app.scrubber`: that one remembers what it gathered, and nobody has said yes so far.
    scrubber = PIIScrubber(Known(gather(os.environ, [Path.cwd(), *sorted(after.folders)]), None))
    samples = latest_asks(
        [each for each in formats() if each.name in after.sources],
        SAMPLES,
        lambda source, folders: (
            after.captures(source, *folders) and not before.captures(source, *folders)
        ),
    )
    shown = []
    for each in samples:
        shown.append(_shown(scrubber, each.source, each.folder, each.text))
        if each.answer:
            shown.append(_shown(scrubber, "", None, each.answer))
    if shown:
        return "", shown
    reached = bool(after.folders or after.sources - FOLDER_SOURCES)
    why = disclosure.nothing_previewed(bool(after.sources), reached)
    return why, [_shown(scrubber, "an example", None, disclosure.EXAMPLE)] if is_new else []


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
    """Every decision, oldest first, and where others are lost."""
    lost = missing(app.consent.receipts())
    log: list[dict[str, str]] = []
    for record in app.consent.get_consent_history(app.user_id):
        at = moment(Instant(int(record.timestamp)))
        if record.broken:
            told = lost.get(record.number, record.broken)
            log.append(_entry(at, f"the node: {told}; nothing was in force"))
        by = f"the node: {record.metadata.get('reason', '')}" if record.suspended else "you"
        log.append(
            _entry(
                at,
                by,
                version=record.consent_version,
                scopes=", ".join(sorted(record.scopes)) if record.opted_in else "nothing",
                sources=", ".join(sorted(record.sources)),
                folders=", ".join(sorted(map(str, record.folders))),
            )
        )
    return log


def _entry(
    at: str, by: str, *, version: str = "", scopes: str = "", sources: str = "", folders: str = ""
) -> dict[str, str]:
    return {
        "at": at,
        "version": version,
        "scopes": scopes,
        "sources": sources,
        "folders": folders,
        "by": by,
    }


def receipts(app: App) -> list[dict[str, Any]]:
    """Every receipt as it is stored, oldest first."""
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


def lost(app: App) -> list[str]:
    """Which receipts are not here, by the word of those that came after them."""
    return list(missing(app.consent.receipts()).values())


def verify(app: App) -> list[str]:
    """What is wrong with the receipts; nothing if each proves itself and all are accounted for."""
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
        if record.broken:  # what stands before it was not in force
            break
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
