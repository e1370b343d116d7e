"""`groove-node data` as it is typed: what it refuses, what it prints, what it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
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
    for name in ("for training", "left out", "tagger agrees", "not readable", "scrub rules"):
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
    assert "Nothing was deleted." in typed("--delete")
    assert len(home.found()) == 100
    assert document(typed("--delete", "--yes", "--json"))["consent_revoked"] is True
    assert home.found() == []


def test_an_export_says_how_much_it_holds_and_of_what(typed: Typed, tmp_path: Path) -> None:
    target = tmp_path / "chat.jsonl"
    result = document(typed("--export", str(target), "--format", "chat", "--json"))
    assert (result["exported"], result["format"], result["left_out"]) == (120, "chat", {})
    assert "120 sessions in" in typed("--export", str(target), "--format", "chat")
    assert "210 records in" in typed("--export", str(target), "--leaf", "domain-2")
