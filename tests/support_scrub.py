"""Texts with labelled spans, what a scrubber covers of them, and the sums over that."""

from __future__ import annotations

import gzip
import json
import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

CATEGORIES = (
    *("PRIVATE_KEY", "AWS_KEY", "CREDIT_CARD", "SSN", "API_KEY"),
    *("EMAIL", "REDACTED_URL", "IP", "FILE_PATH", "PHONE"),
)
_ALIASES = {
    "IP": ("IPV4", "IPV6"),
    "FILE_PATH": ("USER_PATH",),
    "AWS_KEY": ("AWS_ACCESS_KEY", "AWS_SECRET_KEY"),
    "REDACTED_URL": ("URL_TOKEN", "URL_CREDENTIALS"),
    "API_KEY": ("BEARER_TOKEN", "JWT", "HEX_SECRET"),
}
CATEGORY_OF = {c: c for c in CATEGORIES} | {a: c for c, all_ in _ALIASES.items() for a in all_}
APART = "gitleaks-rules"
LONG_CHARS = 2_000  # a negative text this long is ordinary text too

# What a vendor's key looks like, so that the print can tell such keys from those that only a name
# beside them gives away. Used for nothing else.
KNOWN_PREFIX = re.compile(
    r"(?i)(?:[spr]k|gh[a-z]|github|gl[a-z]{2,5}|xox[a-z]|xapp|hf|npm|pypi|sg|whsec|do[opr]|shp[a-z]+"
    r"|hv[sbr]|dckr|dp|figd|lin|ntn|secret|gsk|pplx|r8|xai|tskey|nrak|pul|sntry[su]|gl[cs]a?|dapi|cf[a-z]t"
    r"|vc[a-z]|key|nvapi|rubygems|pmak|v1)[_.-]|AIza|ya29\.|eyJ|GOCSPX|AGE-SECRET|AKCp|EAA|SK[0-9a-f]{32}"
)


class Taken(NamedTuple):
    start: int
    end: int
    label: str


class Row(NamedTuple):
    text: str
    spans: list[Taken]  # of the ten categories, and only those
    kind: str  # pos, neg, bulk, grey
    case: str
    source: str


def read(path: Path) -> Iterator[Row]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                yield row(json.loads(line))


def row(raw: dict[str, Any]) -> Row:
    """One row of either format; what is missing is taken as plain."""
    text = str(raw.get("text", ""))
    spans = []
    for span in raw.get("spans") or ():
        if category := CATEGORY_OF.get(str(span.get("label") or span.get("type"))):
            spans.append(Taken(int(span["start"]), int(span["end"]), category))
    kind = str(raw.get("kind") or ("pos" if raw.get("spans") else "neg"))
    case = str(raw.get("case") or raw.get("category") or "")
    kinds = {"positive": "pos", "negative": "neg"}
    return Row(text, spans, kinds.get(kind, kind), case, str(raw.get("source") or ""))


class Scrubber(Protocol):
    """As much of `PIIScrubber` as is measured."""

    def scrub(self, text: str) -> str: ...

    def find(self, text: str) -> list[Any]: ...


class Detector:
    """Says of a text which characters its scrubbed form no longer shows."""

    def __init__(self, scrubber: Scrubber) -> None:
        self._scrubber = scrubber
        self.disagreed = 0  # texts of which `find` and `scrub` say different things

    def __call__(self, text: str) -> list[Taken]:
        clean = self._scrubber.scrub(text)
        if clean == text:
            return []
        found, left = self._found(text)
        if left == clean:
            return found
        self.disagreed += 1  # JSON, which is scrubbed value by value and written anew
        return [span for span in found if text[span.start : span.end] not in clean]

    def _found(self, text: str) -> tuple[list[Taken], str]:
        """Every round's findings in the characters of the first text, and what the last leaves."""
        spans: list[Taken] = []
        for _ in range(6):
            origin = Origin(text, spans)
            findings = self._scrubber.find(origin.text)
            if not findings:
                break
            more = merged(Taken(f.start, f.end, str(f.label)) for f in findings)
            spans = merged([*spans, *(origin.back(span) for span in more)])
        return spans, Origin(text, spans).text


