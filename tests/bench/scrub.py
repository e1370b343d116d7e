"""What the scrubber finds, what it takes by mistake, and what it costs.

    python tests/bench/scrub.py [--data FILE...] [--json FILE|-] [--misses N] [--runs N]

FILE is JSON Lines, gzipped or not, with `text`, `spans` ({start, end, label or type}), `kind`, and
where there are any `category`, `case`, `source`. A span counts as found when every character of it
is covered, by whatever placeholder; a `case` that begins with `ev_` is an evasion. Rows of the kind
`grey` are shown and not counted; the source `gitleaks-rules` is told apart.

recall.CATEGORY.{plain,evasion}  share of spans found; null where there are none
negatives_hit                    share of negative texts of which anything was replaced
fp_per_mb.{CATEGORY,total}       replacements per million bytes of ordinary text (kind `bulk`)
mb_per_cpu_s                     ordinary text in documents of about 8 KB; median
texts_per_cpu_s                  texts of up to 500 characters; median
times_naive, times_presidio      our speed to theirs, measured turn by turn in the same run
hostile_mb_per_s_min             the slowest of the hostile texts
hostile_growth_max               time at four times the length to time; 4 is linear
not_idempotent, crashes          texts, of all that were given and the hostile ones
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from hostile_texts import hostile  # noqa: E402
from support_scrub import (  # noqa: E402
    APART,
    CATEGORIES,
    LONG_CHARS,
    Detector,
    Row,
    Score,
    Taken,
    read,
    share,
)

from node.capture.scrubber import PIIScrubber, ScrubError  # noqa: E402

DATA = ROOT.parent / "shared" / "data"
DEFAULT = ("pii/positives", "pii/negatives", "pii/bulk_negatives", "pii_fixtures")
DOCUMENT_BYTES = 8_000
SHORT_CHARS = 500
HOSTILE_BYTES = 50_000

# The specification's table, written as one would on a first afternoon: the yardstick of speed.
NAIVE = [
    (re.compile(pattern), f"[{label}]")
    for pattern, label in (
        (r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?-----END [A-Z ]*PRIVATE KEY-----",
         "PRIVATE_KEY"),
        (r"https?://[^\s\"']*[?&](?:token|key|secret|auth|api_key|access_token)=[^\s\"']+",
         "REDACTED_URL"),
        (r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b", "AWS_KEY"),
        (r"Bearer\s+[A-Za-z0-9\-._~+/]+=*", "API_KEY"),
        (r"\b(?:sk|pk)[-_][A-Za-z0-9_-]{16,}\b", "API_KEY"),
        (r"\b[0-9a-fA-F]{40,}\b", "API_KEY"),
        (r"\b[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}\b", "EMAIL"),
        (r"\b(?:\d[ -]?){13,19}\b", "CREDIT_CARD"),
        (r"\b\d{3}-\d{2}-\d{4}\b", "SSN"),
        (r"(?:\+?1[-.\s]?)?\(?\d{3}\)?[-.\s]?\d{3}[-.\s]?\d{4}\b", "PHONE"),
        (r"\b(?:\d{1,3}\.){3}\d{1,3}\b", "IP"),
        (r"\b(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}\b", "IP"),
        (r"(?:/(?:Users|home)/|[A-Z]:\\Users\\)[^\s\"']+", "FILE_PATH"),
    )
]  # fmt: skip


class Measure:
    def __init__(self, misses: int) -> None:
        self.detect = Detector(PIIScrubber())
        self.all = Score()
        self.files: dict[str, Score] = {}
        self.not_idempotent = 0
        self.crashes: Counter[str] = Counter()
        self._misses = misses
        self._shown: Counter[str] = Counter()

    def file(self, path: Path) -> list[Row]:
        rows = list(read(path))
        score = self.files[path.name] = Score()
        for each in rows:
            taken = self.checked(each.text)
            self.all.add(each, taken)
            for group, span in score.add(each, taken):
                self._show(group, span, each, taken)
        return rows

    def checked(self, text: str) -> list[Taken]:
        """Scrub, twice; a text that raises counts as one of which nothing was covered."""
        scrubber = PIIScrubber()
        try:
            clean = scrubber.scrub(text)
            self.not_idempotent += scrubber.scrub(clean) != clean
            return self.detect(text)
        except Exception as problem:
            self.crashes[type(problem).__name__] += 1
            return []

    def _show(self, group: str, span: Taken, row: Row, taken: list[Taken]) -> None:
        self._shown[group] += 1
        if self._shown[group] <= self._misses:
            around = row.text[max(0, span.start - 40) : span.end + 20]
            inside = [t for t in taken if t.start < span.end and span.start < t.end]
            print(f"  {group}: {around!r:.300}", [(t.start - span.start, *t[1:]) for t in inside])


def naive(text: str) -> str:
    for pattern, placeholder in NAIVE:
        text = pattern.sub(placeholder, text)
    return text


def presidio() -> Callable[[str], object] | None:
    """Its pattern recognizers of our kinds, without a language model; None if not installed."""
    try:
        import tldextract
        from presidio_analyzer import predefined_recognizers as kinds
    except ImportError:
        return None
    # The list of suffixes that comes with it: it would fetch a newer one at the first address.
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=())
    names = ("Email", "Phone", "Ip", "UsSsn", "CreditCard")
    recognizers = [getattr(kinds, f"{name}Recognizer")() for name in names]

    def analyze(text: str) -> object:
        return [r.analyze(text, r.supported_entities, None) for r in recognizers]

    return analyze


def documents(texts: Iterable[str]) -> list[str]:
    """Join texts into documents of about 8 KB."""
    out: list[str] = []
    size = DOCUMENT_BYTES
    for text in texts:
        if size + len(text) > DOCUMENT_BYTES * 1.1:
            out.append(text)
            size = len(text)
        else:
            out[-1] += "\n" + text
            size += len(text) + 1
    return out


def cpu_s(work: Callable[[str], object], texts: list[str]) -> float:
    began = time.process_time()
    for text in texts:
        work(text)
    return max(time.process_time() - began, 1e-9)


def speed(bulk: list[str], short: list[str], runs: int) -> dict[str, Any]:
    """Turn by turn, so that a machine that grows slow does so for all of them."""
    scrub, other = PIIScrubber().scrub, presidio()
    few = bulk[:: max(1, len(bulk) // 8)][:8]
    mb, few_mb = (sum(len(t.encode("utf-8", "replace")) for t in ts) / 1e6 for ts in (bulk, few))
    taken: dict[str, list[float]] = defaultdict(list)
    for _ in range(runs):
        if bulk:
            ours, theirs = cpu_s(scrub, bulk), cpu_s(naive, bulk)
            taken["mb_per_cpu_s"].append(mb / ours)
            taken["naive_mb_per_cpu_s"].append(mb / theirs)
            taken["times_naive"].append(theirs / ours)
        if short:
            ours, theirs = cpu_s(scrub, short), cpu_s(naive, short)
            taken["texts_per_cpu_s"].append(len(short) / ours)
            taken["naive_texts_per_cpu_s"].append(len(short) / theirs)
        if bulk and other:
            rate = few_mb / cpu_s(other, few)
            taken["presidio_mb_per_cpu_s"].append(rate)
            taken["times_presidio"].append(taken["mb_per_cpu_s"][-1] / rate)
    figures = {name: round(statistics.median(values), 2) for name, values in taken.items()}
    unmeasured = ("mb_per_cpu_s", "texts_per_cpu_s", "times_naive", "times_presidio")
    return dict.fromkeys(unmeasured) | figures


def hostile_speed(runs: int) -> dict[str, Any]:
    refused: set[str] = set()

    def scrub(text: str) -> None:
        try:
            PIIScrubber().scrub(text)
        except ScrubError:  # its time counts, and so does it
            refused.add(name)

    short, long = hostile(HOSTILE_BYTES), hostile(4 * HOSTILE_BYTES)
    rates, growth = {}, {}
    for name, text in short.items():
        one = min(cpu_s(scrub, [text]) for _ in range(runs))
        four = min(cpu_s(scrub, [long[name]]) for _ in range(runs))
        if four > 4.2 * one:  # steep, or disturbed: what is steep stays so
            one = min(one, *(cpu_s(scrub, [text]) for _ in range(4)))
            four = min(four, *(cpu_s(scrub, [long[name]]) for _ in range(4)))
        rates[name] = len(long[name].encode("utf-8", "replace")) / 1e6 / four
        growth[name] = four / one
    slowest, steepest = min(rates, key=rates.__getitem__), max(growth, key=growth.__getitem__)
    return {
        "hostile_mb_per_s_min": round(rates[slowest], 2),
        "hostile_slowest": slowest,
        "hostile_growth_max": round(growth[steepest], 2),
        "hostile_steepest": steepest,
        "hostile_texts": len(rates),
        "hostile_refused": sorted(refused),
        "hostile": {n: [round(rates[n], 2), round(growth[n], 2)] for n in rates},
    }


def measure(paths: list[Path], misses: int, runs: int) -> tuple[dict[str, Any], Measure]:
    measured = Measure(misses)
    rows = [row for path in paths for row in measured.file(path)]
    for text in hostile(HOSTILE_BYTES).values():
        measured.checked(text)
    ordinary = [r.text for r in rows if r.kind == "bulk"] or [
        r.text for r in rows if r.kind != "pos" and len(r.text) >= LONG_CHARS
    ]
    short = [r.text for r in rows if r.kind != "bulk" and len(r.text) <= SHORT_CHARS]
    report = {
        **measured.all.report(),
        **speed(documents(ordinary), short, runs),
        **hostile_speed(min(runs, 2)),
        "not_idempotent": measured.not_idempotent,
        "crashes": measured.crashes.total(),
        "crash_types": dict(measured.crashes),
        "find_disagrees": measured.detect.disagreed,
        "files": {name: score.report() for name, score in measured.files.items()},
    }
    return report, measured


def table(report: dict[str, Any], measured: Measure) -> Iterator[str]:
    def cell(value: float | None) -> str:
        return "     -" if value is None else f"{value:6.3f}"

    shown = {"all": report} | {n: f for n, f in report["files"].items() if measured.files[n].spans}
    yield f"{'recall plain/evasion':<22}" + "".join(f"{name[:18]:<20}" for name in shown) + "fp/MB"
    for category in CATEGORIES:
        cells = [f["recall"][category] for f in shown.values()]
        pairs = "".join(f"{cell(c['plain'])}/{cell(c['evasion']):<13}" for c in cells)
        yield f"{category:<22}{pairs}{report['fp_per_mb'][category]}"
    for name, counted in sorted(measured.all.cases.items()):
        if name.startswith("API_KEY by "):
            yield f"  {name:<42} {cell(share(counted))} of {counted.total()}"
    yield f"  source {APART:<35} {cell(report['gitleaks_rules'])}"
    hit = ", ".join(f"{case} {share(n)}" for case, n in measured.all.negatives.items() if n[True])
    yield f"negatives hit {report['negatives_hit']} of {report['negatives']}: {hit}"
    yield f"grey {report['grey']}"
    for key, value in report.items():
        if key not in ("recall", "files", "grey", "fp_per_mb", "hostile", "negatives_hit"):
            yield f"{key:<24}{value!r}"
    yield f"{'fp_per_mb.total':<24}{report['fp_per_mb']['total']}"


def worst_cases(report: dict[str, Any], measured: Measure) -> Iterator[str]:
    for name, counted in sorted(measured.all.cases.items()):
        if counted[False]:
            yield f"  {name:<40} {share(counted)} of {counted.total()}"
    for name, (rate, growth) in sorted(report["hostile"].items(), key=lambda item: item[1][0]):
        if rate < 2 or growth > 4.5:
            yield f"  hostile {name[:30]!r:<32} {rate} MB/s, {growth} times for 4"


def found_files(given: list[Path]) -> list[Path]:
    paths = given or [p for name in DEFAULT if (p := DATA / f"{name}.jsonl.gz").exists()]
    if not paths:
        raise SystemExit(f"no texts: name files with --data, for {DATA} holds none of them")
    if missing := [path for path in paths if not path.exists()]:
        raise SystemExit(f"no such file: {missing[0]}")
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, nargs="+", action="extend", default=[], metavar="FILE")
    parser.add_argument("--json", help="a file, or - for standard output", metavar="FILE")
    parser.add_argument("--misses", type=int, default=0, help="show so many of each", metavar="N")
    parser.add_argument("--runs", type=int, default=5, help="of which the median counts")
    arguments = parser.parse_args()
    report, measured = measure(found_files(arguments.data), arguments.misses, arguments.runs)
    if arguments.json == "-":
        print(json.dumps(report, indent=2))
        return
    print("\n".join(table(report, measured)))
    if arguments.misses:
        print("\n".join(worst_cases(report, measured)))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
