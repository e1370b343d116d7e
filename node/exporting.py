"""A copy of the owner's data, whole or filtered, as `groove-node data --export` asks for it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaves.model import Leaf, Vector
from leaves.ports import Report, silent

from .errors import MisuseError, OwnerError

if TYPE_CHECKING:
    from .app import App
    from .capture import TrainingRecord

_UNITS_S = {"m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}
_DURATION = re.compile(r"(\d{1,6})([mhdw])")


@dataclass(frozen=True, slots=True)
class Filters:
    """Which part of the data is meant; None stands for all of it."""

    user_id: str | None = None
    domain: str | None = None
    after: float | None = None  # exclusive, Unix seconds
    leaf: str | None = None  # name or id of an own leaf: its sessions


class NothingFitsError(OwnerError):
    """The filters fit nothing that is stored."""


def parse_after(text: str, now_s: float) -> float:
    """Return the Unix time that a date ("2026-04-26", "2026-04-26T12:00") or a duration names.

    A duration ("90m", "12h", "7d", "2w") reaches back from now. Dates are in UTC, and a date alone
    includes its whole day. Raises MisuseError.
    """
    if duration := _DURATION.fullmatch(text.strip()):
        return now_s - int(duration[1]) * _UNITS_S[duration[2]]
    try:
        date = datetime.fromisoformat(text.strip())
    except ValueError:
        raise MisuseError(
            f"{text!r} is neither a date such as 2026-04-26 nor a duration such as 7d or 12h",
            unchanged="Nothing was done.",
        ) from None
    moment = date if date.tzinfo else date.replace(tzinfo=UTC)
    return moment.timestamp() - 1e-3  # the limit is exclusive, and midnight belongs to its day


def export(
    app: App,
    path: Path,
    filters: Filters = Filters(),
    *,
    form: str | None = None,
    vectors: bool = False,
    report: Report = silent,
) -> dict[str, Any]:
    """Write the records, or the training set, that the filters leave; what was written.

    form: one of `capture.export.Form`; None: by the name of the file.
    """
    from .capture.export import Form, Training, Wanted, form_of
    from .capture.export import export as write

    chosen = form_of(path, form)
    wanted = Wanted(filters.user_id, filters.domain, filters.after, _sessions_of(app, filters.leaf))
    if wanted != Wanted():
        check_something_fits(app, wanted.record, filters)
    joined: Mapping[str, Vector] | None = None
    if vectors or chosen is Form.PREFERENCE:  # near asks are found by their vectors
        joined = app.embeddings.vectors()
    done = write(
        app.corpus,
        path,
        chosen,
        wanted,
        vectors=joined,
        training=Training(app.config.training.restricted_outputs, flagged(app)),
        report=report,
    )
    return {
        "exported": done.count,
        "closing": done.closing,
        "file": str(path),
        "format": chosen.value,
        "left_out": done.left_out,
        "vectors": len(joined) if vectors and joined is not None else None,
    }


def check_something_fits(
    app: App,
    fits: Callable[[TrainingRecord], bool],
    filters: Filters,
    sessions: Collection[str] = (),
) -> None:
    """Raise NothingFitsError that says which of the filters is mistaken; as told by one pass.

    sessions: each of them must be there.
    """
    users: set[str] = set()
    domains: set[str] = set()
    missing = set(sessions)
    something = False
    for record in app.corpus.records():
        something = something or fits(record)
        missing.discard(record.session_id)
        if something and not missing:
            return
        users.add(record.user_id)
        domains.add(record.domain)
    if filters.user_id is not None and filters.user_id not in users:
        # The others are not listed: an id is for whoever knows it.
        raise _nothing_fits(f"no such user: {filters.user_id!r}", "Leave --user out for all.")
    if filters.domain is not None and filters.domain not in domains:
        raise _nothing_fits(
            f"no such domain: {filters.domain!r}", _there_are(filters.domain, sorted(domains))
        )
    if missing:
        named = ", ".join(sorted(missing)[:5])
        raise _nothing_fits(f"no such session: {named}", "`data --export` writes the ids of all.")
    raise _nothing_fits(
        "nothing that is stored fits all of these filters",
        "`groove-node data --stats` says what there is.",
    )


def _nothing_fits(what: str, next_step: str) -> NothingFitsError:
    return NothingFitsError(what, unchanged="Nothing was written or deleted.", next_step=next_step)


def _there_are(asked: str, names: Sequence[str]) -> str:
    if not names:
        return "Nothing is captured yet."
    near = difflib.get_close_matches(asked, names, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}There are {', '.join(names)}."


def _sessions_of(app: App, leaf: str | None) -> Collection[str] | None:
    if leaf is None:
        return None
    from . import overview

    found: Leaf = overview.own_leaf(app, leaf)
    return frozenset(app.forests.members(found.id))


def flagged(app: App) -> Collection[str]:
    """Sessions that the second scan has left out of training."""
    from . import screening

    return screening.read(app.home).hits.keys()
