"""Death, a full disk, a held database, a folder that cannot be written, a clock that jumps."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support_capture import NOON, USER, HandClock, capture, record
from support_faults import Stricter, fast_folder, killed_at, steps_of

from node.capture import CaptureItem, TrainingCorpus, TrainingDataIntake
from node.capture.corpus import SYNC_LINES, CorpusError
from node.capture.export import Form, export
from node.capture.queue import open_queue
from node.capture.rescan import is_due, rescan
from node.capture.scrubber import SCRUB_RULES_VERSION
from node.consent import ConsentManager, ConsentUnreadableError

DAY_S = 86_400.0


@pytest.fixture
def fast() -> Iterator[Path]:
    with fast_folder() as folder:
        yield folder


# ---- death ---------------------------------------------------------------------------------------


def acknowledging(root: Path, told: Path) -> Callable[[], None]:
    """A writer that says how many records it was promised are durable."""

    def write() -> None:
        corpus = TrainingCorpus(root, clock=HandClock())
        fd = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for group in range(4):
            first = 10 * group
            rows = [record(first + n, at=NOON + DAY_S * (group // 2)) for n in range(10)]
            assert corpus.add_records(rows) == 10
            os.write(fd, b".")
        corpus.delete_where(lambda each: each.record_id == f"{5:032x}")
        os.write(fd, b"d")
        corpus.close()

    return write


def test_a_writer_killed_at_any_step_loses_nothing_acknowledged_and_tears_nothing(
    fast: Path,
) -> None:
    steps = steps_of(acknowledging(fast / "counted", fast / "counted.told"))
    assert steps > 10
    for step in range(1, steps + 1):
        root, told = fast / f"c{step}", fast / f"told{step}"
        assert killed_at(step, acknowledging(root, told))
        said = told.read_bytes() if told.exists() else b""
        corpus = TrainingCorpus(root)
        numbers = [int(each.record_id, 16) for each in corpus.records()]
        wanted = set(range(10 * said.count(b".")))
        if b"d" in said:
            assert 5 not in numbers, f"step {step}"
        assert wanted - {5} <= set(numbers), f"step {step}: lost {wanted - set(numbers)}"
        assert len(numbers) == len(set(numbers)) and corpus.damaged_lines == 0
        assert not [p.name for p in root.iterdir() if p.suffix == ".tmp"], f"step {step}"


def exporting(root: Path, target: Path) -> Callable[[], None]:
    return lambda: (export(TrainingCorpus(root), target, Form.JSONL), None)[1]


@pytest.mark.parametrize("named", [False, True], ids=["nameless", "named"])
def test_an_export_killed_at_any_step_leaves_no_text_but_whole_files(
    fast: Path, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if named:
        monkeypatch.setattr("node.capture.whole._nameless", lambda folder: None)
    corpus = TrainingCorpus(fast / "c")
    corpus.add_records([record(number) for number in range(50)])
    corpus.close()
    out = fast / "out"
    out.mkdir()
    target = out / "mine.jsonl"
    for earlier in (b"", b"an earlier export"):
        target.write_bytes(earlier)
        if not earlier:
            target.unlink()
        steps = steps_of(exporting(fast / "c", target))
        for step in range(1, steps + 1):
            target.unlink(missing_ok=True)
            if earlier:
                target.write_bytes(earlier)
            assert killed_at(step, exporting(fast / "c", target))
            TrainingCorpus(fast / "c")  # the next start
            left = {path.name: path.read_bytes() for path in out.iterdir()}
            assert left.keys() <= {"mine.jsonl"}, f"step {step}: {sorted(left)}"
            text = left.get("mine.jsonl", b"")
            assert text in (b"", earlier) or text.count(b"\n") == 50, f"step {step}"
            assert not list((fast / "c").glob(".export-*")), f"step {step}"


def soiled(root: Path) -> TrainingCorpus:
    corpus = TrainingCorpus(root, clock=HandClock())
    talk = '[{"role": "user", "content": "Am I Rumpelstiltskin?"}]'
    corpus.add_records(
        [
            record(1),
            record(2, content="Who is Rumpelstiltskin?", metadata={"by": ["Rumpelstiltskin"]}),
            record(3, content="hopeless", at=NOON + DAY_S),
            record(4, content=talk, content_type="conversation", at=NOON + DAY_S),
            record(5, at=NOON + 2 * DAY_S),
        ]
    )
    corpus.close()
    return corpus


def test_a_rescan_changes_what_the_rules_of_today_find_and_nothing_else(tmp_path: Path) -> None:
    corpus = soiled(tmp_path / "c")
    clean = corpus.files()[2]
    inode = clean.stat().st_ino
    done = rescan(corpus, Stricter())
    assert (done.records, done.changed, done.dropped) == (5, 2, 1)
    assert done.sessions == {"session-2", "session-3", "session-4"}
    kept = {each.record_id[-1]: each for each in corpus.records()}
    assert list(kept) == ["1", "2", "4", "5"]
    assert (kept["2"].content, kept["2"].metadata) == ("Who is [EMAIL]?", {"by": ["[EMAIL]"]})
    assert kept["4"].content == '[{"role": "user", "content": "Am I [EMAIL]?"}]'
    assert clean.stat().st_ino == inode, "a clean file is not written"
    again = rescan(corpus, Stricter())
    assert (again.changed, again.dropped, again.sessions) == (0, 0, set())


def test_a_rescan_keeps_what_is_captured_meanwhile(tmp_path: Path) -> None:
    corpus = soiled(tmp_path / "c")
    other = TrainingCorpus(tmp_path / "c", clock=HandClock())
    late = iter([record(77, content="came while it was scrubbed")])
    rescan(corpus, Stricter(), before=lambda sessions: _add(other, late))
    assert f"{77:032x}" in {each.record_id for each in corpus.records()}


def _add(corpus: TrainingCorpus, rows: Iterator[object]) -> None:
    for row in rows:
        corpus.add_record(row)  # type: ignore[arg-type]


def test_a_rescan_killed_at_any_step_is_completed_by_the_next_and_is_due_until_then(
    fast: Path,
) -> None:
    def clean(root: Path) -> Callable[[], None]:
        def run() -> None:
            corpus = TrainingCorpus(root)
            rescan(corpus, Stricter())
            corpus.rescanned(SCRUB_RULES_VERSION)

        return run

    def dirty(root: Path) -> None:
        soiled(root)
        (root / "scrub_rules").write_text("0\n")

    dirty(fast / "counted")
    for step in range(1, steps_of(clean(fast / "counted")) + 1):
        root = fast / f"c{step}"
        dirty(root)
        assert killed_at(step, clean(root))
        corpus = TrainingCorpus(root)
        assert len({each.record_id for each in corpus.records()}) >= 4
        if is_due(corpus):
            clean(root)()
        everything = b"".join(path.read_bytes() for path in root.iterdir())
        assert b"Rumpelstiltskin" not in everything and b"hopeless" not in everything
        assert len(list(TrainingCorpus(root).records())) == 4


# ---- a disk that is full, or cannot be written ---------------------------------------------------


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    made = subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("this user may not mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted(folder, "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs"):
        yield folder


def test_a_disk_that_fills_up_refuses_records_whole_and_capture_goes_on_once_there_is_room(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.capture.corpus.RESERVE_BYTES", 0)
    corpus = TrainingCorpus(small_disk / "c", clock=HandClock())
    kept = 0
    with pytest.raises(CorpusError, match="No space left"):
        for number in range(1_000):
            corpus.add_record(record(number, content="x" * 5_000))
            kept += 1
    assert kept > 100
    corpus.flush()  # what was acknowledged before is not given up
    (first, *_) = list(corpus.records())
    assert sum(1 for _ in corpus.records()) == kept and corpus.damaged_lines == 0
    with pytest.raises(CorpusError, match="cannot be written"):
        corpus.export_jsonl(small_disk / "out.jsonl")
    assert {path.name for path in small_disk.iterdir()} == {"c"}
    os.truncate(corpus.files()[0], 0)  # somebody makes room
    corpus.add_record(first)
    assert [each.record_id for each in corpus.records()] == [first.record_id]


def test_the_reserve_lets_a_deletion_work_on_a_full_disk(small_disk: Path) -> None:
    corpus = TrainingCorpus(small_disk / "c", clock=HandClock())
    with pytest.raises(CorpusError, match="64 MB are free"):
        corpus.add_record(record(1))
    assert corpus.delete_user(USER) == 0


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """Makes a folder one that nobody can write to, root neither."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with contextlib.ExitStack() as undo:

        def lock() -> Path:
            undo.enter_context(mounted(folder, "--bind", str(folder)))
            remount = ["mount", "-o", "remount,bind,ro", str(folder)]
            subprocess.run(remount, check=True)
            return folder

        yield lock


