"""Sources: what they yield, and that an import brings each session in exactly once."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support_capture import NOON, USER, Capture, capture
from support_faults import fast_folder

from node.capture.intake import CONTENT_CHARS_MAX
from node.capture.record import ContentType
from node.capture.sources.importing import (
    ImportRefusedError,
    ImportResult,
    Selection,
    import_sessions,
    parse_share,
)
from node.capture.sources.jsonl import JsonlSource
from node.capture.sources.pydoc import PydocSource
from node.capture.sources.source import SourceError, SourceSession, Turn
from node.capture.terms import why_left_out


def one(
    number: int, *, prompt: str = "", at: float | None = None, **changes: object
) -> SourceSession:
    """A session of one ask and one answer."""
    turns = (
        ask(prompt or f"What does function {number} do?", at=at),
        answer(f"It returns {number}.", at=at),
    )
    whole = SourceSession(f"key-{number}", turns, f"module-{number // 5}", outcome="accepted")
    return replace(whole, **changes)  # type: ignore[arg-type]


def ask(text: str, key: str = "ask", at: float | None = None) -> Turn:
    return Turn(key, ContentType.PROMPT, text, at)


def answer(text: str, key: str = "answer", at: float | None = None) -> Turn:
    return Turn(key, ContentType.COMPLETION, text, at, "test", "", "open")


def texts(session: SourceSession) -> list[str]:
    return [turn.text for turn in session.turns]


def many() -> list[SourceSession]:
    return [one(number) for number in range(4_000)]


@pytest.fixture
def made(tmp_path: Path) -> Capture:
    return capture(tmp_path / "home")


def run(made: Capture, sessions: list[SourceSession], **options: object) -> ImportResult:
    return import_sessions(sessions, made.intake, USER, "jsonl", **options)  # type: ignore[arg-type]


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_an_imported_session_is_whole_closed_and_scrubbed(made: Capture) -> None:
    result = run(made, [one(1, prompt="Ask ann@example.com", at=NOON - 5)])
    assert result == ImportResult(added=1, records=2, scrubbed=1)
    (session,) = made.corpus.sessions()
    assert (session.prompt, session.completion) == ("Ask [EMAIL]", "It returns 1.")
    assert (session.source, session.terms_class) == ("jsonl", "open")
    assert (session.quality, session.tier) == (90, "A")
    assert b"module-0" not in made.on_disk()  # a group can name a folder: its hash is kept
    assert session.group
    assert (session.opened, session.closed, session.outcome) == (NOON - 5, True, "accepted")


def test_a_second_import_adds_nothing(made: Capture) -> None:
    sessions = [one(number) for number in range(300)]
    assert run(made, sessions).added == 300
    size = made.corpus.size_bytes()
    assert run(made, sessions) == ImportResult(skipped_known=300)
    assert made.corpus.size_bytes() == size


def test_a_half_written_session_is_completed_without_a_duplicate(made: Capture) -> None:
    run(made, [one(1), one(2)])
    made.corpus.close()
    (path,) = made.corpus.files()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]))  # the second session has lost its answer and its end
    assert run(made, [one(1), one(2)]) == ImportResult(grown=1, records=1, skipped_known=1)
    records = list(made.corpus.records())
    assert len(records) == len({record.record_id for record in records}) == 6
    assert {session.completion for session in made.corpus.sessions()} == {
        "It returns 1.",
        "It returns 2.",
    }


def test_shares_of_the_same_source_are_disjoint_and_keep_groups_together(made: Capture) -> None:
    shares = [(0.0, 0.65), (0.65, 0.83), (0.83, 1.0)]
    parts = [{s.key for s in many() if s in Selection(share=share)} for share in shares]
    assert sum(len(part) for part in parts) == len(set().union(*parts)) == 4_000
    groups = [{key_group(key) for key in part} for part in parts]
    assert not groups[0] & groups[1]
    assert not groups[1] & groups[2]
    assert abs(len(parts[0]) / 4_000 - 0.65) < 0.06


def key_group(key: str) -> int:
    return int(key.removeprefix("key-")) // 5


def test_the_two_parts_of_a_share_make_it_whole(made: Capture) -> None:
    share = (0.0, 0.65)
    first = {s.key for s in many() if s in Selection(share, part=(0.0, 0.5))}
    second = {s.key for s in many() if s in Selection(share, part=(0.5, 1.0))}
    assert not first & second
    assert first | second == {s.key for s in many() if s in Selection(share)}
    assert abs(len(first) - len(second)) < 300


def test_a_limit_takes_the_first_and_a_dry_run_writes_nothing(made: Capture) -> None:
    assert run(made, many(), dry_run=True, select=Selection(limit=7)).added == 7
    assert list(made.corpus.records()) == []
    assert run(made, many(), select=Selection(limit=7)).added == 7
    assert len(list(made.corpus.sessions())) == 7


@pytest.mark.parametrize("text", ["", "0.5", "0.5:0.2", "a:b", "-1:1", "0:2", "0.3:0.3"])
def test_a_wrong_share_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"0\.0:0\.65"):
        parse_share(text)
    assert parse_share("0:0.5") == (0.0, 0.5)


def test_without_consent_nothing_is_imported(tmp_path: Path) -> None:
    made = capture(tmp_path, granted=False)
    with pytest.raises(ImportRefusedError) as caught:
        run(made, [one(1)])
    assert caught.value.next_step == "groove-node consent grant capture"
    assert made.corpus.files() == []


def test_two_imports_at_once_are_refused(made: Capture) -> None:
    def importing_twice() -> list[SourceSession]:
        with pytest.raises(ImportRefusedError, match="another import"):
            run(made, [one(2)])
        return [one(1)]

    class Nested(list[SourceSession]):
        def __iter__(self):  # type: ignore[no-untyped-def]
            return iter(importing_twice())

    assert run(made, Nested()).added == 1


def test_consent_that_ends_during_an_import_stops_it(made: Capture) -> None:
    class Revoking(list[SourceSession]):
        def __iter__(self):  # type: ignore[no-untyped-def]
            yield from (one(number) for number in range(256))
            made.consent.revoke_consent(USER)
            yield from (one(number) for number in range(256, 300))

    result = run(made, Revoking())
    assert (result.added, result.refused) == (256, 44)


def test_jsonl_reads_pairs_and_messages_plain_and_gzipped(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p1", "completion": "c1", "group": "g", "timestamp": 5, "terms_class": "open"},
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "p2"},
                {"role": "assistant", "content": "c2"},
                {"role": "user", "content": [{"type": "text", "text": "p3"}]},
                {"role": "assistant", "content": "c3"},
            ],
            "source_model": "gpt-4o",
        },
    ]
    plain = write(tmp_path / "a.jsonl", rows)
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    first, second = JsonlSource(plain)
    assert (texts(first), first.group) == (["p1", "c1"], "g")
    assert {(turn.timestamp, turn.terms_class) for turn in first.turns} == {(5.0, "open")}
    assert texts(second) == ["p2", "c2", "p3", "c3"]
    assert {turn.terms_class for turn in second.turns} == {"restricted"}
    assert list(JsonlSource(packed)) == [first, second]


def test_what_an_owner_imports_without_a_word_of_its_origin_is_the_owners(tmp_path: Path) -> None:
    rows = [{"prompt": "Same Ask", "completion": c} for c in ("one", "two")]
    first, second = JsonlSource(write(tmp_path / "a.jsonl", rows))
    assert {turn.terms_class for turn in first.turns} == {"own"}
    assert first.key != second.key
    assert first.group == second.group  # two answers to one ask stay on one side of a split


def test_malformed_lines_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"prompt": "p", "completion": "c"}\n{"prompt": \n\n[1]\n{"prompt": "x"}\n\xff\xfe\n'
        b'{"prompt": "q", "completion": "d", "timestamp": "soon"}'
    )
    source = JsonlSource(path)
    assert [session.turns[0].text for session in source] == ["p", "q"]
    assert source.malformed == 4
    assert [number for number, _ in source.places] == [2, 4, 5, 6]
    assert source.problems == {
        "no JSON": 2,
        "no JSON object": 1,
        "neither prompt and completion nor messages of both user and assistant": 1,
    }


@pytest.mark.parametrize(
    ("stated", "outcome", "quality"),
    [
        ({}, "", None),
        ({"outcome": "iterated", "accepted": True}, "iterated", None),
        ({"outcome": "splendid"}, "", None),
        ({"accepted": True}, "accepted", None),
        ({"accepted": False, "rating": "up"}, "rejected", None),
        ({"rating": "Thumbs up"}, "accepted", None),
        ({"rating": 5}, "accepted", None),
        ({"rating": -1}, "rejected", None),
        ({"rating": 1}, "", None),  # a thumb up, or one star of five
        ({"rating": ["up"], "accepted": "yes", "outcome": {}}, "", None),
        ({"quality": 60}, "", 60),
        ({"quality": 0.6}, "", None),
        ({"quality": 101}, "", None),
    ],
)
def test_a_row_is_as_good_as_it_says_itself_and_else_nothing_is_known(
    made: Capture, tmp_path: Path, stated: dict[str, Any], outcome: str, quality: int | None
) -> None:
    row = {"prompt": "p", "completion": "c", **stated}
    (session,) = JsonlSource(write(tmp_path / "a.jsonl", [row]))
    assert (session.outcome, session.quality) == (outcome, quality)
    run(made, [session])
    (kept,) = made.corpus.sessions()
    worth = {"": None, "accepted": 90, "iterated": 55, "rejected": 25}[outcome]
    assert kept.quality == (worth if quality is None else quality)


def test_a_session_of_which_nothing_is_known_has_no_tier_and_may_be_trained_on(
    made: Capture, tmp_path: Path
) -> None:
    run(made, list(JsonlSource(write(tmp_path / "a.jsonl", [{"prompt": "p", "completion": "cc"}]))))
    (kept,) = made.corpus.sessions()
    assert (kept.tier, why_left_out(kept)) == ("", None)


def test_what_was_read_before_a_file_breaks_off_is_in_the_corpus(
    made: Capture, tmp_path: Path
) -> None:
    rows = [
        {"prompt": f"p{n}", "completion": hashlib.sha256(b"%d" % n).hexdigest()}
        for n in range(3_000)
    ]
    packed = gzip.compress(write(tmp_path / "a.jsonl", rows).read_bytes())
    path = tmp_path / "b.jsonl.gz"
    path.write_bytes(packed[:-20_000])
    with pytest.raises(SourceError, match="damaged gzip data") as caught:
        run(made, JsonlSource(path))  # type: ignore[arg-type]
    kept = len(list(made.corpus.sessions()))
    assert kept % 256
    assert f"({kept:,} of its sessions)" in caught.value.unchanged


def test_a_file_that_cannot_be_read_is_the_owners_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"absent\.jsonl cannot be read: No such file"):
        list(JsonlSource(tmp_path / "absent.jsonl"))
    with pytest.raises(SourceError, match="Is a directory"):
        list(JsonlSource(tmp_path))
    whole = gzip.compress(b'{"prompt": "p", "completion": "c"}\n' * 100)
    for name, data in {"cut": whole[:-20], "mixed": whole[:12] + b"\0" * 40}.items():
        path = tmp_path / f"{name}.jsonl.gz"
        path.write_bytes(data)
        with pytest.raises(SourceError, match="damaged gzip data"):
            list(JsonlSource(path))


PACKAGE = '''
"""A module."""
import os
raise RuntimeError("a source never imports what it reads")

def public(a, b=1, *rest, c, **more):
    """Return the :class:`~pkg.Thing` that ``a`` and *b* make
    together, if any.

    A second paragraph.
    """

def short():
    """Too short."""

def _private():
    """Private, although its docstring is quite long enough to be taken."""

class Thing:
    """A thing with a docstring that is certainly long enough."""

    def method(self, x):
        """Do something to x that needs more than forty characters."""

    @classmethod
    def make(cls, y):
        """DO SOMETHING TO X THAT NEEDS MORE THAN FORTY CHARACTERS."""
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "groove_pydoc_example"
    (folder / "tests").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "core.py").write_text(PACKAGE)
    (folder / "broken.py").write_text("def (:\n")
    (folder / "tests" / "test_core.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "groove_pydoc_example"


def test_pydoc_asks_for_public_names_and_answers_with_place_and_first_paragraph(
    package: str,
) -> None:
    source = PydocSource([package])
    asks = {session.turns[0].text: session for session in source}
    assert list(asks) == [
        f"In {package}, what does public(a, b, *rest, c, **more) do?",
        f"In {package}, what does Thing() do?",
        f"In {package}, what does Thing.method(x) do?",
    ]
    first = next(iter(asks.values()))
    assert first.turns[1].text == (
        f"{package}.core.public(a, b, *rest, c, **more)\n"
        "Return the pkg.Thing that a and *b* make together, if any."
    )
    assert (first.group, first.turns[1].terms_class) == (f"{package}.core", "open")
    assert source.unreadable == 1


def test_pydoc_of_networkx_is_large_and_the_same_every_time() -> None:
    sessions = list(PydocSource(["networkx"]))
    assert len(sessions) > 700
    assert sessions == list(PydocSource(["networkx"]))
    assert len({session.turns[0].text.lower() for session in sessions}) == len(sessions)
    assert len({session.key for session in sessions}) == len(sessions)


@pytest.mark.parametrize("name", ["no_such_package_here", "../etc", "sys"])
def test_pydoc_of_something_else_is_the_owners_error(name: str) -> None:
    with pytest.raises(SourceError, match="is not installed, or is not Python"):
        list(PydocSource([name]))


def talk(length: int, *, closed: bool = True, **changes: object) -> SourceSession:
    """A session of so many asks, each answered."""
    turns = [
        turn
        for number in range(length)
        for turn in (ask(f"ask {number}", f"a{number}"), answer(f"answer {number}", f"b{number}"))
    ]
    return one(0, turns=tuple(turns), closed=closed, **changes)


def contents(made: Capture) -> list[str]:
    return [record.content for record in made.corpus.records() if not record.closes]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_session_read_in_any_pieces_and_any_order_comes_to_the_same_records(
    data: st.DataObject,
) -> None:
    with fast_folder() as folder:
        whole, pieces = capture(folder / "whole"), capture(folder / "pieces")
        session = talk(4)
        run(whole, [session])
        first = data.draw(st.integers(1, 7), "the first reading")
        run(pieces, [replace(session, turns=session.turns[:first], closed=False)])
        for _ in range(data.draw(st.integers(0, 3), "readings between")):
            low = data.draw(st.integers(0, first))
            high = data.draw(st.integers(low, 8))
            part = replace(session, turns=session.turns[low:high], closed=False)
            run(pieces, [part])
        run(pieces, [session])
        assert sorted(contents(pieces)) == sorted(contents(whole))
        ids = [sorted(r.record_id for r in made.corpus.records()) for made in (whole, pieces)]
        assert ids[0] == ids[1]


def test_a_session_that_grows_gets_what_is_new_and_is_closed_again(made: Capture) -> None:
    assert run(made, [talk(1)]).added == 1
    assert run(made, [talk(2)]) == ImportResult(grown=1, records=2)
    assert contents(made) == ["ask 0", "answer 0", "ask 1", "answer 1"]
    (session,) = made.corpus.sessions()
    assert session.closed
    assert sum(record.closes for record in made.corpus.records()) == 2


def test_a_session_that_may_go_on_has_no_closing_record_until_it_is_over(made: Capture) -> None:
    run(made, [talk(1, closed=False)])
    assert not any(record.closes for record in made.corpus.records())
    assert run(made, [talk(1)]) == ImportResult(grown=1)
    assert sum(record.closes for record in made.corpus.records()) == 1


def test_a_turn_that_is_dropped_is_counted_and_the_rest_of_the_session_stays(
    made: Capture,
) -> None:
    session = talk(2)
    long = replace(session.turns[1], text="x" * (CONTENT_CHARS_MAX + 1))
    result = run(made, [replace(session, turns=(session.turns[0], long, *session.turns[2:]))])
    assert (result.added, result.records, result.dropped) == (1, 3, {"too long": 1})


def test_a_first_ask_that_is_dropped_takes_its_answers_along_and_the_next_begins_the_session(
    made: Capture,
) -> None:
    session = talk(2)
    long = replace(session.turns[0], text="x" * (CONTENT_CHARS_MAX + 1))
    result = run(made, [replace(session, turns=(long, *session.turns[1:]))])
    assert result.dropped == {"too long": 1, "without its ask": 1}
    (kept,) = made.corpus.sessions()
    assert (kept.prompt, kept.completion) == ("ask 1", "answer 1")
    assert run(made, [replace(session, turns=(long, *session.turns[1:]))]).records == 0


def test_sessions_of_folders_that_are_not_marked_are_counted_and_left_out(made: Capture) -> None:
    made.consent.allow(USER, sources=["claude-code"], folders=[Path("/work/mine")])
    folders = ["/work/mine/api", "/work/other", "/work/other", None]
    sessions = [
        replace(one(n), folders=(folder,) if folder else ()) for n, folder in enumerate(folders)
    ]
    result = import_sessions(sessions, made.intake, USER, "claude-code")
    assert (result.added, result.not_allowed) == (1, 3)
    assert result.folders == {"/work/other": 2}
    assert b"/work/other" not in made.on_disk()


def test_a_folder_that_is_withdrawn_while_its_sessions_are_scrubbed_is_not_written(
    made: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.consent.allow(USER, sources=["codex"], folders=[Path("/work/a"), Path("/work/b")])
    really = made.corpus.add_records

    def withdrawn_first(records: Any, **how: Any) -> int:
        made.consent.disallow(USER, folders=[Path("/work/a")])
        return really(records, **how)

    monkeypatch.setattr(made.corpus, "add_records", withdrawn_first)
    sessions = [replace(one(n), folders=(f"/work/{name}",)) for n, name in enumerate("ab")]
    result = import_sessions(sessions, made.intake, USER, "codex")
    assert (result.added, result.refused) == (1, 1)
    assert contents(made) == ["What does function 1 do?", "It returns 1."]


def test_turns_before_a_date_are_left_out_and_those_without_one_are_not(made: Capture) -> None:
    sessions = [one(1, at=NOON - 100), one(2, at=NOON + 100), one(3)]
    assert run(made, sessions, since=NOON).added == 2


def test_a_date_that_cannot_be_true_is_replaced_and_hurts_nothing(made: Capture) -> None:
    wrong = [float("nan"), float("inf"), -1e18, 1e18, NOON + 1e8]
    assert run(made, [one(n, at=at) for n, at in enumerate(wrong)]).added == len(wrong)
    assert {record.timestamp for record in made.corpus.records()} == {NOON}


def test_a_session_that_the_owner_has_deleted_is_not_imported_again(made: Capture) -> None:
    run(made, [one(1)])
    (session,) = made.corpus.sessions()
    made.corpus.deleted.add([session.session_id])
    made.corpus.close()
    for path in made.corpus.files():
        path.unlink()
    result = run(made, [one(1)])
    assert (result.added, result.dropped) == (0, {"deleted by the owner": 2})


def test_what_a_source_tells_of_a_session_is_scrubbed(made: Capture) -> None:
    run(made, [one(1, metadata={"branch of ann@example.com": "mail bob@example.com"})])
    close = next(record for record in made.corpus.records() if record.closes)
    assert close.metadata["branch of [EMAIL]"] == "mail [EMAIL]"


def test_a_conversation_with_an_id_goes_on_in_the_next_file(made: Capture, tmp_path: Path) -> None:
    said = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}]
    more = [*said, {"role": "user", "content": "q"}, {"role": "assistant", "content": "d"}]
    for messages, records in ((said, 2), (more, 2)):
        path = write(tmp_path / "a.jsonl", [{"session_id": "s-1", "messages": messages}])
        assert run(made, list(JsonlSource(path))).records == records
    assert len(list(made.corpus.sessions())) == 1
