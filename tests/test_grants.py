"""Since when a source and a folder have been allowed without a break."""

from __future__ import annotations

from pathlib import Path

from node.consent import CURRENT_CONSENT_VERSION, ConsentRecord, Scope
from node.consent.grants import Grants

CLAUDE, LLM = "claude-code", "llm"
WORK, KETTLE, LID = "/work", "/work/kettle", "/work/kettle/lid"
NOW = 1_000.0


def said(at: float, *folders: str, sources: tuple[str, ...] = (CLAUDE, LLM)) -> ConsentRecord:
    """A decision; without sources everything is withdrawn."""
    scopes = frozenset({Scope.CAPTURE} if sources else ())
    places = frozenset(map(Path, folders))
    return ConsentRecord(
        "ann", bool(sources), CURRENT_CONSENT_VERSION, at, {}, scopes, frozenset(sources), places
    )


def test_a_folder_counts_from_its_own_grant_and_a_source_from_its_own() -> None:
    grants = Grants([said(10, KETTLE), said(20, KETTLE, "/other")])
    assert grants.since(CLAUDE, (LID,), NOW) == 10
    assert grants.since(CLAUDE, (LID, "/other"), NOW) == 20
    assert grants.since(CLAUDE, ("/nowhere",), NOW) == NOW
    assert grants.since(LLM, (), NOW) == 10


def test_a_withdrawal_is_a_break() -> None:
    grants = Grants([said(10, KETTLE), said(20, sources=()), said(30, KETTLE)])
    assert grants.since(CLAUDE, (KETTLE,), NOW) == 30
    assert grants.since(LLM, (), NOW) == 30


def test_a_folder_that_its_parent_was_allowed_with_has_no_break() -> None:
    assert Grants([said(10, WORK), said(20, KETTLE)]).since(CLAUDE, (LID,), NOW) == 10
    assert Grants([said(10, KETTLE), said(20, KETTLE, WORK)]).since(CLAUDE, (LID,), NOW) == 10
    assert Grants([said(10, KETTLE), said(20, WORK)]).since(CLAUDE, (WORK,), NOW) == 20


def test_a_clock_that_went_back_does_not_date_a_grant_before_the_withdrawal() -> None:
    grants = Grants([said(10, KETTLE), said(20, sources=()), said(5, KETTLE)])
    assert grants.since(CLAUDE, (KETTLE,), NOW) == 20


def test_a_grant_that_is_dated_in_the_future_counts_from_now() -> None:
    assert Grants([said(9_000, KETTLE)]).since(CLAUDE, (KETTLE,), NOW) == NOW
