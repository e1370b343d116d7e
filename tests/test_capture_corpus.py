"""The corpus on disk: its lines prove themselves, survive a crash, and go when they are deleted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support_capture import NOON, USER, HandClock, capture, record

from node.capture import CorpusStats, TrainingCorpus
from node.capture.corpus import CorpusError
from node.capture.record import TrainingRecord, decode_line, encode_line

ROOT = Path(__file__).parent.parent
DAY_S = 86_400.0

EXITER = """
import sys, weakref
from support_capture import record
from node.capture import TrainingCorpus
held = set()
weakref.finalize(held.__class__, lambda: [corpus.flush() for corpus in held])  # the first runs last
corpus = TrainingCorpus(sys.argv[1])
held.add(corpus)
corpus.add_record(record(1))
"""

WRITER = """
import sys
from support_capture import record
from node.capture import TrainingCorpus
corpus = TrainingCorpus(sys.argv[1])
number = int(sys.argv[2])
print("ready", flush=True)
while True:
    corpus.add_record(record(number))
    number += 1
"""

texts = st.text(max_size=200)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


@pytest.fixture
def corpus(tmp_path: Path) -> TrainingCorpus:
    return TrainingCorpus(tmp_path / "training_data", clock=HandClock())


@given(content=st.text(), metadata=st.dictionaries(texts, json_values, max_size=4))
def test_a_line_gives_its_record_back(content: str, metadata: dict[str, object]) -> None:
    wanted = record(1, content=content.encode("utf-8", "replace").decode(), metadata=metadata)
    line = encode_line(wanted)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode_line(line) == wanted


@given(where=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_single_flipped_bit_goes_unnoticed(where: int, bit: int) -> None:
    line = bytearray(encode_line(record(1))[:-1])
    line[where % len(line)] ^= 1 << bit
    assert decode_line(bytes(line)) is None


def test_a_line_ends_in_the_crc_of_all_bytes_before_that_member(corpus: TrainingCorpus) -> None:
    corpus.add_record(record(1))
    (path,) = corpus.files()
    line = path.read_bytes()
    body, _, seal = line.rpartition(b',"crc32":"')
    assert seal == b'%08x"}\n' % zlib.crc32(body)
    assert json.loads(line)["record_id"] == f"{1:032x}"


def test_records_stand_in_the_file_of_their_utc_day_for_the_owner_alone(
    corpus: TrainingCorpus,
) -> None:
    corpus.add_records([record(1), record(2, at=NOON + DAY_S), record(3, at=NOON + 43_199)])
    names = [path.name for path in corpus.files()]
    assert names == ["training_2026-04-26.jsonl", "training_2026-04-27.jsonl"]
    assert {path.stat().st_mode & 0o777 for path in corpus.files()} == {0o600}
    assert [r.record_id[-1] for r in corpus.records()] == ["1", "3", "2"]
    assert [r.record_id[-1] for r in corpus.records(after=NOON)] == ["3", "2"]


def test_a_torn_tail_is_cut_aside_and_counted_and_writing_goes_on(
    corpus: TrainingCorpus, tmp_path: Path
) -> None:
    corpus.add_records([record(1), record(2)])
    (path,) = corpus.files()
    corpus.close()
    path.write_bytes(path.read_bytes()[:-10])
    again = TrainingCorpus(tmp_path / "training_data")
    assert again.torn_tails == 1
    again.add_records([record(3)])
    assert [r.record_id[-1] for r in again.records()] == ["1", "3"]
    assert again.damaged_lines == 0
    torn = path.with_name(path.name + ".torn")
    assert torn.read_bytes().startswith(b'{"record_id":"00000000000000000000000000000002"')
    assert torn.stat().st_mode & 0o777 == 0o600


def test_a_damaged_line_is_skipped_and_counted(corpus: TrainingCorpus) -> None:
    corpus.add_records([record(1), record(2), record(3)])
    (path,) = corpus.files()
    data = path.read_bytes()
    path.write_bytes(data.replace(b"function 2", b"function 9"))
    assert [r.record_id[-1] for r in corpus.records()] == ["1", "3"]
    assert corpus.damaged_lines == 1


def test_a_reader_stops_before_a_line_that_is_still_being_written(corpus: TrainingCorpus) -> None:
    corpus.add_records([record(1)])
    (path,) = corpus.files()
    with path.open("ab") as file:
        file.write(encode_line(record(2))[:20])
    assert [r.record_id[-1] for r in corpus.records()] == ["1"]
    assert corpus.damaged_lines == 0


def test_deleting_a_user_leaves_the_others_and_counts_no_closing_records(
    corpus: TrainingCorpus,
) -> None:
    close = record(3, content_type="workflow", metadata={"event": "SESSION_CLOSE"})
    corpus.add_records([record(1), record(2, user="other"), close, record(4, at=NOON + DAY_S)])
    assert corpus.delete_user(USER) == 2
    assert [r.user_id for r in corpus.records()] == ["other"]
    assert len(corpus.files()) == 1
    corpus.add_record(record(5))
    assert [r.user_id for r in corpus.records()] == ["other", USER]


def test_deletion_takes_torn_and_damaged_lines_too(corpus: TrainingCorpus, tmp_path: Path) -> None:
    corpus.add_records([record(1), record(2, user="other"), record(3)])
    (path,) = corpus.files()
    corpus.close()
    data = path.read_bytes().replace(b"function 1", b"function X")
    path.write_bytes(data[:-5])
    again = TrainingCorpus(tmp_path / "training_data")
    again.delete_user(USER)
    left = b"".join(p.read_bytes() for p in (tmp_path / "training_data").iterdir())
    assert USER.encode() not in left
    assert [r.user_id for r in again.records()] == ["other"]


def test_a_deletion_by_another_process_loses_no_line_added_afterwards(tmp_path: Path) -> None:
    writer, deleter = (TrainingCorpus(tmp_path / "c") for _ in range(2))
    writer.add_records([record(1), record(2, user="other")])
    deleter.delete_user(USER)
    writer.add_record(record(3, user="other"))
    assert [r.record_id[-1] for r in deleter.records()] == ["2", "3"]


def test_export_writes_plain_records_by_domain_time_and_user(
    corpus: TrainingCorpus, tmp_path: Path
) -> None:
    corpus.add_records(
        [record(1), record(2, domain="planning", at=NOON + 5), record(3, user="other", at=NOON + 9)]
    )
    target = tmp_path / "mine.jsonl"
    assert corpus.export_jsonl(target) == 3
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["record_id"][-1] for row in rows] == ["1", "2", "3"]
    assert all("crc32" not in row for row in rows)
    assert target.stat().st_mode & 0o777 == 0o600
    assert corpus.export_jsonl(target, domain="planning") == 1
    assert corpus.export_jsonl(target, after=NOON) == 2
    assert corpus.export_jsonl(target, user_id="other") == 1


def test_an_export_of_a_domain_has_the_closing_records_of_its_sessions_alone(
    corpus: TrainingCorpus, tmp_path: Path
) -> None:
    close = {
        "content_type": "workflow",
        "content": "SESSION_CLOSE",
        "metadata": {"event": "SESSION_CLOSE"},
        "domain": "general",  # what the tagger makes of its one word
    }
    for number, session, domain in ((1, "a", "code"), (3, "b", "planning")):
        corpus.add_record(record(number, session_id=session, domain=domain))
        corpus.add_record(record(number + 1, session_id=session, **close))
    target = tmp_path / "mine.jsonl"
    for domain, count, sessions in (("code", 1, ["a", "a"]), ("general", 0, [])):
        assert corpus.export_jsonl(target, domain=domain) == count
        rows = [json.loads(line) for line in target.read_text().splitlines()]
        assert [row["session_id"] for row in rows] == sessions


def test_a_sync_that_is_due_at_the_interpreters_exit_meets_an_open_lock(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXITER, str(tmp_path / "c")],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_export_that_cannot_be_written_is_the_owners_error(corpus: TrainingCorpus) -> None:
    corpus.add_record(record(1))
    with pytest.raises(CorpusError, match="nowhere"):
        corpus.export_jsonl("/proc/nowhere/out.jsonl")


def test_a_full_disk_refuses_the_record_and_recovers(
    corpus: TrainingCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus.add_records([record(1)])
    real = os.statvfs

    class Full:
        f_bavail, f_frsize = 10, 4096

    monkeypatch.setattr("node.capture.corpus.ROOM_S", 0.0)
    monkeypatch.setattr(os, "statvfs", lambda path: Full)
    with pytest.raises(CorpusError, match="MB are free"):
        corpus.add_record(record(2))
    assert corpus.delete_user("nobody") == 0  # deletion goes on working
    monkeypatch.setattr(os, "statvfs", real)
    corpus.add_record(record(3))
    assert [r.record_id[-1] for r in corpus.records()] == ["1", "3"]


def test_a_short_write_is_taken_back_whole(
    corpus: TrainingCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus.add_records([record(1)])
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:30]))
    with pytest.raises(CorpusError, match="No space left"):
        corpus.add_record(record(2))
    monkeypatch.setattr(os, "write", real)
    corpus.add_record(record(3))
    assert [r.record_id[-1] for r in corpus.records()] == ["1", "3"]
    assert corpus.damaged_lines == 0


def test_after_a_failed_fsync_nothing_more_is_taken_but_deletion_works(
    corpus: TrainingCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus.add_records([record(1)])
    real = os.fsync

    def broken(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(CorpusError, match="Input/output error"):
        corpus.add_records([record(2)])
    monkeypatch.setattr(os, "fsync", real)
    with pytest.raises(CorpusError, match="Input/output error"):
        corpus.add_record(record(3))
    assert corpus.delete_user(USER) == 2


def test_threads_and_corpora_on_one_folder_never_tear_a_line(tmp_path: Path) -> None:
    corpora = [TrainingCorpus(tmp_path / "c") for _ in range(2)]

    def write(first: int) -> None:
        for number in range(first, first + 100):
            corpora[first % 2].add_record(record(number))

    threads = [threading.Thread(target=write, args=(1000 * n + n % 2,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({r.record_id for r in corpora[0].records()}) == 400
    assert corpora[0].damaged_lines == 0


def test_a_killed_writer_leaves_only_whole_lines(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", WRITER, str(tmp_path / "c"), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env, cwd=ROOT) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        reader = TrainingCorpus(tmp_path / "c")
        while sum(1 for _ in reader.records()) < 100:
            pass
        writer.send_signal(signal.SIGKILL)
    corpus = TrainingCorpus(tmp_path / "c")
    numbers = [int(r.record_id, 16) for r in corpus.records()]
    assert numbers == list(range(len(numbers)))
    assert corpus.damaged_lines == 0


def test_statistics_count_by_day_and_domain(tmp_path: Path) -> None:
    made = capture(tmp_path)
    made.corpus.add_records(
        [
            record(1),
            record(2, domain="research"),
            record(3, at=NOON - DAY_S),
            record(4, content_type="workflow", metadata={"event": "SESSION_CLOSE"}),
        ]
    )
    stats = CorpusStats(made.corpus, made.consent, clock=made.clock)
    assert stats.summary()["total_records"] == 3
    assert stats.summary()["domains"] == {"code": 2, "research": 1}
    assert stats.daily_growth(days=3) == [
        {"date": "2026-04-24", "records": 0},
        {"date": "2026-04-25", "records": 1},
        {"date": "2026-04-26", "records": 2},
    ]
    assert stats.domain_breakdown() == {
        "code": {"count": 2, "percentage": 66.7},
        "research": {"count": 1, "percentage": 33.3},
    }


def test_no_record_shows_its_text_when_it_is_printed() -> None:
    shown: TrainingRecord = record(1, content="the text", metadata={"key": "the value"})
    assert "the text" not in repr(shown)
    assert "the value" not in repr(shown)
