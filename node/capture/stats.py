"""What the corpus holds, in figures for the owner: one pass, and no text is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from leaves.ports import Progress, Report, silent
from node.clock import Clock, SystemClock
from node.consent import ConsentManager

from .corpus import TrainingCorpus
from .quality import tier
from .record import ContentType, TrainingRecord, day_of
from .sessions import IDLE_S, LIVE, first_turns, quality_of
from .tagger import DOMAINS
from .terms import COMPLETION_CHARS_MIN, Terms, why_left_out

_REPORT_BYTES = 2**22

# What callers say of a workflow, and the tag that agrees with it.
_MEANT: Final = {
    **{domain: domain for domain in DOMAINS},
    "code_editor": "code",
    "coding": "code",
    "debugging": "code",
    "programming": "code",
    "journalist": "journalism",
    "journalist_mode": "journalism",
    "news": "journalism",
    "writing": "journalism",
    "researcher": "research",
    "research_mode": "research",
    "plan": "planning",
    "planner": "planning",
    "project_planning": "planning",
    "chat": "general",
    "other": "general",
}


def meant(workflow_type: object) -> str | None:
    """The domain that a caller's workflow_type names; None if it names none that is known."""
    if not isinstance(workflow_type, str):
        return None
    return _MEANT.get(workflow_type.strip().lower().replace("-", "_").replace(" ", "_"))


@dataclass(slots=True)
class Agreement:
    """How often the tag of an ask or answer was the domain that the caller had named."""

    agreed: int = 0
    compared: int = 0
    unknown: int = 0  # workflow types that name no domain

    @property
    def percentage(self) -> float | None:
        return round(100 * self.agreed / self.compared, 1) if self.compared else None

    def take(self, record: TrainingRecord) -> None:
        said = record.metadata.get("workflow_type")
        if said is None or record.closes:
            return
        domain = meant(said)
        if domain is None:
            self.unknown += 1
            return
        self.compared += 1
        self.agreed += domain == record.domain


@dataclass(slots=True)
class Figures:
    """What one pass found."""

    records: int = 0
    domains: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    days: Counter[str] = field(default_factory=Counter)
    tagger: Agreement = field(default_factory=Agreement)
    sessions: int = 0
    tiers: Counter[str] = field(default_factory=Counter)  # "" for unknown
    left_out: Counter[str] = field(default_factory=Counter)  # sessions, by reason
    trainable: int = 0  # sessions
    left_out_records: int = 0
    damaged: int = 0


class CorpusStats:
    """Counts records; the closing records of sessions are not counted. Each call reads once."""

    def __init__(
        self,
        corpus: TrainingCorpus,
        consent_manager: ConsentManager,
        *,
        clock: Clock | None = None,
        restricted_outputs: bool = False,
        flagged: Collection[str] = frozenset(),
    ) -> None:
        """restricted_outputs, flagged: as for `terms.why_left_out`."""
        self._corpus = corpus
        self._consent = consent_manager
        self._clock = clock or SystemClock()
        self._restricted_outputs = restricted_outputs
        self._flagged = flagged

    def summary(self) -> dict[str, Any]:
        """Return {"total_records", "storage_size_mb", "opted_in_users", "domains"}."""
        return self._summary(self.figures())

    def daily_growth(self, days: int = 7) -> list[dict[str, Any]]:
        """Return {"date", "records"} of the last `days` UTC days, today last."""
        return self._growth(self.figures(), days)

    def domain_breakdown(self) -> dict[str, Any]:
        """Return {"count", "percentage"} by domain, the largest first."""
        return _shares(self.figures())

    def print_report(self) -> None:
        """Print the figures."""
        figures = self.figures()
        summary = self._summary(figures)
        print(f"records        {summary['total_records']:,}")
        print(f"storage        {summary['storage_size_mb']:.2f} MB")
        print(f"opted-in users {summary['opted_in_users']}")
        for domain, share in _shares(figures).items():
            print(f"  {domain:<12} {share['count']:>8,}  {share['percentage']:5.1f} %")
        for day in self._growth(figures, 7):
            print(f"  {day['date']}   {day['records']:>8,}")

    def report(self, days: int = 7, report: Report = silent) -> dict[str, Any]:
        """Everything of one pass: the specification's figures, and what training may use."""
        figures = self.figures(report)
        tagger = figures.tagger
        return {
            **self._summary(figures),
            "domain_breakdown": _shares(figures),
            "daily_growth": self._growth(figures, days),
            "sources": dict(figures.sources.most_common()),
            "sessions": figures.sessions,
            "tiers": {name or "unknown": figures.tiers[name] for name in ("A", "B", "C", "")},
            "training": {
                "sessions": figures.trainable,
                "left_out": dict(figures.left_out.most_common()),
                "left_out_records": figures.left_out_records,
                "restricted_outputs": self._restricted_outputs,
            },
            "tagger": {
                "agreed": tagger.agreed,
                "compared": tagger.compared,
                "percentage": tagger.percentage,
                "unknown_types": tagger.unknown,
            },
            "damaged_lines": figures.damaged,
            "torn_lines": self._corpus.torn_lines(),
            "rules_version": self._corpus.rules_version,
        }

    def figures(self, report: Report = silent) -> Figures:
        """Read the corpus once. Memory holds a few hundred bytes a session, and no text."""
        out = Figures()
        sketches: dict[str, _Sketch] = {}
        for record in self._corpus.records(read=reading(self._corpus, "stats", report)):
            sketch = sketches.get(record.session_id)
            if sketch is None:
                sketch = sketches[record.session_id] = _Sketch(record.session_id)
            sketch.take(record)
            if not record.closes:
                out.records += 1
                out.domains[record.domain] += 1
                out.sources[str(record.metadata.get("source") or LIVE)] += 1
                out.days[day_of(record.timestamp)] += 1
            out.tagger.take(record)
        out.damaged = self._corpus.damaged_lines
        out.sessions = len(sketches)
        open_after = self._clock.now_s() - IDLE_S
        for sketch in sketches.values():
            out.tiers[sketch.tier] += 1
            reason = why_left_out(
                sketch,
                restricted_outputs=self._restricted_outputs,
                flagged=self._flagged,
                open_after=open_after,
            )
            if reason is None:
                out.trainable += 1
            else:
                out.left_out[reason.value] += 1
                out.left_out_records += sketch.records
        return out

    def _summary(self, figures: Figures) -> dict[str, Any]:
        return {
            "total_records": figures.records,
            "storage_size_mb": round(self._corpus.size_bytes() / 2**20, 2),
            "opted_in_users": self._consent.get_opted_in_count(),
            "domains": dict(figures.domains.most_common()),
        }

    def _growth(self, figures: Figures, days: int) -> list[dict[str, Any]]:
        today: date = datetime.fromtimestamp(self._clock.now_s(), UTC).date()
        dates = [(today - timedelta(days=back)).isoformat() for back in reversed(range(days))]
        return [{"date": day, "records": figures.days[day]} for day in dates]


