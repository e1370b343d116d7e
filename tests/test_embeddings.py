"""The embedding store: what was appended stays, what was deleted is gone, and nothing is torn."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import support_faults
import support_kills
from hypothesis import given, settings
from hypothesis import strategies as st

from leaves.embeddings import INDEX_FILE, EmbeddingStore, EmbeddingStoreError
from leaves.model import Matrix, unit

ENC8 = b"encoder1"
D = 8


def rows(count: int, seed: int = 0) -> Matrix:
    return unit(np.random.default_rng(seed).normal(size=(count, D)).astype(np.float32))


def opened(folder: Path) -> EmbeddingStore:
    return EmbeddingStore.open(folder, ENC8, D)


def vectors_file(folder: Path) -> Path:
    (path,) = folder.glob("vectors-*.f32")
    return path


def test_what_was_appended_is_there_after_reopening(tmp_path: Path) -> None:
    vectors = rows(5)
    assert opened(tmp_path).append(["a", "b", "c"], [1, 2, 3], vectors[:3]) == 3
    assert opened(tmp_path).append(["d", "e"], [4, 5], vectors[3:]) == 2
    store = opened(tmp_path)
    assert store.ids() == ["a", "b", "c", "d", "e"]
    assert store.days() == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}
    assert (store.matrix() == vectors).all()
    assert (store.vectors()["d"] == vectors[3]).all()
    assert len(store.vectors()) == len(store) == 5


def test_one_vector_can_be_asked_for(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.append(["a", "b"], [1, 1], rows(2))
    found = store.vector("b")
    assert found is not None and (found == rows(2)[1]).all()
    assert store.vector("z") is None


def test_a_known_session_keeps_its_first_vector(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.append(["a"], [1], rows(1))
    assert store.append(["a", "b", "b"], [9, 2, 3], rows(3, seed=1)) == 1
    assert store.ids() == ["a", "b"]
    assert (store.matrix()[0] == rows(1)[0]).all()
    assert store.append(["a", "b"], [1, 2], rows(2)) == 0


def test_an_empty_store_has_an_empty_matrix(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert store.matrix().shape == (0, D)
    assert store.ids() == [] and store.delete(["a"]) == 0
    assert store.append([], [], rows(0)) == 0


def test_the_matrix_is_mapped_and_cannot_be_written(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.append(["a"], [1], rows(1))
    with pytest.raises(ValueError, match="read-only"):
        store.matrix()[0, 0] = 1.0


def test_a_snapshot_stays_as_it_was(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.append(["a", "b"], [1, 2], rows(2))
    before = store.snapshot()
    store.delete(["a"])
    store.append(["c"], [3], rows(1, seed=5))
    assert before.ids == ["a", "b"] and before.days == [1, 2]
    assert (before.matrix == rows(2)).all()


def test_deleted_vectors_and_ids_are_gone_from_the_disk(tmp_path: Path) -> None:
    store = opened(tmp_path)
    vectors = rows(4)
    store.append(["keep-1", "gone-1", "keep-2", "gone-2"], [1, 2, 3, 4], vectors)
    assert store.delete(["gone-1", "gone-2", "never-here"]) == 2
    content = b"".join(path.read_bytes() for path in sorted(tmp_path.iterdir()))
    assert vectors[1].tobytes() not in content and vectors[3].tobytes() not in content
    assert b"gone-" not in content
    assert vectors[2].tobytes() in content
    assert store.ids() == ["keep-1", "keep-2"] == opened(tmp_path).ids()
    assert (store.matrix() == vectors[[0, 2]]).all()


def test_all_can_be_deleted(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.append(["a", "b"], [1, 2], rows(2))
    assert store.delete(["b", "a"]) == 2
    assert len(opened(tmp_path)) == 0 and vectors_file(tmp_path).stat().st_size == 0


@pytest.mark.parametrize("torn_bytes", [1, 4 * D - 1, 4 * D * 3 + 2])
def test_a_torn_append_leaves_no_trace(tmp_path: Path, torn_bytes: int) -> None:
    opened(tmp_path).append(["a", "b"], [1, 2], rows(2))
    with vectors_file(tmp_path).open("ab") as file:
        file.write(b"\x7f" * torn_bytes)  # killed after writing some rows, before the record
    store = opened(tmp_path)
    assert store.ids() == ["a", "b"]
    store.append(["c"], [3], rows(1, seed=7))
    assert (store.matrix() == np.concatenate([rows(2), rows(1, seed=7)])).all()
    assert vectors_file(tmp_path).stat().st_size == 3 * 4 * D


def test_a_failed_append_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path)
    store.append(["a"], [1], rows(1))

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("leaves.embeddings.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            store.append(["b"], [2], rows(1, seed=1))
    assert opened(tmp_path).ids() == ["a"]
    assert (opened(tmp_path).matrix() == rows(1)).all()


def test_a_torn_delete_is_swept_at_the_next_opening(tmp_path: Path) -> None:
    opened(tmp_path).append(["a", "b"], [1, 2], rows(2))
    (tmp_path / "vectors-2.f32").write_bytes(rows(1).tobytes())  # killed before its commit
    store = opened(tmp_path)
    assert store.ids() == ["a", "b"] and vectors_file(tmp_path).name == "vectors-1.f32"
    assert store.delete(["a"]) == 1
    assert (store.matrix() == rows(2)[1:]).all()


def test_a_store_that_lost_rows_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).append(["a", "b"], [1, 2], rows(2))
    vectors_file(tmp_path).write_bytes(b"short")
    with pytest.raises(EmbeddingStoreError, match=r"has 5 bytes, its index speaks of 64"):
        opened(tmp_path)


def changed(folder: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(folder / INDEX_FILE, isolation_level=None)) as index:
        index.execute(statement)


def test_a_gap_in_the_index_gives_no_session_the_vector_of_another(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.append(["a", "b", "c"], [1, 2, 3], rows(3))
    changed(tmp_path, "DELETE FROM rows WHERE row = 1")
    for read in (store.snapshot, store.ids, store.vectors):
        with pytest.raises(EmbeddingStoreError, match="lost the session of row 1"):
            read()
    assert store.rows_of(["a", "c"]).tolist() == [0, 2]
    found = store.vector("c")
    assert found is not None and (found == rows(3)[2]).all()


def test_a_damaged_index_is_told_from_a_busy_one(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.append([f"s{n}" for n in range(200)], [1] * 200, rows(200))
    with (tmp_path / INDEX_FILE).open("r+b") as file:
        file.seek(4096)  # after the page that says where the tables are
        file.write(b"\x99" * 40_000)
    for use in (store.snapshot, store.ids, partial(opened, tmp_path)):
        with pytest.raises(EmbeddingStoreError, match=r"index\.sqlite is damaged"):
            use()
    with pytest.raises(EmbeddingStoreError, match=r"index\.sqlite is damaged"):
        store.append(["x"], [1], rows(1))


def test_an_index_that_does_not_say_its_encoder_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).append(["a"], [1], rows(1))
    changed(tmp_path, "DELETE FROM meta")
    with pytest.raises(EmbeddingStoreError, match="does not say whose vectors"):
        opened(tmp_path)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), 7.0])
def test_vectors_that_are_damaged_on_disk_are_counted(tmp_path: Path, value: float) -> None:
    store = opened(tmp_path)
    store.append(["a", "b", "c"], [1, 2, 3], rows(3))
    assert store.sound().ids == ["a", "b", "c"]
    with vectors_file(tmp_path).open("r+b") as file:
        file.seek(4 * D)
        file.write(np.full(2 * D, value, "<f4").tobytes())
    with pytest.raises(EmbeddingStoreError, match=r"2 of 3 vectors in vectors-1\.f32 are not of"):
        store.sound()


def test_sessions_are_found_by_their_day(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.append(["a", "b", "c", "d"], [7, 5, 6, 5], rows(4))
    assert store.since(5) == ["b", "d", "c", "a"]
    assert store.since(6) == ["c", "a"] and store.since(8) == []
    store.delete(["c"])
    assert store.since(6) == ["a"]


def test_rows_are_found_by_session(tmp_path: Path) -> None:
    store = opened(tmp_path)
    ids = [f"s{n}" for n in range(1200)]
    store.append(ids, [1] * 1200, rows(1200))
    assert store.rows_of([*ids[::-1], "z", "s3", "s3"]).tolist() == [*range(1199, -1, -1), -1, 3, 3]
    store.delete(["s0", "s5"])
    assert store.rows_of(["s0", "s1", "s5", "s6"]).tolist() == [-1, 0, -1, 4]
    assert store.rows_of([]).shape == (0,)


def test_an_older_store_is_taken_over(tmp_path: Path) -> None:
    opened(tmp_path).append(["a", "b"], [4, 3], rows(2))
    with contextlib.closing(sqlite3.connect(tmp_path / INDEX_FILE)) as index:
        index.execute("DROP INDEX rows_day")
        index.execute("PRAGMA user_version = 0")
    store = opened(tmp_path)
    assert store.since(4) == ["a"] and (store.matrix() == rows(2)).all()


@pytest.mark.parametrize("block", [1, 32, 100])
def test_a_delete_copies_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr("leaves.embeddings.BLOCK_BYTES", block)
    store = opened(tmp_path)
    store.append([str(n) for n in range(20)], [1] * 20, rows(20))
    gone = [0, 3, 4, 5, 11, 19]
    assert store.delete([str(n) for n in gone]) == 6
    kept = [n for n in range(20) if n not in gone]
    assert store.ids() == [str(n) for n in kept]
    assert (store.matrix() == rows(20)[kept]).all()


def append(folder: Path) -> None:
    opened(folder).append(["c", "d", "e"], [3, 4, 5], rows(5)[2:])


def delete(folder: Path) -> None:
    opened(folder).delete(["b", "d"])


def state(folder: Path) -> tuple[list[str], list[int], bytes]:
    """What a store holds after a start, and that it can still be used."""
    store = opened(folder)
    snapshot = store.snapshot()
    held = (snapshot.ids, snapshot.days, snapshot.matrix.tobytes())
    assert [path.name for path in folder.glob("vectors-*")] == [vectors_file(folder).name]
    assert store.rows_of(snapshot.ids).tolist() == list(range(len(snapshot.ids)))
    store.append(["later"], [9], rows(1, seed=9))
    assert (store.matrix()[-1] == rows(1, seed=9)[0]).all()
    return held


DIE = {"writes": support_kills.killed_at, "commits": support_faults.killed_at}


@pytest.mark.parametrize("die", DIE)
@pytest.mark.parametrize("action", [append, delete])
def test_killed_at_any_step_a_store_is_as_before_or_as_after(
    action: Callable[[Path], None], die: str
) -> None:
    with support_faults.fast_folder() as fast:
        made = fast / "made"
        opened(made).append(["a", "b"], [1, 2], rows(2))
        if action is delete:
            append(made)
        for name in ("before", "after"):
            shutil.copytree(made, fast / name)
        action(fast / "after")
        before, after = state(fast / "before"), state(fast / "after")
        seen, step = [], 0
        while True:
            step += 1
            folder = fast / str(step)
            shutil.copytree(made, folder)
            died = DIE[die](step, partial(action, folder))
            seen.append(state(folder))
            assert seen[-1] in (before, after), f"step {step}"
            if not died:
                break
        assert seen[0] == before and seen[-1] == after and step > 3
        assert seen == sorted(seen, key=[before, after].index), "there is one moment of change"


def test_vectors_of_another_encoder_are_refused(tmp_path: Path) -> None:
    opened(tmp_path).append(["a"], [1], rows(1))
    with pytest.raises(EmbeddingStoreError, match=r"of encoder 656e636f64657231, not"):
        EmbeddingStore.open(tmp_path, b"encoder2", D)
    with pytest.raises(EmbeddingStoreError, match=r"8-d vectors"):
        EmbeddingStore.open(tmp_path, ENC8, D + 1)


def test_files_are_the_owners_alone(tmp_path: Path) -> None:
    store = opened(tmp_path / "store")
    store.append(["a", "b"], [1, 1], rows(2))
    store.delete(["a"])
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in store_files(tmp_path)}
    assert set(modes.values()) == {0o600}, modes


def store_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "store").iterdir())


def test_vectors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    store = opened(tmp_path)
    with pytest.raises(ValueError, match="do not fit vectors of shape"):
        store.append(["a"], [1], rows(2))
    with pytest.raises(ValueError, match="do not fit"):
        store.append(["a", "b"], [1], rows(2))
    with pytest.raises(ValueError, match="'b' has length 2"):
        store.append(["a", "b"], [1, 1], rows(2) * np.array([[1], [2]], np.float32))
    with pytest.raises(ValueError, match="'a' has length nan"):
        store.append(["a"], [1], np.full((1, D), np.nan, np.float32))
    assert store.ids() == []


APPEND_MANY = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from test_embeddings import opened, rows
store = opened(Path(sys.argv[1]))
for n in range(20):
    store.append([f"{sys.argv[2]}-{n}"], [n], rows(1, seed=n))
"""


