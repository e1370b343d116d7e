"""The measure of the scrubber measures what it says: every character, through every round."""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "bench"))

import scrub as bench
import support_scrub


@dataclass
class Found:
    start: int
    end: int
    label: str


class Stepwise:
    """A scrubber that finds one word more in each round."""

    def __init__(self, *words: str) -> None:
        self._words = words

    def find(self, text: str) -> list[Found]:
        for word in self._words:
            if (at := text.find(word)) >= 0:
                return [Found(at, at + len(word), "EMAIL")]
        return []

    def scrub(self, text: str) -> str:
        while found := self.find(text):
            text = text[: found[0].start] + "[EMAIL]" + text[found[0].end :]
        return text


def row(**raw: object) -> support_scrub.Row:
    return support_scrub.row({"text": "call me at 10.0.0.1 now", **raw})


def test_what_a_later_round_finds_counts_at_its_place_in_the_first_text() -> None:
    detect = support_scrub.Detector(Stepwise("beta", "alpha", "<[EMAIL]>"))
    text = "x alpha y <beta> z"
    assert [(t.start, t.end) for t in detect(text)] == [(2, 7), (10, 16)]
    assert detect.disagreed == 0


@pytest.mark.parametrize(
    ("taken", "whole"),
    [([(0, 9)], True), ([(2, 5), (5, 8)], True), ([(2, 5), (6, 8)], False), ([(3, 8)], False)],
)
def test_a_span_counts_when_every_character_is_covered(
    taken: list[tuple[int, int]], whole: bool
) -> None:
    spans = [support_scrub.Taken(start, end, "IP") for start, end in taken]
    assert support_scrub.covered(support_scrub.Taken(2, 8, "EMAIL"), spans) is whole


def test_labels_of_both_formats_are_of_the_ten_categories_and_others_are_left_out() -> None:
    spans = [{"start": 11, "end": 19, "label": "IPV4"}, {"start": 5, "end": 7, "label": "PERSON"}]
    assert row(kind="positive", spans=spans).spans == [support_scrub.Taken(11, 19, "IP")]
    assert row(kind="pos", spans=[{"start": 0, "end": 1, "type": "SSN"}]).spans[0].label == "SSN"


def test_missing_columns_are_taken_as_plain() -> None:
    assert row().kind == "neg" and row(spans=[{"start": 0, "end": 1, "type": "IP"}]).kind == "pos"
    assert row(spans=None, case=None, source=None).case == ""


def test_evasions_grey_rows_and_the_source_told_apart_are_kept_apart() -> None:
    sums = support_scrub.Score()
    span = [{"start": 11, "end": 19, "type": "IP"}]
    hit = [support_scrub.Taken(11, 19, "IP")]
    sums.add(row(kind="pos", spans=span, case="ev_x"), hit)
    sums.add(row(kind="pos", spans=span), [])
    sums.add(row(kind="grey", spans=span), hit)
    sums.add(row(kind="pos", spans=span, source="gitleaks-rules"), hit)
    sums.add(row(kind="negative"), hit)
    report = sums.report()
    assert report["recall"]["IP"] == {"plain": 0.0, "evasion": 1.0}
    assert report["recall"]["EMAIL"] == {"plain": None, "evasion": None}
    assert report["grey"] == {"texts": 1, "replaced": 1}
    assert report["negatives_hit"] == 1.0 and report["fp_per_mb"]["total"] is None


def test_a_crash_is_counted_and_covers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Crashing:
        def scrub(self, text: str) -> str:
            raise ValueError(text)

    monkeypatch.setattr(bench, "PIIScrubber", Crashing)
    measure = bench.Measure(0)
    assert measure.checked("x") == [] and measure.crashes == {"ValueError": 1}


def test_it_reads_gzipped_and_plain_files(tmp_path: Path) -> None:
    line = json.dumps({"text": "a", "kind": "bulk"}) + "\n"
    (tmp_path / "a.jsonl").write_text(line + "\n" + line)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(line)
    assert len(list(support_scrub.read(tmp_path / "a.jsonl"))) == 2
    assert [r.kind for r in support_scrub.read(tmp_path / "a.jsonl.gz")] == ["bulk"]


def test_ordinary_text_is_measured_in_documents_of_about_8_kb() -> None:
    sizes = [len(text) for text in bench.documents(["x" * 1_000] * 30 + ["y" * 9_000])]
    assert sizes == [8_007, 8_007, 8_007, 6_005, 9_000]