class Origin:
    """A text with placeholders, and where each of its characters was before."""

    def __init__(self, text: str, spans: list[Taken]) -> None:
        self._now, self._then, self._whole = [0], [0], [False]
        pieces, done, size = [], 0, 0
        for start, end, label in spans:
            placeholder = f"[{label}]"
            pieces += [text[done:start], placeholder]
            size += start - done
            self._begin(size, start, whole=True)
            size += len(placeholder)
            self._begin(size, end, whole=False)
            done = end
        self.text = "".join([*pieces, text[done:]])
        self._end = len(text)

    def _begin(self, now: int, then: int, *, whole: bool) -> None:
        self._now.append(now)
        self._then.append(then)
        self._whole.append(whole)

    def back(self, span: Taken) -> Taken:
        return Taken(self._at(span.start), self._at(span.end - 1, last=True), span.label)

    def _at(self, position: int, *, last: bool = False) -> int:
        piece = bisect_right(self._now, position) - 1
        if not self._whole[piece]:
            return self._then[piece] + position - self._now[piece] + last
        if not last:
            return self._then[piece]
        return self._then[piece + 1] if piece + 1 < len(self._then) else self._end


def merged(spans: Iterable[Taken]) -> list[Taken]:
    out: list[Taken] = []
    for span in sorted(spans):
        if out and span.start < out[-1].end:
            out[-1] = Taken(out[-1].start, max(out[-1].end, span.end), out[-1].label)
        else:
            out.append(span)
    return out


def covered(span: Taken, taken: list[Taken]) -> bool:
    position = span.start
    for start, end, _ in taken:  # in order, and apart
        if start <= position < end:
            position = end
        if position >= span.end:
            return True
    return False


class Score:
    """Sums over rows; one for each file and one for all."""

    def __init__(self) -> None:
        self.spans: dict[str, Counter[bool]] = defaultdict(Counter)  # "EMAIL.plain" → found, missed
        self.cases: dict[str, Counter[bool]] = defaultdict(Counter)
        self.negatives: dict[str, Counter[bool]] = defaultdict(Counter)
        self.grey: Counter[bool] = Counter()
        self.false: Counter[str] = Counter()
        self.bulk_bytes = 0

    def add(self, row: Row, taken: list[Taken]) -> list[tuple[str, Taken]]:
        """Count a row; return what was wrong with it, as (group, span)."""
        match row.kind:
            case "grey":
                self.grey[bool(taken)] += 1
                return []
            case "pos":
                return self._positive(row, taken)
            case kind:
                return self._negative(row, taken, bulk=kind == "bulk")

    def _positive(self, row: Row, taken: list[Taken]) -> list[tuple[str, Taken]]:
        wrong = []
        manner = "evasion" if row.case.startswith("ev_") else "plain"
        for span in row.spans:
            found = covered(span, taken)
            group = f"{span.label}.{manner}"
            if row.source == APART:
                group = f"{APART}.{span.label}"
            self.spans[group][found] += 1
            if span.label == "API_KEY" and row.source != APART:
                self.cases[f"API_KEY by {told_by(row, span)}.{manner}"][found] += 1
            self.cases[f"{span.label} {row.case}"][found] += 1
            if not found:
                wrong.append((f"missed {group} {row.case}", span))
        return wrong

    def _negative(self, row: Row, taken: list[Taken], *, bulk: bool) -> list[tuple[str, Taken]]:
        labelled = row.spans
        false = [t for t in taken if not any(t.start < s.end and s.start < t.end for s in labelled)]
        if bulk or len(row.text) >= LONG_CHARS:
            self.bulk_bytes += len(row.text.encode("utf-8", "replace"))
            self.false.update(t.label for t in false)
        if not bulk:
            self.negatives[row.case][bool(false)] += 1
        return [(f"false {t.label} {row.case}", t) for t in false]

    def report(self) -> dict[str, Any]:
        mb = self.bulk_bytes / 1e6
        negatives = sum(self.negatives.values(), Counter[bool]())
        rate = (lambda n: round(n / mb, 2)) if mb else (lambda n: None)
        return {
            "recall": {
                category: {m: share(self.spans[f"{category}.{m}"]) for m in ("plain", "evasion")}
                for category in CATEGORIES
            },
            "negatives_hit": share(negatives),
            "fp_per_mb": {
                **{category: rate(self.false[category]) for category in CATEGORIES},
                "total": rate(self.false.total()),
            },
            "negatives": negatives.total(),
            "bulk_mb": round(mb, 3),
            "grey": {"texts": self.grey.total(), "replaced": self.grey[True]},
            "gitleaks_rules": share(self.spans[f"{APART}.API_KEY"]),
        }


def told_by(row: Row, span: Taken) -> str:
    """What tells that a key is one, as far as its row says."""
    if "gitleaks" in row.case or "gitleaks" in row.source:
        return "one of gitleaks' rules"
    return "known prefix" if KNOWN_PREFIX.match(row.text, span.start) else "keyword"


def share(counted: Counter[bool]) -> float | None:
    return round(counted[True] / counted.total(), 4) if counted.total() else None
