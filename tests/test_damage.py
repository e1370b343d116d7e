"""Damaged files of a home: an owner is told what to do, and a round mends what it can itself."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import support_engine
from support_engine import Bench, Killed, sessions
from support_pictures import DIMENSIONS, planted

from leaves.model import Instant
from node.cli import main
from node.engine import Round

NOW = Instant(1_700_100_000)
Kept = dict[str, Any]


# The embedding store, as commands meet it


def garbage(folder: Path) -> None:
    with (folder / "index.sqlite").open("r+b") as file:
        file.seek(4096)  # after the page that says where the tables are
        file.write(b"\x99" * 40_000)


def no_meta(folder: Path) -> None:
    changed(folder, "DELETE FROM meta")


def lost_row(folder: Path) -> None:
    changed(folder, "DELETE FROM rows WHERE row = 3")


def not_a_number(folder: Path) -> None:
    with (folder / "vectors-1.f32").open("r+b") as file:
        file.write(np.full(2 * DIMENSIONS, np.nan, "<f4").tobytes())


def changed(folder: Path, statement: str) -> None:
    path = folder / "index.sqlite"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as index:
        index.execute(statement)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (garbage, "index.sqlite is damaged"),
        (no_meta, "does not say whose vectors these are"),
        (lost_row, "lost the session of row 3"),
        (not_a_number, "2 of 300 vectors in vectors-1.f32 are not of length 1"),
    ],
)
def test_commands_say_what_is_damaged_in_the_embedding_store_and_what_to_do(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    words: str,
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("GROOVE_HOME", str(home))
    for given in (["init"], ["consent", "grant", "capture", "--yes"]):
        with contextlib.suppress(SystemExit):
            main(given)
    planted(home).forests.close()
    capsys.readouterr()
    damage(home / "embeddings")
    looks = [["round"], ["map", str(tmp_path / "map.html")]]
    if damage in (garbage, no_meta):  # a count of rows does not meet the others
        looks.append(["status"])
    for given in looks:
        with pytest.raises(SystemExit) as ended:
            main(given)
        told = " ".join(capsys.readouterr().err.split())
        assert ended.value.code == 1, told
        assert words in told, told
        assert "the next round embeds all sessions anew" in told, told


# The clustering of an open round


def stop(bench: Bench, monkeypatch: pytest.MonkeyPatch, before: str = "_detect") -> None:

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Round, before, die)
        with pytest.raises(Killed):
            bench.round().run(NOW)


def stopped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A round that was killed once its clustering was written; where that stands."""
    stop(bench, monkeypatch)
    (path,) = (bench.home / "rounds").glob("*.json")
    return path


def emptied(kept: Kept) -> None:
    kept["levels"][1][0]["members"] = []


def twice(kept: Kept) -> None:
    kept["levels"][1][1]["members"].append(kept["levels"][1][0]["members"][0])


def unknown(kept: Kept) -> None:
    kept["levels"][1][0]["members"][0] = "nobody"


def out_of_range(kept: Kept) -> None:
    kept["levels"][1][0]["parent"] = 7


def edited(change: Callable[[Kept], None]) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        kept = msgspec.json.decode(data)
        change(kept)
        return msgspec.json.encode(kept)

    edit.__name__ = change.__name__
    return edit


def gone(data: bytes) -> None:
    return None


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def empty(data: bytes) -> bytes:
    return b""


def other(data: bytes) -> bytes:
    return b'{"levels": 3}'


def not_text(data: bytes) -> bytes:
    return b'{"noise": ["\xff\xfe"]}'


def nested(data: bytes) -> bytes:
    return b'{"levels": ' + b"[" * 100_000


WRONG: list[Callable[[bytes], bytes | None]] = [gone, cut, empty, other, not_text, nested]
WRONG += [edited(change) for change in (emptied, twice, unknown, out_of_range)]


def members(bench: Bench) -> dict[str, list[str]]:
    return {leaf.name: sorted(bench.store.members(leaf.id)) for leaf in bench.store.forest()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("unbroken")
    bench = Bench(folder, folder, sessions(60), train=False)
    bench.round().run(NOW)
    return members(bench)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_a_clustering_that_cannot_be_read_is_made_anew(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unbroken: dict[str, list[str]],
    wrong: Callable[[bytes], bytes | None],
) -> None:
    bench = Bench(tmp_path, tmp_path, sessions(60), train=False)
    path = stopped(bench, monkeypatch)
    data = wrong(path.read_bytes())
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    bench.told.clear()
    bench.round().run(NOW)
    assert members(bench) == unbroken
    assert bench.store.open_round() is None
    said = [told.text for told in bench.told if told.event == "clustered anew"]
    assert said == ["the clustering of the open round could not be read and is made anew"]


@pytest.mark.parametrize("data", [b"", b'{"placed": {"nobody": "x"}, "fresh": 1}'])
def test_new_sessions_are_not_forgotten_with_the_file_that_placed_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    many = msgspec.structs.replace(support_engine.RULES, full_each_round_sessions=50)
    monkeypatch.setattr(support_engine, "RULES", many)
    bench = Bench(tmp_path, tmp_path, sessions(60), train=False)
    bench.round().run(Instant(NOW - 3600))
    known = set(bench.store.assignment())
    bench.captured = [*bench.captured, *sessions(10, start=60)]
    stopped(bench, monkeypatch).write_bytes(data)
    bench.round().run(NOW)
    assert len(set(bench.store.assignment()) - known) >= 24
    assert bench.told[-1].event == "deployed"


@pytest.mark.parametrize("before", ["_cluster", "_detect"])
def test_an_open_round_embeds_anew_once_the_store_was_moved_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: dict[str, list[str]], before: str
) -> None:
    bench = Bench(tmp_path, tmp_path, sessions(60), train=False)
    stop(bench, monkeypatch, before)
    shutil.move(tmp_path / "emb", tmp_path / "aside")
    again = Bench(tmp_path, tmp_path, sessions(60), train=False)
    again.round().run(NOW)
    assert members(again) == unbroken
