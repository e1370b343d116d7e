"""The capture specification's own example (§7), with only the import changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

EXAMPLE = """
import os
import uuid

from node.capture import (
    CaptureSession,
    ConsentManager,
    TrainingCorpus,
    PIIScrubber,
    DomainTagger,
)

# --- One-time setup (app startup) ---

USER_ID_PATH = os.path.expanduser("~/.groove/user_id")

def get_or_create_user_id() -> str:
    if os.path.exists(USER_ID_PATH):
        with open(USER_ID_PATH) as f:
            return f.read().strip()
    uid = uuid.uuid4().hex
    os.makedirs(os.path.dirname(USER_ID_PATH), exist_ok=True)
    with open(USER_ID_PATH, "w") as f:
        f.write(uid)
    return uid

user_id = get_or_create_user_id()
consent = ConsentManager()  # db at ~/.groove/consent.db
corpus = TrainingCorpus()  # JSONL at ~/.groove/training_data/
scrubber = PIIScrubber()
tagger = DomainTagger()

# --- User opts in (settings toggle) ---

consent.record_consent(user_id, opted_in=True, consent_version="1.0")

# --- Per-session capture ---

session_id = uuid.uuid4().hex
capture = CaptureSession(user_id, session_id, consent, corpus, scrubber, tagger)
capture.start()

# User sends a prompt
capture.record_prompt("Summarize the city council meeting notes", metadata={
    "model_name": "qwen3-moe-a3b",
})

# Model returns a completion
capture.record_completion("The city council voted 7-2 to approve...", metadata={
    "model_name": "qwen3-moe-a3b",
    "token_count": 142,
    "latency_ms": 820,
})

# Session ends — capture full conversation
capture.record_conversation([
    {"role": "user", "content": "Summarize the city council meeting notes"},
    {"role": "assistant", "content": "The city council voted 7-2 to approve..."},
], metadata={"turn_count": 2, "total_tokens": 168})

summary = capture.end()
after_end()

# --- User opts out and deletes data ---

from node.capture.intake import TrainingDataIntake

intake = TrainingDataIntake(consent, corpus, scrubber, tagger)
result = intake.delete_user(user_id)
"""


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path / ".groove"))
    seen: dict[str, Any] = {"home": tmp_path / ".groove"}

    def after_end() -> None:
        """Look at what stands in the middle of the example, before it is deleted."""
        from node.capture import CorpusStats

        stats = CorpusStats(seen["corpus"], seen["consent"])
        seen["stats"] = (stats.summary(), stats.daily_growth(days=7), stats.domain_breakdown())
        stats.print_report()
        seen["records"] = list(seen["corpus"].records())
        seen["exported"] = seen["corpus"].export_jsonl(tmp_path / "mine.jsonl")
        seen["history"] = seen["consent"].get_consent_history(seen["user_id"])
        seen["asked"] = seen["consent"].request_deletion(seen["user_id"])

    seen["after_end"] = after_end
    exec(compile(EXAMPLE, "spec-7", "exec"), seen)
    return seen


def test_the_session_says_what_it_captured(example: dict[str, Any]) -> None:
    summary = example["summary"]
    assert summary.keys() == {
        "session_id",
        "records_captured",
        "bytes_captured",
        "domains",
        "duration_seconds",
    }
    assert summary["session_id"] == example["session_id"]
    assert summary["records_captured"] == 3
    assert summary["bytes_captured"] == sum(
        len(record.content.encode()) for record in example["records"] if not record.closes
    )
    assert sum(summary["domains"].values()) == 3
    assert summary["duration_seconds"] >= 0


def test_the_statistics_count_the_three_records(example: dict[str, Any]) -> None:
    summary, growth, breakdown = example["stats"]
    assert summary.keys() == {"total_records", "storage_size_mb", "opted_in_users", "domains"}
    assert summary["total_records"] == 3
    assert summary["storage_size_mb"] >= 0
    assert summary["opted_in_users"] == 1
    assert sum(summary["domains"].values()) == 3
    assert len(growth) == 7
    assert all(day.keys() == {"date", "records"} for day in growth)
    assert growth[-1]["records"] == 3
    assert all(share.keys() == {"count", "percentage"} for share in breakdown.values())
    assert sum(share["count"] for share in breakdown.values()) == 3


def test_the_records_have_the_schema_of_the_specification(example: dict[str, Any]) -> None:
    kinds = [record.content_type for record in example["records"]]
    assert kinds == ["prompt", "completion", "conversation", "workflow"]
    prompt = example["records"][0]
    assert prompt.user_id == example["user_id"]
    assert prompt.session_id == example["session_id"]
    assert prompt.content == "Summarize the city council meeting notes"
    assert prompt.domain == "journalism"
    assert prompt.metadata == {"model_name": "qwen3-moe-a3b"}
    assert prompt.consent_version == "1.0"
    assert example["exported"] == 3  # the closing record is exported too, and counted nowhere


def test_consent_is_on_record_and_a_deletion_can_be_asked_for(example: dict[str, Any]) -> None:
    assert [entry.opted_in for entry in example["history"]] == [True]
    assert example["asked"] == {
        "user_id": example["user_id"],
        "consent_records": 1,
        "status": "pending",
    }


def test_deletion_revokes_and_leaves_no_line(example: dict[str, Any]) -> None:
    assert example["result"] == {"consent_revoked": True, "records_deleted": 3}
    assert list(example["corpus"].records()) == []
    assert not example["consent"].is_opted_in(example["user_id"])
    left = b"".join(p.read_bytes() for p in example["home"].rglob("*") if p.is_file())
    assert b"city council" not in left
