"""Sources: what they yield, and that an import brings each session in exactly once."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from support_capture import NOON, USER, Capture, capture

from node.capture.sources.importing import (
    ImportRefusedError,
    ImportResult,
    Selection,
    SourceError,
    SourceSession,
    import_sessions,
    parse_share,
)
from node.capture.sources.jsonl import JsonlSource
from node.capture.sources.pydoc import PydocSource

ROOT = Path(__file__).parent.parent

IMPORTER = """
import os, sys
from pathlib import Path
from support_capture import USER, capture
from test_capture_sources import many
from node.capture.sources.importing import import_sessions
made = capture(Path(sys.argv[1]))
print("ready", flush=True)
import_sessions(many(), made.intake, USER, "test")
"""


def one(number: int, **changes: object) -> SourceSession:
    fields: dict[str, object] = {
        "key": f"key-{number}",
        "prompt": f"What does function {number} do?",
        "completion": f"It returns {number}.",
        "group": f"module-{number // 5}",
        "source_provider": "test",
        "source_model": "",
        "terms_class": "open",
    }
    return SourceSession(**{**fields, **changes})  # type: ignore[arg-type]


def many() -> list[SourceSession]:
    return [one(number) for number in range(4_000)]


@pytest.fixture
def made(tmp_path: Path) -> Capture:
    return capture(tmp_path / "home")


def run(made: Capture, sessions: list[SourceSession], **options: object) -> ImportResult:
    return import_sessions(sessions, made.intake, USER, "test", **options)  # type: ignore[arg-type]


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_an_imported_session_is_whole_closed_and_scrubbed(made: Capture) -> None:
    result = run(made, [one(1, prompt="Ask ann@example.com", timestamp=NOON - 5)])
    assert result == ImportResult(added=1, scrubbed=1)
    (session,) = made.corpus.sessions()
    assert (session.prompt, session.completion) == ("Ask [EMAIL]", "It returns 1.")
    assert (session.source, session.group, session.terms_class) == ("test", "module-0", "open")
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
    assert run(made, [one(1), one(2)]) == ImportResult(added=1, skipped_known=1)
    records = list(made.corpus.records())
    assert len(records) == len({record.record_id for record in records}) == 6
    assert {session.completion for session in made.corpus.sessions()} == {
        "It returns 1.",
        "It returns 2.",
    }


def test_an_import_that_is_killed_and_run_again_captures_all_once(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", IMPORTER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env, cwd=ROOT) as importer:
        assert importer.stdout is not None
        importer.stdout.readline()
        corpus = capture(tmp_path).corpus
        while corpus.size_bytes() < 200_000 and importer.poll() is None:
            pass
        importer.send_signal(signal.SIGKILL)
    made = capture(tmp_path)
    before = sum(1 for _ in made.corpus.records())
    assert 0 < before < 12_000
    result = run(made, many())
    assert result.added + result.skipped_known == 4_000
    records = Counter(record.record_id for record in made.corpus.records())
    assert len(records) == 12_000
    assert set(records.values()) == {1}


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
            ],
            "source_model": "gpt-4o",
        },
    ]
    plain = write(tmp_path / "a.jsonl", rows)
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    first, second = JsonlSource(plain)
    assert (first.prompt, first.completion, first.group) == ("p1", "c1", "g")
    assert (first.timestamp, first.terms_class) == (5.0, "open")
    assert (second.prompt, second.completion, second.terms_class) == ("p2", "c2", "restricted")
    assert list(JsonlSource(packed)) == [first, second]


def test_what_an_owner_imports_without_a_word_of_its_origin_is_the_owners(tmp_path: Path) -> None:
    rows = [{"prompt": "Same Ask", "completion": c} for c in ("one", "two")]
    first, second = JsonlSource(write(tmp_path / "a.jsonl", rows))
    assert first.terms_class == "own"
    assert first.key != second.key
    assert first.group == second.group  # two answers to one ask stay on one side of a split


def test_malformed_lines_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"prompt": "p", "completion": "c"}\n{"prompt": \n\n[1]\n{"prompt": "x"}\n\xff\xfe\n'
        b'{"prompt": "q", "completion": "d", "timestamp": "soon"}'
    )
    source = JsonlSource(path)
    assert [session.prompt for session in source] == ["p", "q"]
    assert source.malformed == 4


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
    asks = {session.prompt: session for session in source}
    assert list(asks) == [
        f"In {package}, what does public(a, b, *rest, c, **more) do?",
        f"In {package}, what does Thing() do?",
        f"In {package}, what does Thing.method(x) do?",
    ]
    first = next(iter(asks.values()))
    assert first.completion == (
        f"{package}.core.public(a, b, *rest, c, **more)\n"
        "Return the pkg.Thing that a and *b* make together, if any."
    )
    assert (first.group, first.terms_class) == (f"{package}.core", "open")
    assert source.unreadable == 1


def test_pydoc_of_networkx_is_large_and_the_same_every_time() -> None:
    sessions = list(PydocSource(["networkx"]))
    assert len(sessions) > 700
    assert sessions == list(PydocSource(["networkx"]))
    assert len({session.prompt.lower() for session in sessions}) == len(sessions)
    assert len({session.key for session in sessions}) == len(sessions)


@pytest.mark.parametrize("name", ["no_such_package_here", "../etc", "sys"])
def test_pydoc_of_something_else_is_the_owners_error(name: str) -> None:
    with pytest.raises(SourceError, match="is not installed, or is not Python"):
        list(PydocSource([name]))