def test_a_corpus_in_a_folder_that_cannot_be_written_says_so(
    read_only: Callable[[], Path],
) -> None:
    with pytest.raises(CorpusError, match="Read-only file system"):
        TrainingCorpus(read_only() / "c")


def test_a_home_that_turns_read_only_refuses_records_and_never_hurts_the_caller(
    read_only: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "disk" / "home"
    monkeypatch.setenv("GROOVE_HOME", str(home))
    made = capture(home)
    (home / "user_id").write_text(USER)
    made.corpus.close()
    read_only()
    with pytest.raises(CorpusError, match="Read-only file system"):
        made.corpus.add_record(record(1))
    queue = open_queue()
    if queue is not None:
        assert queue.offer(CaptureItem("s", "a text", "prompt"))
        assert queue.close()
        assert queue.counters.captured == 0


def test_a_write_that_stops_short_is_taken_back_and_the_records_before_it_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = TrainingCorpus(tmp_path / "c", clock=HandClock())
    corpus.add_record(record(1))
    synced: list[int] = []
    write, fsync = os.write, os.fsync
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:30]))
    with pytest.raises(CorpusError, match="No space left"):
        corpus.add_record(record(2))
    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(fd), fsync(fd))[1])
    corpus.flush()
    assert len(synced) == 1
    assert [each.record_id[-1] for each in corpus.records()] == ["1"]


