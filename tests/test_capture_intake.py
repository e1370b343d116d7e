"""The way in: nothing without consent, nothing unscrubbed, and what a session leaves behind."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from support_capture import NOON, USER, Capture, capture

from node.capture import DomainTagger, PIIScrubber, Scope, TrainingDataIntake
from node.capture.encoder_tag import DEFAULT_ENCODER
from node.capture.intake import CONTENT_CHARS_MAX, Draft, Refusal
from node.capture.quality import score
from node.capture.terms import TRAINABLE, Terms, terms_of

SECRET = "sk-proj-Zk83jfLq02mXvR7tYw5B"


class BrokenScrubber(PIIScrubber):
    def scrub(self, text: str) -> str:
        from node.capture import ScrubError

        raise ScrubError("the rules failed")


@pytest.fixture
def made(tmp_path: Path) -> Capture:
    return capture(tmp_path)


def test_without_consent_nothing_reaches_the_disk(tmp_path: Path) -> None:
    made = capture(tmp_path, granted=False)
    assert made.intake.submit(USER, "s", "a private thought", "prompt") is None
    assert made.intake.refused[Refusal.NO_CONSENT] == 1
    assert b"private" not in made.on_disk()
    with pytest.raises(PermissionError):
        made.session("s").start()


def test_consent_to_fetch_or_train_alone_captures_nothing(made: Capture) -> None:
    made.consent.record_consent(USER, True, "1.0", scopes={Scope.FETCH, Scope.TRAIN})
    assert made.intake.submit(USER, "s", "text", "prompt") is None


def test_a_submitted_text_is_scrubbed_tagged_and_dated(made: Capture) -> None:
    text = f"Refactor this Python function, the key is {SECRET}"
    record_id = made.intake.submit(USER, "s", text, "prompt", {"user": "ann@example.com"})
    (record,) = made.corpus.records()
    assert record.record_id == record_id
    assert record.content == "Refactor this Python function, the key is [API_KEY]"
    assert record.metadata == {"user": "[EMAIL]"}
    assert (record.domain, record.timestamp, record.consent_version) == ("code", NOON, "1.0")
    assert record.terms_class == Terms.OWN
    assert SECRET.encode() not in made.on_disk()


def test_a_text_that_cannot_be_scrubbed_is_dropped_counted_and_never_logged(
    made: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    intake = TrainingDataIntake(made.consent, made.corpus, BrokenScrubber(), DomainTagger())
    with caplog.at_level(logging.DEBUG):
        assert intake.submit(USER, "s", "a private thought", "prompt") is None
    assert intake.refused == {Refusal.SCRUB: 1}
    assert "private" not in caplog.text
    assert b"private" not in made.on_disk()


def test_metadata_that_json_has_not_drops_the_record(made: Capture) -> None:
    assert made.intake.submit(USER, "s", "text", "prompt", {"path": Path("/home/ann")}) is None
    assert made.intake.refused == {Refusal.SCRUB: 1}


def test_a_text_beyond_the_limit_is_refused_and_one_at_the_limit_is_kept(made: Capture) -> None:
    assert made.intake.submit(USER, "s", "a " * (CONTENT_CHARS_MAX // 2), "prompt")
    assert made.intake.submit(USER, "s", "a" * (CONTENT_CHARS_MAX + 1), "prompt") is None
    assert made.intake.refused == {Refusal.TOO_LONG: 1}


def test_an_unknown_content_type_is_an_error_of_the_caller(made: Capture) -> None:
    with pytest.raises(ValueError, match="thought"):
        made.intake.submit(USER, "s", "text", "thought")


def test_a_conversation_stays_json_and_is_scrubbed_inside(made: Capture) -> None:
    messages = [{"role": "user", "content": 'Mail "ann@example.com"\nnow'}]
    made.intake.submit(USER, "s", json.dumps(messages), "conversation")
    made.intake.submit(USER, "s", "not json, ann@example.com", "conversation")
    first, second = made.corpus.records()
    assert json.loads(first.content) == [{"role": "user", "content": 'Mail "[EMAIL]"\nnow'}]
    assert second.content == "not json, [EMAIL]"


def test_a_batch_says_what_was_accepted_and_what_was_not(made: Capture) -> None:
    good = {"user_id": USER, "session_id": "s", "content": "text", "content_type": "prompt"}
    batch = [good, {**good, "user_id": "other"}, {"content": "no more"}, {**good, "metadata": {}}]
    result = made.intake.submit_batch(batch)
    assert result.keys() == {"accepted", "rejected", "record_ids"}
    assert (result["accepted"], result["rejected"]) == (2, 2)
    assert [r.record_id for r in made.corpus.records()] == result["record_ids"]


def test_deleting_a_user_revokes_all_scopes(made: Capture) -> None:
    made.consent.record_consent(USER, True, "1.0", scopes=set(Scope))
    made.intake.submit(USER, "s", "text", "prompt")
    assert made.intake.delete_user(USER) == {"consent_revoked": True, "records_deleted": 1}
    assert made.consent.scopes(USER) == frozenset()
    assert made.intake.delete_user("nobody") == {"consent_revoked": False, "records_deleted": 0}


def test_a_revocation_stops_a_session_at_its_next_call_and_nothing_is_flushed(
    made: Capture,
) -> None:
    session = made.session("s")
    session.start()
    session.record_prompt("before")
    assert session.is_active()
    made.consent.revoke_consent(USER)
    session.record_completion("after")
    assert not session.is_active()
    made.grant()
    session.record_completion("long after")  # a stopped session does not wake up
    summary = session.end()
    assert summary["records_captured"] == 1
    assert [r.content for r in made.corpus.records()] == ["before"]


def test_the_end_of_a_session_writes_how_it_went_and_what_is_to_be_embedded(made: Capture) -> None:
    session = made.session("s")
    session.start()
    session.record_prompt("Ask ann@example.com about the roadmap. " + "x" * 600)
    session.record_prompt("a later ask")
    session.record_completion("She agrees.")
    made.clock.time_s += 7
    routing = {"leaf_id": "ab" * 16, "routing_confidence": 0.42, "fallback_used": False}
    summary = session.end(outcome="modified", routing=routing)
    assert (summary["records_captured"], summary["duration_seconds"]) == (3, 7.0)
    close = list(made.corpus.records())[-1]
    assert (close.content_type, close.metadata["event"]) == ("workflow", "SESSION_CLOSE")
    assert (close.metadata["outcome"], close.metadata["quality"]) == ("modified", 70)
    assert close.metadata["routing"] == routing
    embedding = close.metadata["session_embedding"]
    assert embedding.keys() == {"model", "enc8", "source_text"}
    assert embedding["enc8"] == DEFAULT_ENCODER.enc8
    assert embedding["source_text"].startswith("Ask [EMAIL] about the roadmap.")
    assert len(embedding["source_text"]) == 512


def test_a_session_that_was_never_started_or_captured_nothing_leaves_nothing(
    made: Capture,
) -> None:
    session = made.session("s")
    session.record_prompt("not started")
    assert session.end()["records_captured"] == 0
    empty = made.session("t")
    empty.start()
    empty.end()
    empty.record_prompt("after the end")
    assert list(made.corpus.records()) == []


def test_only_own_and_certainly_open_texts_may_be_trained_on(made: Capture) -> None:
    made.intake.submit(USER, "s", "text", "completion", {"model_name": "qwen3-moe-a3b"})
    made.intake.submit(USER, "s", "text", "completion", {"model_name": "claude-sonnet-4"})
    made.intake.submit(USER, "s", "text", "completion", {"model_name": "house-model"})
    made.intake.submit(USER, "s", "text", "completion", {"terms_class": "own"})
    classes = [record.terms_class for record in made.corpus.records()]
    assert classes == ["open", "restricted", "unknown", "own"]
    assert {Terms.OWN, Terms.OPEN} == TRAINABLE
    assert terms_of("openai", "gpt-oss-20b") is Terms.OPEN
    assert terms_of("openai", "o3") is Terms.RESTRICTED


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("In networkx, what does is_matching(G, matching) do?", "code"),
        ("Summarize the city council meeting notes", "journalism"),
        ("Find literature on the hypothesis of linguistic relativity", "research"),
        ("Draft a roadmap with milestones for the next sprint", "planning"),
        ("What is a good name for a cat?", "general"),
        ("", "general"),
    ],
)
def test_the_tagger_tells_the_five_domains_apart(text: str, domain: str) -> None:
    assert DomainTagger().tag(text) == domain


def test_an_edit_is_kept_as_what_the_owner_made_of_the_answer(made: Capture) -> None:
    session = made.session("s")
    session.start()
    session.record_prompt("Name a colour")
    session.record_completion("blue")
    session.record_edit("a deep blue, says ann@example.com")
    session.end()
    edit, close = list(made.corpus.records())[-2:]
    assert (edit.content, edit.metadata) == ("a deep blue, says [EMAIL]", {"event": "EDIT"})
    assert close.metadata["outcome"] == "modified"
    (whole,) = made.corpus.sessions()
    assert (whole.edited, whole.quality) == ("a deep blue, says [EMAIL]", 70)


def test_a_workflow_record_keeps_its_type_and_its_keys_and_values_are_scrubbed(
    made: Capture,
) -> None:
    session = made.session("s")
    session.start()
    about = {"workflow_type": "journalism", "ann@example.com": ["call 555-123-4567"]}
    session.record_workflow("opened the editor", about)
    (record,) = made.corpus.records()
    assert (record.content_type, record.metadata["workflow_type"]) == ("workflow", "journalism")
    assert record.metadata["[EMAIL]"] == ["call [PHONE]"]


def test_corrections_and_errors_lower_the_quality_of_a_session(made: Capture) -> None:
    session = made.session("s")
    session.start()
    session.record_prompt("Do it")
    session.end("accepted", corrections=2, errors=1)
    close = list(made.corpus.records())[-1]
    told = close.metadata
    assert (told["outcome"], told["corrections"], told["errors"]) == ("accepted", 2, 1)
    assert told["quality"] == score("accepted", corrections=2, errors=1) == 65


def test_an_outcome_that_nobody_knows_is_no_place_for_a_text(made: Capture) -> None:
    session = made.session("s")
    session.start()
    session.record_prompt("Do it")
    session.end(f"the key was {SECRET}")
    assert SECRET.encode() not in made.on_disk()


def test_whatever_the_scrubber_raises_drops_the_record_and_its_words_are_not_logged(
    made: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(PIIScrubber):
        def scrub(self, text: str) -> str:
            raise RuntimeError(text)

    intake = TrainingDataIntake(made.consent, made.corpus, Failing(), DomainTagger())
    with caplog.at_level(logging.DEBUG):
        assert intake.submit(USER, "s", "a private thought", "prompt") is None
    assert intake.refused == {Refusal.SCRUB: 1}
    assert "private" not in caplog.text
    assert "RuntimeError" in caplog.text


def test_a_lone_surrogate_is_written_as_something_that_utf_8_has(made: Capture) -> None:
    assert made.intake.submit(USER, "s", "half a pair \ud800 here", "prompt")
    (record,) = made.corpus.records()
    assert record.content.startswith("half a pair ")


@pytest.mark.parametrize(
    "session_id",
    [f"session of my key {SECRET}", SECRET, "ann@example.com", "", "x" * 129, "half \ud800", "a/b"],
)
def test_a_session_id_that_is_no_plain_name_is_written_as_a_hash_and_the_session_stays_together(
    made: Capture, session_id: str
) -> None:
    session = made.session(session_id)
    session.start()
    session.record_prompt("ask")
    session.record_completion("answer")
    session.end()
    assert made.intake.submit(USER, session_id, "later, by another process", "prompt")
    ids = {record.session_id for record in made.corpus.records()}
    assert len(list(made.corpus.records())) == 4
    assert len(ids) == 1
    assert len(ids.pop()) == 32
    assert SECRET.encode() not in made.on_disk()
    assert b"ann@" not in made.on_disk()


@pytest.mark.parametrize("session_id", ["chat-1", "2f1d:3.b", "ab" * 16, "0" * 32, "сессия"])
def test_a_session_id_that_is_a_plain_name_is_kept(made: Capture, session_id: str) -> None:
    made.intake.submit(USER, session_id, "text", "prompt")
    (record,) = made.corpus.records()
    assert record.session_id == session_id


@pytest.mark.parametrize("stated", [f"x {SECRET}", {"key": SECRET}, "\ud800", 7, ["own"]])
def test_a_terms_class_that_is_none_is_unknown_and_not_written(
    made: Capture, stated: object
) -> None:
    made.intake.submit(USER, "s", "text", "prompt", {"terms_class": stated})
    (record,) = made.corpus.records()
    assert record.terms_class == "unknown"
    assert SECRET.encode() not in made.on_disk()


@pytest.mark.parametrize(
    ("user_id", "session_id", "content", "metadata"),
    [
        (7, "s", "text", {}),
        ("", "s", "text", {}),
        ("u" * 129, "s", "text", {}),
        ("a\0b", "s", "text", {}),
        ("\ud800", "s", "text", {}),
        (USER, 7, "text", {}),
        (USER, None, "text", {}),
        (USER, "s", b"text", {}),
        (USER, "s", None, {}),
        (USER, "s", "text", [1, 2]),
    ],
)
def test_what_is_no_text_of_a_user_and_a_session_is_refused_and_raises_nothing(
    made: Capture, user_id: Any, session_id: Any, content: Any, metadata: Any
) -> None:
    assert made.intake.submit(user_id, session_id, content, "prompt", metadata) is None
    assert made.intake.refused == {Refusal.MALFORMED: 1}
    assert list(made.corpus.records()) == []


def test_a_bad_row_costs_the_rest_of_its_batch_nothing(made: Capture) -> None:
    good = {"user_id": USER, "session_id": "s", "content": "text", "content_type": "prompt"}
    made.corpus.delete_sessions(["gone"])
    batch: list[Any] = [
        good,
        {**good, "session_id": "\ud800"},
        {**good, "user_id": "\ud800"},
        {**good, "metadata": {"terms_class": "\ud800"}},
        {**good, "session_id": "gone"},
        7,
        None,
        good,
    ]
    result = made.intake.submit_batch(batch)
    assert (result["accepted"], result["rejected"]) == (4, 4)
    assert [record.record_id for record in made.corpus.records()] == result["record_ids"]
    assert made.corpus.damaged_lines == 0


def test_a_user_whose_consent_ends_in_the_middle_costs_others_of_the_batch_nothing(
    made: Capture,
) -> None:
    class Revoking(DomainTagger):
        def tag(self, text: str) -> str:
            if text == "last":
                made.consent.revoke_consent("other")
            return super().tag(text)

    made.consent.record_consent("other", True, "1.0")
    intake = TrainingDataIntake(made.consent, made.corpus, PIIScrubber(), Revoking())
    rows = [
        {"user_id": user, "session_id": "s", "content": text, "content_type": "prompt"}
        for user, text in (("other", "first"), (USER, "second"), (USER, "last"))
    ]
    assert intake.submit_batch(rows)["accepted"] == 2
    assert {record.user_id for record in made.corpus.records()} == {USER}


@pytest.mark.parametrize("given", ["many " + SECRET, None, -3, 10**30, [1]])
def test_figures_that_are_none_are_no_place_for_a_text(made: Capture, given: Any) -> None:
    session = made.session("s")
    session.start()
    session.record_prompt("Do it")
    session.end([SECRET], [SECRET], corrections=given, errors=given)  # type: ignore[arg-type]
    close = list(made.corpus.records())[-1]
    assert close.closes
    assert close.metadata["outcome"] == ""
    assert close.metadata["corrections"] == close.metadata["errors"]
    assert 0 <= close.metadata["errors"] <= 1_000_000
    assert SECRET.encode() not in made.on_disk()


def test_a_record_id_of_another_form_becomes_a_hash_that_is_the_same_every_time(
    made: Capture,
) -> None:
    drafts = [Draft(USER, "s", "text", "prompt", record_id=f"row {SECRET}") for _ in range(2)]
    first, second = (made.intake.keep(draft) for draft in drafts)
    assert first is not None
    assert second is not None
    assert first.record_id == second.record_id
    assert SECRET.encode() not in made.on_disk()
