"""Sources into the corpus, as `groove-node import` asks for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaves.ports import Report

from .errors import MisuseError

if TYPE_CHECKING:
    from .app import App
    from .capture.sources.importing import SourceSession


def import_sessions(
    app: App,
    source: str,
    what: Sequence[str],
    share: str,
    part: str,
    dry_run: bool,
    report: Report,
) -> dict[str, Any]:
    """Bring the sessions of packages or files into the corpus; counts of what became of them.

    share, part: which of them, as "0.0:0.5" of the groups and of the sessions left, by hash.
    """
    from .capture import DomainTagger, PIIScrubber, TrainingDataIntake
    from .capture.sources.importing import Selection, parse_share
    from .capture.sources.importing import import_sessions as bring
    from .capture.sources.jsonl import JsonlSource
    from .capture.sources.pydoc import PydocSource

    try:
        selection = Selection(parse_share(share), parse_share(part))
    except ValueError as problem:
        raise MisuseError(f"{problem}; nothing was imported") from None
    intake = TrainingDataIntake(
        app.consent, app.corpus, PIIScrubber(), DomainTagger(), clock=app.clock
    )
    sources: list[Iterable[SourceSession]] = (
        [PydocSource(what)] if source == "pydoc" else [JsonlSource(Path(path)) for path in what]
    )
    totals: dict[str, Any] = {"added": 0, "skipped_known": 0, "refused": 0, "scrubbed": 0}
    dropped: Counter[str] = Counter()
    malformed = 0
    for each in sources:
        result = bring(
            each, intake, app.user_id, source, select=selection, report=report, dry_run=dry_run
        )
        for name in totals:
            totals[name] += getattr(result, name)
        dropped.update(result.dropped)
        malformed += getattr(each, "malformed", 0)
    return {**totals, "dropped": dropped.total(), "malformed": malformed}