def test_an_fsync_that_fails_for_lack_of_room_is_never_taken_for_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = TrainingCorpus(tmp_path / "c", clock=HandClock())

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    corpus.add_records([record(0)])
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CorpusError):
        corpus.add_records([record(1)])
    monkeypatch.undo()
    with pytest.raises(CorpusError, match="cannot be written"):
        corpus.add_record(record(2))
    assert TrainingCorpus(tmp_path / "c").add_record(record(3))


# ---- SQLite, consent, the clock ------------------------------------------------------------------


def test_a_held_consent_database_refuses_a_change_and_still_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = capture(tmp_path)
    with contextlib.closing(
        sqlite3.connect(tmp_path / "consent.db", isolation_level=None)
    ) as holder:
        holder.execute("BEGIN IMMEDIATE")
        assert made.consent.is_opted_in(USER)
        assert made.intake.submit(USER, "s", "captured all the same", "prompt")
        holder.execute("ROLLBACK")


def test_a_damaged_consent_database_is_named_and_nothing_is_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path))
    made = capture(tmp_path)
    (tmp_path / "user_id").write_text(USER)
    made.consent.close()
    for left in tmp_path.glob("consent.db-*"):
        left.unlink()
    (tmp_path / "consent.db").write_bytes(b"no database" * 1_000)
    with pytest.raises(ConsentUnreadableError, match=r"consent\.db"):
        ConsentManager(tmp_path / "consent.db")
    assert open_queue() is None


def test_a_clock_set_back_files_a_record_by_its_own_day_and_loses_none(tmp_path: Path) -> None:
    clock = HandClock()
    made = capture(tmp_path)
    intake = TrainingDataIntake(made.consent, made.corpus, made.scrubber, made.tagger, clock=clock)
    for jump in (0.0, -3 * DAY_S, 5 * DAY_S, -5 * DAY_S):
        clock.time_s += jump
        assert intake.submit(USER, "s", f"at {jump}", "prompt")
    assert [path.name for path in made.corpus.files()] == [
        "training_2026-04-23.jsonl",
        "training_2026-04-26.jsonl",
        "training_2026-04-28.jsonl",
    ]
    assert sum(1 for _ in made.corpus.records()) == 4
    (session,) = made.corpus.sessions()
    assert (session.opened, session.last) == (NOON - 3 * DAY_S, NOON + 2 * DAY_S)


@pytest.mark.parametrize("at", [-1.0, float("nan"), float("inf"), 1e18, -1e300])
def test_a_time_that_is_no_date_becomes_the_time_of_writing(tmp_path: Path, at: float) -> None:
    corpus = TrainingCorpus(tmp_path / "c", clock=HandClock())
    assert corpus.add_record(record(1, at=at))
    assert [each.timestamp for each in corpus.records()] == [NOON]
    assert corpus.damaged_lines == 0


def test_a_group_is_synced_at_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = TrainingCorpus(tmp_path / "c", clock=HandClock())
    corpus.add_records([record(0)])
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(fd), fsync(fd))[1])
    for number in range(1, SYNC_LINES):
        corpus.add_record(record(number))
    assert synced == []
    corpus.add_record(record(SYNC_LINES))
    assert len(synced) == 1