def reading(corpus: TrainingCorpus, phase: str, report: Report) -> Callable[[int], None]:
    """A function that is told the bytes of each line read, and reports on a pass over all."""
    total, done, told = corpus.size_bytes(), 0, 0

    def read(size: int) -> None:
        nonlocal done, told
        done += size
        if done - told >= _REPORT_BYTES:
            told = done
            report(Progress(phase, done >> 20, total >> 20, "MB"))

    return read


def _shares(figures: Figures) -> dict[str, Any]:
    total = figures.domains.total()
    return {
        domain: {"count": count, "percentage": round(100 * count / total, 1)}
        for domain, count in figures.domains.most_common()
    }


class _Sketch:
    """What `session_of` would say of a session, as far as `why_left_out` asks; without its text."""

    __slots__ = (
        "_asked",
        "_close",
        "_conversation",
        "_opening",
        "closed",
        "completion",
        "last",
        "prompt",
        "records",
        "session_id",
        "terms_class",
    )

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.prompt = ""
        self.completion = ""
        self.terms_class: str = Terms.UNKNOWN
        self.closed = False
        self.last = float("-inf")
        self.records = 0
        self._asked: tuple[bool, bool] = (False, False)  # a prompt, a completion was met
        self._conversation = False
        self._opening: dict[str, Any] | None = None
        self._close: dict[str, Any] = {}

    @property
    def tier(self) -> str:
        return tier(quality_of({**(self._opening or {}), **self._close}))

    def take(self, record: TrainingRecord) -> None:
        asked, answered = self._asked
        self.last = max(self.last, record.timestamp)
        self.records += not record.closes
        if self._opening is None:
            self._opening = _judged(record.metadata)
        if record.closes:
            self.closed = True
            self._close = _judged(record.metadata)
        elif record.content_type == ContentType.PROMPT and not asked:
            self._asked = True, answered
            self.prompt = _begun(record.content)
            self._opening = _judged(record.metadata)
        elif record.content_type == ContentType.COMPLETION and not answered:
            self._asked = asked, True
            self.completion = _begun(record.content)
            self.terms_class = record.terms_class
        elif record.content_type == ContentType.CONVERSATION and not self._conversation:
            self._conversation = True
            prompt, completion = first_turns(record.content)
            if not asked:
                self.prompt, self._opening = _begun(prompt), _judged(record.metadata)
            if not answered:
                self.completion, self.terms_class = _begun(completion), record.terms_class


def _begun(text: str) -> str:
    """As much of a text as the judgement asks for, beginning and ending with what is no space."""
    text = text.strip()
    if len(text) <= COMPLETION_CHARS_MIN:
        return text
    return text[: COMPLETION_CHARS_MIN - 1] + text[-1]


def _judged(metadata: dict[str, Any]) -> dict[str, Any]:
    names = ("quality", "outcome", "corrections", "errors")
    return {name: metadata[name] for name in names if name in metadata}
