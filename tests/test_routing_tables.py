"""Routing tables on disk: which one is in force, whatever happens; and the way back to another."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec import structs
from support_faults import fast_folder, killed_at, steps_of
from support_routing import Routed, leaf_id, routed, towards

from leaves.model import Adapter, LeafId, Stage
from leaves.ports import Progress
from node import asking, deploying, set_aside
from node.app import App
from node.errors import MisuseError
from node.tables import KEPT, Kind, Note, RoutingError, Tables
from router.neighbours import Neighbours
from router.table import MAGIC, MAGIC_1, Entry, Table, own_entry


def table(number: int) -> Table:
    entry = Entry(LeafId(f"{number:032x}"), f"leaf-{number}", 2, Stage.SEED, towards(str(number)))
    return Table.build(b"12345678", 384, [entry])


def note(kind: Kind = Kind.ROUND, **about: object) -> Note:
    return Note(at=1, kind=kind, why="a test", **about)  # type: ignore[arg-type]


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return Tables(tmp_path)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Routed:
    return routed(tmp_path, monkeypatch)


def in_force(tables: Tables) -> str:
    found = tables.load()
    assert found is not None
    return found.entries[0].name


def test_a_table_comes_back_with_what_is_known_of_it(tables: Tables) -> None:
    tables.put(table(1), note(accuracy=0.93, votes={leaf_id("tides"): (3, 1)}))
    found = tables.current()
    assert found is not None and found.number == 1 and found.note.accuracy == 0.93
    assert found.note.votes == {leaf_id("tides"): (3, 1)}
    assert (tables.history()[0].number, tables.history()[0].in_force) == (1, True)


def test_the_last_ten_that_rounds_put_in_force_are_kept(tables: Tables) -> None:
    for number in range(15):
        tables.put(table(number), note())
    assert [row.number for row in tables.history()] == list(range(15, 15 - KEPT, -1))
    assert in_force(tables) == "leaf-14"


def test_a_night_of_small_changes_pushes_no_round_out(tables: Tables) -> None:
    for number in range(3):
        tables.put(table(number), note())
    for number in range(3, 40):
        tables.put(table(number), note(Kind.FOLLOWED))
    kinds = [row.note.kind for row in tables.history() if row.note]
    assert kinds == [Kind.FOLLOWED, Kind.ROUND, Kind.ROUND, Kind.ROUND]
    assert in_force(tables) == "leaf-39"


def test_the_same_table_put_twice_is_one_and_keeps_its_date(tables: Tables) -> None:
    tables.put(table(1), note())
    tables.put(table(1), note(accuracy=0.5, kind=Kind.FOLLOWED))
    (row,) = tables.history()
    assert row.note is not None
    assert (row.note.kind, row.note.at, row.note.accuracy) == (Kind.ROUND, 1, 0.5)


def test_a_table_is_readable_by_its_owner_alone(tables: Tables, tmp_path: Path) -> None:
    tables.put(table(1), note())
    files = [path for path in (tmp_path / "router").iterdir() if path.is_file()]
    assert len(files) == 2 and all(path.stat().st_mode & 0o077 == 0 for path in files)


@pytest.mark.parametrize("at", [0, 20, 60, -1])
def test_a_damaged_table_is_named_listed_and_replaced(
    tables: Tables, tmp_path: Path, at: int
) -> None:
    tables.put(table(1), note())
    path = tmp_path / "router" / "table-00000001.bin"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(RoutingError):
        tables.load()
    assert [row.in_force for row in tables.history()] == [True]
    tables.put(table(2), note())
    assert in_force(tables) == "leaf-2"


@pytest.mark.parametrize("current", [b"", b"\xff\xfe", b"../../keys", b"table-00000099.bin"])
def test_a_damaged_name_of_the_table_in_force_is_no_table(
    tables: Tables, tmp_path: Path, current: bytes
) -> None:
    tables.put(table(1), note())
    (tmp_path / "router" / "current").write_bytes(current)
    with pytest.raises(RoutingError):
        tables.load()
    tables.put(table(2), note())
    assert in_force(tables) == "leaf-2"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_swap_killed_at_any_step_leaves_the_old_or_the_new_table_in_force() -> None:
    with fast_folder() as folder:

        def swap() -> None:
            tables = Tables(folder)
            with tables.turn():
                tables.put(table(2), note())

        Tables(folder).put(table(1), note())
        saved = {path.name: path.read_bytes() for path in (folder / "router").iterdir()}
        steps = steps_of(swap)
        assert steps >= 4
        for step in range(1, steps + 1):
            for path in (folder / "router").iterdir():
                path.unlink()
            for name, data in saved.items():
                (folder / "router" / name).write_bytes(data)
            assert killed_at(step, swap)
            assert in_force(Tables(folder)) in ("leaf-1", "leaf-2"), f"step {step}"
            swap()
            assert in_force(Tables(folder)) == "leaf-2", f"step {step}"
            assert [row.number for row in Tables(folder).history()] == [2, 1], f"step {step}"
            assert not list((folder / "router").glob(".*.tmp")), f"step {step}"


def _swap_often(folder: Path, first: int) -> None:
    tables = Tables(folder)
    for number in range(first, first + 10):
        with tables.turn():
            tables.put(table(number), note(Kind.FOLLOWED))


def test_two_processes_that_swap_never_leave_a_reader_without_a_table(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    tables.put(table(0), note())
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_swap_often, args=(tmp_path, n)) for n in (100, 200)]
    for writer in writers:
        writer.start()
    reads = 0
    while any(writer.is_alive() for writer in writers):
        assert in_force(tables)
        reads += 1
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert reads and in_force(tables) in ("leaf-109", "leaf-209")
    assert [row.number for row in tables.history()] == [21, 1]


def test_of_two_first_prompts_at_once_one_begins_the_table(home: Routed) -> None:
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: deploying.begin(home.app).number, range(2)))
    assert found == [1, 1] and [row.number for row in home.app.tables.history()] == [1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_deployment_killed_at_any_step_leaves_a_table_and_comes_to_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with fast_folder() as folder:
        home = routed(folder / "world", monkeypatch)
        home.deploy()
        home.grown("tides", "poems", sessions=40)
        home.app.forests.close()
        home.app.corpus.close()
        saved = folder / "saved"
        shutil.copytree(folder / "world", saved)

        def deploy() -> None:
            Routed(again()).deploy()

        def again() -> App:
            return routed(folder / "world", monkeypatch).app

        steps = steps_of(deploy)
        assert steps > 6
        for step in range(1, steps + 1):
            shutil.rmtree(folder / "world")
            shutil.copytree(saved, folder / "world")
            assert killed_at(step, deploy)
            app = again()
            assert app.tables.load() is not None, f"step {step}"
            deploy()
            assert {"tides", "poems"} <= Routed(app).names(), f"step {step}"
            assert [row.number for row in app.tables.history()] == [2, 1], f"step {step}"


def test_a_leaf_that_goes_while_a_round_measures_is_not_put_back(home: Routed) -> None:
    home.grown("tides", "poems", sessions=60)

    def meanwhile(progress: Progress) -> None:
        home.leaf("tides", stage=Stage.ARCHIVED)

    home.app.deploy_anew(home.told.append, meanwhile)
    assert "poems" in home.names() and "tides" not in home.names()


# ---- restored by the owner -----------------------------------------------------------------------


def test_a_restored_table_routes_as_it_did(home: Routed) -> None:
    home.grown("tides", sessions=60)
    home.deploy()
    home.grown("poems", sessions=60)
    home.deploy()
    assert "poems" in home.names()
    kept = deploying.restore(home.app, 1, pin=False)
    assert "poems" not in home.names() and kept.number == 3
    home.app.deploy()
    assert "poems" not in home.names()
    home.deploy()
    assert "poems" in home.names()


def test_what_was_retracted_or_archived_does_not_come_back_with_a_table(home: Routed) -> None:
    home.grown("tides", "poems", sessions=60)
    home.deploy()
    home.leaf("tides", stage=Stage.ARCHIVED)
    home.leaf("poems", name="verses")
    home.deploy()
    deploying.restore(home.app, 1, pin=False)
    assert "tides" not in home.names() and "verses" in home.names()


def test_a_table_that_is_not_there_is_named(home: Routed) -> None:
    home.deploy()
    with pytest.raises(RoutingError, match="no routing table 7 among"):
        deploying.restore(home.app, 7, pin=False)
    with pytest.raises(MisuseError, match="another encoder"):
        with home.app.tables.turn():
            home.app.tables.put(table(1), note())
        deploying.restore(home.app, 2, pin=False)


# ---- what is answered without a sound table ------------------------------------------------------


def test_with_a_damaged_table_the_chassis_answers_and_it_is_told(home: Routed) -> None:
    home.grown("tides", sessions=60)
    home.deploy()
    (home.app.home / "router" / "table-00000001.bin").write_bytes(b"garbage")
    found = asking.route(home.app, "tides 7", None)
    assert found["served_by_name"] == "chassis" and found["table"] is None
    assert "the chassis answers" in found["path"][0] and "groove-node round" in found["path"][0]
    home.deploy()
    assert home.events()[0] == "table damaged"
    assert asking.route(home.app, "tides 7", None)["leaf_name"] == "tides"


def test_with_a_table_of_another_encoder_the_chassis_answers_and_it_is_told(
    home: Routed,
) -> None:
    with home.app.tables.turn():
        home.app.tables.put(table(1), note(starters="serving"))
    found = asking.route(home.app, "tides 7", None)
    assert found["served_by_name"] == "chassis" and "another encoder" in found["path"][0]
    home.grown("tides", sessions=60)
    home.deploy()
    assert asking.route(home.app, "tides 7", None)["leaf_name"] == "tides"


def test_once_groove_toml_names_another_chassis_no_adapter_of_the_old_one_answers(
    home: Routed,
) -> None:
    old = Adapter("b" * 64, "d" * 64, "c" * 64, "e" * 16, 8)
    home.grown("tides", sessions=60, stage=Stage.MATURE, wins=2, adapter=old)
    seen = set_aside.InUse("", old.chassis)
    (home.app.home / set_aside.FILE).write_bytes(msgspec.json.encode(seen))
    home.deploy()
    assert asking.route(home.app, "tides 7", None)["served_by_name"] == "tides"
    any_app: Any = home.app
    before = home.app.config
    there = structs.replace(before.training, chassis=str(home.app.home / "other"))
    any_app.config = structs.replace(before, training=there)
    found = asking.route(home.app, "tides 7", None)
    assert found["leaf_name"] == "tides" and found["served_by_name"] == "chassis"
    any_app.config = before
    home.app.deploy_if_routed()
    assert asking.route(home.app, "tides 7", None)["served_by_name"] == "tides"


def test_neighbours_that_cannot_be_used_are_done_without_and_it_is_told(home: Routed) -> None:
    home.grown("tides", sessions=60)
    home.deploy()
    asked = asking.route(home.app, "tides 7", None)
    assert asked["trouble"] == "" and asked["candidates"][0]["votes"] == 1.0
    home.app.neighbours_path.write_bytes(b"garbage")
    told = {"not neighbours": asking.route(home.app, "tides 7", None)}
    vectors = np.stack([towards("tides")])
    Neighbours.build(["s"], vectors, {}, enc8=b"another1").save(home.app.neighbours_path)
    told["of another encoder"] = asking.route(home.app, "tides 7", None)
    for why, found in told.items():
        assert why in found["trouble"] and "centroids alone decide" in found["trouble"]
        assert found["leaf_name"] == "tides" and found["candidates"][0]["votes"] is None
    home.deploy()
    assert asking.route(home.app, "tides 7", None)["trouble"] == ""


@pytest.mark.parametrize("leaves", [True, False])
def test_one_session_is_enough_to_be_routed_by(home: Routed, leaves: bool) -> None:
    home.sessions("tides", range(1))
    if leaves:
        home.leaf("tides", sessions=1)
        home.assign({"tides-00000": leaf_id("tides")})
    home.deploy()
    found = asking.route(home.app, "tides 7", None)
    assert found["leaf_name"] == ("tides" if leaves else "chassis")
    assert asking.route(home.app, "rust ask 1", None)["served_by_name"] == "rust-starter"


def test_a_table_of_an_older_node_goes_on_with_starters_beside_it(home: Routed) -> None:
    home.grown("tides", sessions=60)
    home.deploy()
    current = home.app.tables.current()
    assert current is not None
    folder = home.app.home / "router"
    (folder / "table-00000001.bin").write_bytes(older(current.table))
    found = asking.route(home.app, "tides 7", None)
    assert (found["leaf_name"], found["table"], found["trouble"]) == ("tides", 2, "")
    assert asking.route(home.app, "rust ask 1", None)["served_by_name"] == "rust-starter"
    newest, oldest = home.app.tables.history()
    assert newest.note is not None and newest.note.leaves == 1
    assert newest.note.why == "starters serve beside table 1, of an older groove-node"
    assert oldest.note is not None and oldest.note.why == "of an older groove-node"


def older(table: Table) -> bytes:
    """The bytes of a table as they were: bare, and its entries without weight and hubness."""
    data = table.to_bytes()
    start = len(MAGIC) + 4
    length = struct.unpack("<I", data[start - 4 : start])[0]
    header = json.loads(data[start : start + length])
    header["entries"] = [row[:-2] for row in header["entries"]]
    encoded = json.dumps(header).encode()
    body = MAGIC_1 + struct.pack("<I", len(encoded)) + encoded + data[start + length : -4]
    return body + struct.pack("<I", zlib.crc32(body))


def test_a_table_of_another_encoder_follows_in_its_own_and_gains_nothing(home: Routed) -> None:
    home.leaf("tides")
    home.leaf("poems")
    entries = [own_entry(leaf, servable=False) for leaf in home.app.forests.forest().live()]
    peer = Entry(leaf_id("theirs"), "theirs", 2, Stage.MATURE, towards("theirs"), origin="ff" * 32)
    kept = [entry for entry in entries if entry.name == "tides"]
    with home.app.tables.turn():
        home.app.tables.put(Table.build(b"another1", 384, [*kept, peer]), note(leaves=2))
    home.app.deploy()
    current = home.app.tables.current()
    assert current is not None and current.table.enc8 == b"another1"
    assert home.names() == {"tides"}


def test_a_round_follows_the_leaves_as_they_moved(home: Routed) -> None:
    home.grown("tides", sessions=60)
    home.deploy()
    moved = towards("tides") + 0.1 * towards("poems")
    home.leaf("tides", centroid=(moved / np.linalg.norm(moved)).astype(np.float32))
    home.deploy()
    current = home.app.tables.current()
    assert current is not None and current.number == 2 and current.note.kind is Kind.ROUND
