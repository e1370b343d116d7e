"""`groove-node data` as it is typed: what it refuses, what it prints, what it leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support_capture import record
from support_faults import fast_folder
from support_rights import World, world

from node.cli import main

Typed = Callable[..., str]


@pytest.fixture(scope="module")
def made() -> Iterator[World]:
    with fast_folder() as folder, pytest.MonkeyPatch.context() as patch:
        yield world(folder, patch)


@pytest.fixture
def home(made: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("GROOVE_HOME", str(made.home))
    monkeypatch.setenv("GROOVE_STATE", str(made.folder / "world" / "state"))
    made.restore()
    return made


@pytest.fixture
def typed(home: World, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Runs a command and gives what it printed; a failure's text if a code is expected."""

    def run(*words: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["data", *words])
        assert ended.value.code == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    return run


def document(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found


def test_statistics_are_read_by_people_and_by_programs(typed: Typed) -> None:
    shown = typed("--stats")
    assert "240 in 120 sessions" in shown and "code 140, planning 100" in shown
    for name in ("for training", "left out", "tagger agreement", "not readable", "scrub rules"):
        assert name in shown
    figures = document(typed("--stats", "--json"))
    assert {"total_records", "storage_size_mb", "opted_in_users", "domains"} <= figures.keys()
    assert figures["training"]["left_out_records"] == 0


@pytest.mark.parametrize(
    "words",
    [
        ("--user", "somebody"),
        ("--stats", "--domain", "code"),
        ("--delete", "--leaf", "domain-2"),
        ("--delete", "--format", "chat"),
        ("--export", "x.jsonl", "--session", "s-001"),
        ("--rescan", "--after", "7d"),
        ("--stats", "--delete"),
        ("--delete", "--after", "someday"),
        ("--delete", "--empty-session"),
    ],
)
def test_an_option_that_would_not_be_heeded_is_refused_and_nothing_is_done(
    typed: Typed, home: World, words: tuple[str, ...]
) -> None:
    assert typed(*words, code=2).startswith("error: ")
    assert len(home.found()) == 100


def test_a_filtered_deletion_says_what_it_did_and_that_consent_stays(
    typed: Typed, home: World
) -> None:
    shown = typed("--delete", "--session", "s-001", "--session", "s-055", "--yes")
    assert "4 records of 2 sessions" in shown and "as it was" in shown
    assert "retracted   1 leaf\n" in shown and "to retrain  2 leaves\n" in shown
    assert home.found(["zymurgy001", "zymurgy055"]) == []


def test_deleting_everything_asks_first(typed: Typed, home: World) -> None:
    refused = typed("--delete", code=2)
    assert "Delete all 240 records of 120 sessions, remove the 4 leaves made of them" in refused
    assert "retract 1 leaf and withdraw your consent to everything?" in refused
    assert "Nothing was deleted." in refused and "--yes" in refused
    assert len(home.found()) == 100
    assert document(typed("--delete", "--yes", "--json"))["consent_revoked"] is True
    assert home.found() == []


def test_a_question_about_filters_counts_what_whole_sessions_come_to(
    typed: Typed, home: World
) -> None:
    home.open().corpus.add_records([record(900, session_id="s-007", domain="planning")])
    refused = typed("--delete", "--domain", "planning", code=2)
    whole = "Delete 103 records of 51 sessions (whole sessions: the filters fit 101 of the records)"
    assert f"{whole}, retract 1 leaf and train 2 leaves again? Consent stays" in refused


def test_after_a_deletion_it_is_said_whether_an_import_takes_it_in_again(typed: Typed) -> None:
    assert "No import takes these sessions in again." in typed(
        "--delete", "--session", "s-001", "--yes"
    )
    assert "an import takes it in again" in typed("--delete", "--yes")


def test_a_user_who_is_not_here_is_named_and_nothing_is_deleted(typed: Typed, home: World) -> None:
    refused = typed("--delete", "--user", "nobody", "--yes", code=1)
    assert "no such user: 'nobody'" in refused and "Nothing was written or deleted." in refused
    assert len(home.found()) == 100 and home.open().consent.is_opted_in(home.user)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--domain", "coed"), "Did you mean 'code'? There are code, planning."),
        (("--user", "nobody"), "no such user: 'nobody'"),
        (("--after", "2099-01-01"), "nothing that is stored fits all of these filters"),
        (("--session", "nosuch", "--session", "s-001"), "no such session: nosuch"),
    ],
)
def test_a_filter_that_fits_nothing_is_refused_and_no_file_written(
    typed: Typed, home: World, tmp_path: Path, words: tuple[str, ...], why: str
) -> None:
    assert why in typed("--delete", *words, "--yes", code=1)
    assert len(home.found()) == 100
    if "--session" not in words:
        target = tmp_path / "mine.jsonl"
        assert why in typed("--export", str(target), *words, code=1)
        assert not target.exists()


def test_vectors_that_are_not_there_yet_are_told(
    typed: Typed, home: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(home.home / "embeddings")
    with pytest.raises(SystemExit):
        main(["data", "--export", str(tmp_path / "mine.jsonl"), "--vectors"])
    assert "there are no vectors yet" in capsys.readouterr().err


def test_an_export_says_how_much_it_holds_and_of_what(typed: Typed, tmp_path: Path) -> None:
    target = tmp_path / "chat.jsonl"
    result = document(typed("--export", str(target), "--format", "chat", "--json"))
    assert (result["exported"], result["format"], result["left_out"]) == (120, "chat", {})
    assert "120 sessions in" in typed("--export", str(target), "--format", "chat")
    assert "140 records (and 70 closing rows) in" in typed(
        "--export", str(target), "--leaf", "domain-2"
    )
