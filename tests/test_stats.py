"""The figures of the corpus: one pass, what it counts, and what it says of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support_capture import NOON, HandClock, capture, record

from node.capture import CorpusStats, TrainingCorpus, TrainingRecord
from node.capture.sessions import session_of
from node.capture.stats import meant
from node.capture.terms import LeftOut, why_left_out

TALK = json.dumps([{"role": "user", "content": "hm?"}, {"role": "assistant", "content": "yes!"}])


@pytest.fixture
def stats(tmp_path: Path) -> CorpusStats:
    made = capture(tmp_path)
    return CorpusStats(made.corpus, made.consent, clock=made.clock)


def corpus_of(stats: CorpusStats) -> TrainingCorpus:
    return stats._corpus


def said(number: int, session: str, kind: str, text: str, **more: Any) -> TrainingRecord:
    return record(number, **{"session_id": session, "content_type": kind, "content": text, **more})


def closed(number: int, session: str, **about: Any) -> TrainingRecord:
    return said(
        number, session, "workflow", "SESSION_CLOSE", metadata={"event": "SESSION_CLOSE", **about}
    )


def test_each_session_is_left_out_for_one_reason_or_may_be_trained_on(
    stats: CorpusStats,
) -> None:
    corpus_of(stats).add_records(
        [
            said(1, "good", "prompt", "ask"),
            said(2, "good", "completion", "an answer", terms_class="open"),
            closed(3, "good", outcome="accepted"),
            said(4, "restricted", "prompt", "ask"),
            said(5, "restricted", "completion", "an answer", terms_class="restricted"),
            said(6, "unanswered", "prompt", "ask", at=NOON - 2 * 86_400),
            said(7, "poor", "prompt", "ask"),
            said(8, "poor", "completion", "an answer", terms_class="own"),
            closed(9, "poor", outcome="rejected"),
            said(10, "short", "prompt", "ask", at=NOON - 2 * 86_400),
            said(11, "short", "completion", "a ", terms_class="own", at=NOON - 2 * 86_400),
            said(12, "unknown", "prompt", "ask", at=NOON - 2 * 86_400),
            said(13, "unknown", "completion", "an answer", at=NOON - 2 * 86_400),
            said(14, "open", "prompt", "ask"),
            said(15, "open", "completion", "an answer", terms_class="own"),
        ]
    )
    report = stats.report()
    assert report["training"]["sessions"] == 1
    assert report["training"]["left_out"] == {
        "not closed": 2,
        "no completion": 1,
        "tier C": 1,
        "too short": 1,
        "terms: unknown": 1,
    }
    assert report["training"]["left_out_records"] == 11
    assert report["tiers"] == {"A": 1, "B": 0, "C": 1, "unknown": 5}


def test_the_tagger_is_measured_against_what_callers_said(stats: CorpusStats) -> None:
    def tagged(number: int, domain: str, kind: str) -> TrainingRecord:
        return record(number, domain=domain, metadata={"workflow_type": kind})

    corpus_of(stats).add_records(
        [
            tagged(1, "code", "code_editor"),
            tagged(2, "general", "Journalist Mode"),
            tagged(3, "planning", "planning"),
            tagged(4, "code", "knitting"),
            record(5),
        ]
    )
    assert stats.report()["tagger"] == {
        "agreed": 2,
        "compared": 3,
        "percentage": 66.7,
        "unknown_types": 1,
    }


@pytest.mark.parametrize("said_by_caller", ["", "knitting", 3, None, ["code"]])
def test_a_workflow_type_that_names_no_domain_is_not_compared(said_by_caller: object) -> None:
    assert meant(said_by_caller) is None


def test_sources_damage_and_torn_tails_are_counted(stats: CorpusStats) -> None:
    corpus = corpus_of(stats)
    corpus.add_records(
        [record(1), record(2, metadata={"source": "codex"}), record(3, metadata={"source": "llm"})]
    )
    (path,) = corpus.files()
    corpus.close()
    path.write_bytes(path.read_bytes().replace(b'"llm"', b'"lln"') + b'{"record_id"')
    again = TrainingCorpus(corpus.root, clock=HandClock())
    report = CorpusStats(again, stats._consent, clock=HandClock()).report()
    assert report["sources"] == {"live": 1, "codex": 1}
    assert (report["damaged_lines"], report["torn_lines"]) == (1, 1)
    once_more = TrainingCorpus(corpus.root, clock=HandClock())
    assert once_more.torn_tails == 0 and once_more.torn_lines() == 1


def test_a_corpus_is_read_once_for_all_figures(
    stats: CorpusStats, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus_of(stats).add_records([record(1)])
    passes = 0
    read = TrainingCorpus.records

    def counted(self: TrainingCorpus, *args: Any, **how: Any) -> Any:
        nonlocal passes
        passes += 1
        return read(self, *args, **how)

    monkeypatch.setattr(TrainingCorpus, "records", counted)
    stats.report()
    stats.print_report()
    assert passes == 2


contents = st.sampled_from(["", " ", "x", "an answer", "a b", " yes ", TALK])
metadata = st.fixed_dictionaries(
    {},
    optional={
        "quality": st.sampled_from([10, 55, 90, None, True]),
        "outcome": st.sampled_from(["accepted", "rejected", "nonsense"]),
        "corrections": st.integers(-1, 5),
    },
)


@st.composite
def histories(draw: st.DrawFn) -> list[TrainingRecord]:
    made = []
    for number in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["prompt", "completion", "conversation", "workflow", "close"]))
        about = draw(metadata) | ({"event": "SESSION_CLOSE"} if kind == "close" else {})
        made.append(
            said(
                number,
                "s",
                "workflow" if kind == "close" else kind,
                draw(contents),
                metadata=about,
                terms_class=draw(st.sampled_from(["own", "open", "restricted", "unknown"])),
                at=NOON - draw(st.sampled_from([0, 100_000])),
            )
        )
    return made


@settings(max_examples=300, deadline=None)
@given(history=histories())
def test_the_figures_judge_a_session_as_training_does(history: list[TrainingRecord]) -> None:
    from node.capture.stats import _Sketch

    sketch = _Sketch("s")
    for each in history:
        sketch.take(each)
    whole = session_of(history)
    assert sketch.tier == whole.tier
    for open_after in (float("inf"), NOON - 50_000):
        wanted = why_left_out(whole, open_after=open_after)
        assert why_left_out(sketch, open_after=open_after) == wanted
    assert why_left_out(whole, flagged={"s"}) is LeftOut.SECOND_SCAN