def test_two_processes_may_append_at_once(tmp_path: Path) -> None:
    here = Path(__file__).parent
    command = [sys.executable, "-c", APPEND_MANY, str(tmp_path)]
    workers = [subprocess.Popen([*command, name, str(here), str(here.parent)]) for name in "ab"]
    assert [worker.wait() for worker in workers] == [0, 0]
    snapshot = opened(tmp_path).snapshot()
    assert sorted(snapshot.ids) == sorted(f"{name}-{n}" for name in "ab" for n in range(20))
    for id_, row in zip(snapshot.ids, snapshot.matrix, strict=True):
        assert (row == rows(1, seed=int(id_.split("-")[1]))[0]).all()


def test_the_index_is_a_plain_database(tmp_path: Path) -> None:
    opened(tmp_path).append(["a"], [19_000], rows(1))
    index = sqlite3.connect(tmp_path / INDEX_FILE)
    assert index.execute("SELECT id, day FROM rows").fetchall() == [("a", 19_000)]
    index.close()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.lists(st.sampled_from("abcdef"))), max_size=8))
def test_any_history_leaves_what_a_dictionary_would_hold(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[bool, list[str]]]
) -> None:
    store = opened(tmp_path_factory.mktemp("store"))
    held: dict[str, Matrix] = {}
    for step, (adds, ids) in enumerate(history):
        if adds:
            fresh = rows(len(ids), seed=step)
            store.append(ids, [step] * len(ids), fresh)
            for id_, row in zip(ids, fresh, strict=True):
                held.setdefault(id_, row)
        else:
            store.delete(ids)
            held = {id_: row for id_, row in held.items() if id_ not in ids}
        snapshot = store.snapshot()
        assert snapshot.ids == list(held)
        assert all((a == b).all() for a, b in zip(snapshot.matrix, held.values(), strict=True))
