"""The owner's rights: what is deleted is gone everywhere, and all that was made of it with it."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support_capture import NOON, record
from support_faults import Stricter, fast_folder, killed_at, steps_of
from support_rights import ALIEN, HEIR, KEPT_HOME, PHRASES, PUBLISHED, World, world

from leaves.lifecycle import Purpose, Rules, due
from leaves.model import Instant, Stage
from node import rights, screening
from node.app import App
from node.config import RegistryConfig
from node.consent import Scope, deleted, store
from node.deletion import DeletionError
from node.errors import MisuseError
from node.mailbox import Retract
from node.registry import Entry, Index, open_registry
from node.rights import Selection
from node.told import Told

PLANNING = PHRASES[50:]


@pytest.fixture(scope="module")
def made() -> Iterator[World]:
    with fast_folder() as folder, pytest.MonkeyPatch.context() as patch:
        yield world(folder, patch)


@pytest.fixture
def home(made: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """The home as it was made."""
    monkeypatch.setenv("GROOVE_HOME", str(made.home))
    monkeypatch.setenv("GROOVE_STATE", str(made.folder / "world" / "state"))
    made.restore()
    return made


def retractions(app: App) -> set[str | None]:
    return {
        letter.order.leaf for letter in app.mailbox.waiting() if isinstance(letter.order, Retract)
    }


# ---- deletion ------------------------------------------------------------------------------------


def test_deleting_everything_leaves_no_phrase_no_consent_and_no_adapter(home: World) -> None:
    assert home.found() == PHRASES
    app = home.open()
    receipt = rights.delete(app)
    assert home.found() == [] and home.found(["an ordinary phrase"]) == []
    assert not app.consent.scopes(app.user_id)
    assert retractions(app) == {PUBLISHED}
    assert not list((home.home / "bundles").glob("*.bundle"))
    assert list(app.forests.forest()) == [] and not (home.home / "embeddings").exists()
    assert (receipt["records_deleted"], receipt["sessions_deleted"]) == (240, 120)
    assert (receipt["consent_revoked"], receipt["leaves_retracted"]) == (True, 1)


def test_a_receipt_of_each_deletion_is_kept_without_content(home: World) -> None:
    app = home.open()
    rights.delete(app, Selection(sessions=("s-007",)))
    app.clock.time_s += 60  # type: ignore[attr-defined]
    rights.delete(app)
    kept = rights.receipts(app)
    assert [each["selected"]["everything"] for each in kept] == [False, True]
    assert kept[0]["retracted"] == [PUBLISHED] and kept[0]["at"] == NOON
    assert "s-007" not in (home.home / "deletions.jsonl").read_text()


def test_deleting_a_domain_leaves_the_others_and_the_consent_as_they_were(home: World) -> None:
    app = home.open()
    receipt = rights.delete(app, Selection(domain="planning"))
    assert home.found() == [p for p in PHRASES[:50] if p in home.found()] != []
    assert not set(home.found()) & set(PLANNING)
    assert Scope.CAPTURE in app.consent.scopes(app.user_id)
    assert receipt["consent_revoked"] is False and receipt["sessions_deleted"] == 50
    assert {s.session_id for s in app.corpus.sessions()} == {
        f"s-{n:03d}" for n in range(120) if not 50 <= n < 100
    }
    assert app.embeddings.vector("s-055") is None and app.embeddings.vector("s-001") is not None
    assert app.forests.members(KEPT_HOME) == [f"s-{n}" for n in range(100, 120)]


def test_leaves_that_never_left_lose_their_adapters_with_all_that_were_split_from_them(
    home: World,
) -> None:
    app = home.open()
    receipt = rights.delete(app, Selection(sessions=("s-055",)))
    assert receipt["to_retrain"] == [KEPT_HOME, HEIR] and receipt["retracted"] == []
    leaves = app.forests.forest().leaves
    for id_ in (KEPT_HOME, HEIR):
        assert (leaves[id_].stage, leaves[id_].adapter, leaves[id_].trainings) == (
            Stage.SPROUT,
            None,
            0,
        )
    wanted = due(app.forests.forest(), app.now(), Rules())
    assert [each.id for each in wanted if each.purpose is Purpose.FIRST] == [KEPT_HOME, HEIR]
    for id_ in (PUBLISHED, ALIEN):
        adapter = leaves[id_].adapter
        assert adapter is not None and leaves[id_].stage is Stage.MATURE
        assert app.bundles.get(adapter.bundle) and app.bundles.get(adapter.control)
    assert len(list((home.home / "bundles").glob("*.bundle"))) == 4
    table = app.tables.load()
    assert table is not None
    assert {entry.leaf for entry in table.entries if entry.servable} == {PUBLISHED, ALIEN}


def test_a_leaf_that_peers_know_is_retracted_and_its_name_forgotten(home: World) -> None:
    app = home.open()
    rights.delete(app, Selection(sessions=("s-007",)))
    assert retractions(app) == {PUBLISHED}
    leaf = app.forests.forest().leaves[PUBLISHED]
    assert (leaf.stage, leaf.adapter, leaf.name) == (Stage.DISSOLVED, None, "leaf-00000000")
    assert home.found(["zymurgy007"]) == []
    assert {entry.leaf.name for entry in app.forests.history(PUBLISHED)} == {"leaf-00000000"}


def test_a_name_that_a_leaf_only_once_had_is_forgotten_too(home: World) -> None:
    app = home.open()
    leaf = app.forests.forest().leaves[ALIEN]
    once = replace(leaf, name="zymurgy020-qwxv", version=leaf.version + 1)
    app.forests.change(once, "drifted", "", Instant(2))
    app.events.tell(Told("stage", "zymurgy020-qwxv: seed -> sprout"))
    owned = replace(once, name="my-infra", named_by_owner=True, version=once.version + 1)
    app.forests.change(owned, "renamed", "by the owner", Instant(3))
    receipt = rights.delete(app, Selection(sessions=("s-020",)))
    assert app.forests.names()[ALIEN] == {"my-infra"} and home.found(["zymurgy020"]) == []
    assert receipt["to_retrain"] == [ALIEN], "its bundle may have been packed under that name"


def test_a_bundle_that_nobody_recorded_goes_with_every_deletion(home: World) -> None:
    app = home.open()
    app.corpus.add_records([record(900, session_id="s-300")])
    packed = app.bundles.put(b"packed by hand, or by a round that was killed")
    work = home.home / "training" / ALIEN / "by-hand" / "leaf" / "adapter.safetensors"
    work.parent.mkdir(parents=True)
    work.write_bytes(b"an adapter")
    receipt = rights.delete(app, Selection(sessions=("s-300",)))  # no leaf on record used it
    assert (receipt["leaves_retracted"], receipt["leaves_to_retrain"]) == (0, 0)
    assert app.bundles.path(packed) is None and not work.exists()
    for leaf in app.forests.forest():
        assert leaf.adapter is not None and app.bundles.path(leaf.adapter.bundle)


def test_the_registry_follows_a_deletion(home: World, tmp_path: Path) -> None:
    app = home.open()
    shelf = RegistryConfig(url=str(tmp_path / "shelf"))
    app.config = msgspec.structs.replace(app.config, registry=shelf)
    registry = open_registry(shelf)
    assert registry is not None
    bundle = registry.blobs.put(b"one that was offered")
    entry = Entry(
        origin=app.origin.hex(), leaf=PUBLISHED, version=1, bundle=bundle, label="f" * 64,
        control=bundle, chassis="ab" * 8, size_bytes=20,
    )  # fmt: skip
    registry.update(lambda index: index.with_leaves_of(entry.origin, [entry]))
    rights.delete(app, Selection(sessions=("s-007",)))
    assert registry.index() == Index() and registry.blobs.get(bundle) is None


def test_an_open_round_begins_anew_after_a_filtered_deletion(home: World) -> None:
    app = home.open()
    rights.delete(app, Selection(sessions=("s-055",)))
    row = app.forests.open_round()
    assert row is not None and (row.phase, row.state) == ("embed", {"due": [], "done": {}})


def test_a_deleted_session_does_not_come_back_by_itself(home: World) -> None:
    app = home.open()
    rights.delete(app, Selection(sessions=("s-055",)))
    again = record(999, session_id="s-055", content="the transcript still lies there")
    assert app.corpus.was_deleted("s-055") and not app.corpus.was_deleted("s-054")
    assert app.corpus.add_records([again, record(998, session_id="s-200")]) == 1
    assert app.corpus.add_record(again) is False
    assert b"s-055" not in (app.corpus.root / ".deleted").read_bytes()
    rights.delete(app)  # ends consent: a new one is the owner's word
    assert not app.corpus.was_deleted("s-055")


def test_a_domain_is_not_that_of_the_closing_records(home: World) -> None:
    """Their one word is tagged the same in every session: all would be deleted with one domain."""
    app = home.open()
    close = {"content_type": "workflow", "metadata": {"event": "SESSION_CLOSE"}}
    app.corpus.add_records(
        [
            record(900, session_id="s-055", domain="general", **close),
            record(901, session_id="g-1", domain="general"),
        ]
    )
    assert rights.delete(app, Selection(domain="general"))["sessions_deleted"] == 1
    assert len(home.found()) == 100


def test_a_preview_counts_what_a_deletion_then_does_and_changes_nothing(home: World) -> None:
    app = home.open()
    app.corpus.add_records([record(900, session_id="s-001", domain="planning")])
    before = {path: path.read_bytes() for path in app.corpus.files()}
    chosen = Selection(domain="planning")
    asked = rights.preview_deletion(app, chosen)
    assert {path: path.read_bytes() for path in app.corpus.files()} == before
    assert app.consent.is_opted_in(app.user_id) and not (home.home / rights.MARKER).exists()
    assert (asked.records, asked.fitting, asked.sessions) == (103, 101, 51)
    assert not asked.everything and not asked.ends_consent
    done = rights.delete(app, chosen)
    assert (asked.records, asked.sessions, asked.retracted, asked.retrained) == (
        done["records_deleted"],
        done["sessions_deleted"],
        done["leaves_retracted"],
        done["leaves_to_retrain"],
    )


def test_the_second_scan_forgets_the_sessions_that_are_deleted(home: World) -> None:
    app = home.open()
    entries = [(screening._id_hash(f"s-{number:03d}"), b"12345678") for number in (54, 55)]
    scanned = b"".join(id_ + texts for id_, texts in entries)
    memory = screening.Memory("1", scanned, {"s-054": "rule", "s-055": "rule"})
    (app.home / screening.FILE).write_bytes(msgspec.json.encode(memory))
    rights.delete(app, Selection(sessions=("s-055",)))
    kept = screening.read(app.home)
    assert kept.hits == {"s-054": "rule"} and kept.entries() == dict(entries[:1])


def test_consent_that_was_withdrawn_before_is_not_said_to_be_withdrawn_by_the_deletion(
    home: World,
) -> None:
    app = home.open()
    app.consent.revoke_consent(app.user_id)
    assert rights.delete(app)["consent_revoked"] is False


def test_a_deletion_that_a_locked_consent_store_stops_says_that_its_order_stands(
    home: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "WAIT_S", 0.05)
    app = home.open()
    holder = sqlite3.connect(app.home / "consent.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(DeletionError, match="ordered and not finished") as caught:
        rights.delete(app)
    holder.close()
    assert "order stands" in caught.value.unchanged and "Nothing was" not in caught.value.unchanged
    assert "next command" in caught.value.next_step
    assert not app.consent.may_capture(app.user_id)
    assert not list(home.open().corpus.records()), "it was carried out by the next that opened"


def test_what_a_filter_does_not_fit_is_not_touched(home: World) -> None:
    app = home.open()
    before = {path: path.read_bytes() for path in app.corpus.files()}
    receipt = rights.delete(app, Selection(domain="journalism"))
    assert receipt["sessions_deleted"] == 0 and rights.receipts(app) == []
    assert {path: path.read_bytes() for path in app.corpus.files()} == before
    assert app.forests.open_round().phase == "train"  # type: ignore[union-attr]
    assert (home.home / "rounds").exists()


def test_deleting_one_user_ends_that_users_consent_and_nobody_elses(home: World) -> None:
    app = home.open()
    app.consent.record_consent("other", True, "1.0")
    app.corpus.add_records([record(900, user="other", session_id="o-1", content="theirs")])
    receipt = rights.delete(app, Selection(user_id="other"))
    assert receipt["consent_revoked"] and receipt["records_deleted"] == 1
    assert not app.consent.is_opted_in("other") and app.consent.is_opted_in(app.user_id)
    assert home.found(["theirs"]) == [] and len(home.found()) == 100


def test_deleting_the_only_user_is_deleting_everything(home: World) -> None:
    app = home.open()
    receipt = rights.delete(app, Selection(user_id=app.user_id))
    assert receipt["selected"]["everything"] and receipt["consent_revoked"]
    assert home.found() == [] and list(app.forests.forest()) == []


def test_after_limits_a_deletion_to_what_came_later(home: World) -> None:
    app = home.open()
    assert rights.delete(app, Selection(after=NOON + 109))["sessions_deleted"] == 10


def test_a_database_that_is_held_leaves_the_order_and_the_next_start_finishes_it(
    home: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = home.open()
    monkeypatch.setattr("node.deletion._LOCKED_S", 0.01)
    holder = sqlite3.connect(home.home / "mesh.db", isolation_level=None)
    holder.execute("PRAGMA journal_mode=WAL")
    holder.execute("CREATE TABLE held (x)")
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(DeletionError, match="not finished"):
        rights.delete(app)
    assert (home.home / rights.MARKER).exists()
    holder.execute("ROLLBACK")
    holder.close()
    app = home.open()
    assert not (home.home / rights.MARKER).exists() and home.found() == []
    assert len(rights.receipts(app)) == 1


def _delete(selection: Selection) -> None:
    rights.delete(App.open(), selection)


@pytest.mark.parametrize(
    ("selection", "phrases"),
    [
        pytest.param(Selection(), PHRASES, id="everything"),
        pytest.param(Selection(domain="planning"), PLANNING, id="a domain"),
    ],
)
def test_a_deletion_killed_at_any_step_is_finished_by_the_next_start(
    home: World, selection: Selection, phrases: list[str]
) -> None:
    steps = steps_of(lambda: _delete(selection))
    assert steps > 40
    ordered = False
    for step in range(1, steps + 1):
        home.restore()
        assert killed_at(step, lambda: _delete(selection)), f"step {step} was not reached"
        unordered = not (home.home / rights.MARKER).exists() and not ordered
        app = home.open()
        if unordered:  # nothing was promised yet, so nothing may have changed
            assert len(home.found()) == 100 and app.consent.is_opted_in(app.user_id)
            continue
        ordered = True
        assert not (home.home / rights.MARKER).exists(), f"step {step}"
        left = set(home.found()) & set(phrases)
        assert not left, f"step {step}: {sorted(left)}"
        assert app.consent.is_opted_in(app.user_id) == (not selection.everything)
        assert len(rights.receipts(app)) == 1, f"step {step}"
        if selection.everything:
            assert retractions(app) == {PUBLISHED}, f"step {step}"
            assert deleted.undone(home.home) is None, f"step {step}"
            (home.home / deleted.RECEIPTS).unlink()  # as in a home of before
            assert deleted.undone(home.home) is not None, f"step {step}"
        else:
            leaves = app.forests.forest().leaves
            assert leaves[KEPT_HOME].adapter is leaves[HEIR].adapter is None, f"step {step}"
            assert app.embeddings.vector("s-055") is None and app.corpus.was_deleted("s-055")
    assert ordered


# ---- a rescan ------------------------------------------------------------------------------------

SOILED = "I am Rumpelstiltskin, who asks of zymurgy"


def soil(app: App) -> App:
    """Two sessions as rules of yesterday left them: one taught KEPT_HOME, one taught nobody."""
    app.corpus.add_records(
        [
            record(700, session_id="s-055", content=SOILED),
            record(701, session_id="s-110", content=SOILED),
            record(702, session_id="s-111", content="hopeless"),
        ]
    )
    app.corpus.close()
    (app.corpus.root / "scrub_rules").write_text("0\n")
    any_app: Any = app
    any_app.scrubber = Stricter()
    return app


def test_a_rescan_cleans_what_is_stored_and_has_made_anew_what_was_made_of_it(
    home: World,
) -> None:
    app = soil(home.open())
    assert rights.stats(app)["rescan_due"] and home.found(["Rumpelstiltskin"])
    result = rights.rescan(app)
    assert (result["changed"], result["dropped"], result["sessions_changed"]) == (2, 1, 3)
    assert home.found(["Rumpelstiltskin", "hopeless"]) == []
    assert not rights.stats(app)["rescan_due"] and len(home.found()) == 100
    for changed in ("s-055", "s-110", "s-111"):
        assert app.embeddings.vector(changed) is None
    assert app.embeddings.vector("s-054") is not None
    leaves = app.forests.forest().leaves
    assert leaves[KEPT_HOME].adapter is leaves[HEIR].adapter is None
    assert leaves[PUBLISHED].adapter is not None and retractions(app) == set()
    again = rights.rescan(app)
    assert (again["changed"], again["dropped"], again["sessions_changed"]) == (0, 0, 0)


def test_a_clean_home_is_rescanned_without_touching_a_leaf(home: World) -> None:
    app = home.open()
    before = app.forests.revision()
    result = rights.rescan(app)
    assert (result["records"], result["changed"], result["leaves_to_retrain"]) == (360, 0, 0)
    assert app.forests.revision() == before and (home.home / "rounds").exists()
    assert rights.stats(app)["torn_lines"] == 0


def test_a_rescan_killed_at_any_step_is_due_and_completed_by_the_next(home: World) -> None:
    def clean() -> None:
        any_app: Any = App.open()
        any_app.scrubber = Stricter()
        rights.rescan(any_app)

    soil(home.open())
    shutil.copytree(home.folder / "world", home.folder / "soiled")
    for step in range(1, steps_of(clean) + 1):
        shutil.rmtree(home.folder / "world")
        shutil.copytree(home.folder / "soiled", home.folder / "world")
        assert killed_at(step, clean)
        app = home.open()
        if rights.rescan_due(app):
            clean()
        assert home.found(["Rumpelstiltskin", "hopeless"]) == [], f"step {step}"
        leaves = app.forests.forest().leaves
        assert leaves[KEPT_HOME].adapter is leaves[HEIR].adapter is None, f"step {step}"
        assert app.embeddings.vector("s-110") is None, f"step {step}"


# ---- a copy --------------------------------------------------------------------------------------


def test_an_export_takes_the_sessions_of_a_leaf_with_their_vectors(
    home: World, tmp_path: Path
) -> None:
    target = tmp_path / "mine.jsonl"
    filters = rights.Filters(leaf="domain-2", domain="code")
    done = rights.export(home.open(), target, filters, vectors=True)
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert len(rows) == 60 and (done["exported"], done["closing"]) == (40, 20)
    assert done["vectors"] == 120
    assert {row["session_id"] for row in rows} == {f"s-{n}" for n in range(100, 120)}
    assert [len(row["vector"]) for row in rows if "vector" in row] == [384] * 20


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("2026-04-26", NOON - 43_200.001),
        ("2026-04-26T12:00", NOON - 0.001),
        ("7d", NOON - 7 * 86_400),
        ("90m", NOON - 5_400),
    ],
)
def test_after_is_a_date_or_a_duration(text: str, after: float) -> None:
    assert rights.parse_after(text, NOON) == pytest.approx(after)


@pytest.mark.parametrize("text", ["yesterday", "7", "-3d", "2026-13-01", ""])
def test_after_refuses_what_is_neither(text: str) -> None:
    with pytest.raises(MisuseError, match="neither a date"):
        rights.parse_after(text, NOON)


# ---- figures -------------------------------------------------------------------------------------


def test_the_figures_say_what_training_may_use_and_that_nothing_waits(home: World) -> None:
    figures = rights.stats(home.open())
    assert figures["training"]["sessions"] == figures["sessions"] == 120
    assert (figures["total_records"], figures["torn_lines"], figures["rescan_due"]) == (
        240,
        1,
        False,
    )
