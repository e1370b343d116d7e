"""Receipts: what was agreed to can be proven, and one that is missing or changed is noticed."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support_consent import USER, Home

from gossip.envelope import TYPES
from gossip.wire import Head, Retract, WireError, decode, encode
from node.clock import SystemClock
from node.consent import ConsentLockedError, ConsentManager, Scope, store
from node.consent.receipts import (
    DOMAIN,
    Decision,
    KeySigner,
    message,
    missing,
    problems,
    read,
    write,
)
from node.identity import load_or_create


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "home").mkdir(mode=0o700)
    return Home(tmp_path / "home")


@pytest.fixture
def signer(home: Home) -> KeySigner:
    return KeySigner(load_or_create(home.folder, SystemClock().now_s()).keys)


def three(home: Home, signer: KeySigner | None) -> None:
    """A grant, a wider one, a withdrawal."""
    with home.open(signer) as manager:
        manager.record_consent(USER, True, "1.0", {"ui": "test"}, sources=["llm"])
        manager.grant(USER, [Scope.TRAIN], folders=[home.folder / "p"], disclosure="d" * 64)
        manager.revoke_consent(USER)


def altered(home: Home, *statements: str) -> list[str]:
    """What is wrong once the database was edited by hand."""
    db = sqlite3.connect(home.db)
    for statement in statements:
        db.execute(statement)
    db.commit()
    db.close()
    with home.open() as manager:
        return manager.problems()


def test_each_decision_yields_a_signed_receipt_that_names_the_one_before(
    home: Home, signer: KeySigner
) -> None:
    three(home, signer)
    with home.open() as manager:
        kept = manager.receipts()
        assert manager.problems() == []
    said = [json.loads(each.body) for each in kept]
    assert [each["number"] for each in said] == [1, 2, 3]
    assert [each["previous"] for each in said] == ["", kept[0].hash, kept[1].hash]
    assert [each["scopes"] for each in said] == [["capture"], ["capture", "train"], []]
    assert said[1]["sources"] == ["llm"] and said[1]["folders"] == [str(home.folder / "p")]
    assert (said[0]["metadata"], said[0]["at"]) == ({"ui": "test"}, home.clock.now_s())
    assert said[1]["disclosure"] == "d" * 64
    assert all(each.signature and each.signed_at == home.clock.now_s() for each in kept)
    for each in kept:
        assert each.hash == hashlib.sha256(DOMAIN + each.body.encode()).hexdigest()
        assert each.body == json.dumps(json.loads(each.body), separators=(",", ":"), sort_keys=True)


def test_what_a_program_without_the_key_recorded_is_signed_when_the_node_opens_the_store(
    home: Home, signer: KeySigner
) -> None:
    three(home, None)
    with home.open() as manager:
        assert [each.signature for each in manager.receipts()] == [b"", b"", b""]
        assert manager.problems() == []
    home.clock.time_s += 60
    with home.open(signer) as manager:
        assert all(each.signature for each in manager.receipts())
        assert {each.signed_at for each in manager.receipts()} == {home.clock.now_s()}
        assert manager.problems() == []


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("DELETE FROM consent WHERE id = 1", "does not follow"),
        ("DELETE FROM consent WHERE id = 2", "does not follow"),
        ("DELETE FROM consent WHERE id = 3", "written last"),
        ("UPDATE consent SET receipt = replace(receipt, 'llm', 'api') WHERE id = 1", "altered"),
        ("UPDATE consent SET at = 1.0 WHERE id = 2", "the row beside it"),
        ("UPDATE consent SET scopes = 'capture publish' WHERE id = 2", "the row beside it"),
        ("UPDATE consent SET signature = zeroblob(64) WHERE id = 2", "signature is wrong"),
        ("UPDATE consent SET key_doc = x'00' WHERE id = 2", "document of its key"),
        (
            "UPDATE consent SET (receipt, hash, signature) = "
            "(SELECT receipt, hash, signature FROM consent WHERE id = 1) WHERE id = 2",
            "does not follow",
        ),
    ],
)
def test_a_removed_or_altered_receipt_is_found(
    home: Home, signer: KeySigner, statement: str, found: str
) -> None:
    three(home, signer)
    assert any(found in problem for problem in altered(home, statement))


def test_a_chain_that_was_written_anew_does_not_bear_the_signatures(
    home: Home, signer: KeySigner
) -> None:
    three(home, signer)
    db = sqlite3.connect(home.db)
    body = db.execute("SELECT receipt FROM consent WHERE id = 3").fetchone()[0]
    forged = body.replace('"scopes":[]', '"scopes":["capture"]')
    hash_ = hashlib.sha256(message(forged)).hexdigest()
    db.close()
    found = altered(home, f"UPDATE consent SET receipt = '{forged}', hash = '{hash_}' WHERE id = 3")
    assert any("signature is wrong" in each for each in found)
    assert any("written last" in each for each in found)


def test_another_nodes_signature_is_none_of_ours(
    home: Home, signer: KeySigner, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir(mode=0o700)
    stranger = load_or_create(tmp_path / "other", SystemClock().now_s())
    three(home, KeySigner(stranger.keys))
    with home.open() as manager:
        assert manager.problems(stranger.origin) == []
        ours = load_or_create(home.folder, SystemClock().now_s()).origin
        assert manager.problems(ours) == [f"receipt {n}: another node signed it" for n in (1, 2, 3)]


def test_a_receipt_is_no_message_of_the_mesh_and_none_is_a_receipt(
    home: Home, signer: KeySigner
) -> None:
    prefixes = [b"groove/" + name.encode() + b"\0" for name in TYPES.values()]
    prefixes.append(b"groove/keydoc/1\0")
    assert not any(a.startswith(b) or b.startswith(a) for a in prefixes for b in [DOMAIN])
    three(home, signer)
    with home.open() as manager:
        body = manager.receipts()[0].body
    for kind in (Head, Retract):
        with pytest.raises(WireError):
            decode(body.encode(), kind)
    doc = encode(load_or_create(home.folder, SystemClock().now_s()).keys.doc)
    assert read(doc.decode("latin-1"), "") is None


def test_what_a_receipt_says_survives_any_metadata(home: Home) -> None:
    odd: dict[str, Any] = {"z": 1, "a": [1.5, None, {"y": "\N{SNOWMAN}", "b": "\x00"}], "": {}}
    with home.open() as manager:
        manager.record_consent(USER, True, "1.0", odd)
        assert manager.problems() == []
        (receipt,) = manager.receipts()
        said = read(receipt.body, receipt.hash)
    assert isinstance(said, Decision) and said.metadata == odd


def numbers(manager: ConsentManager) -> list[int]:
    return [json.loads(each.body)["number"] for each in manager.receipts()]


def test_receipts_that_were_in_a_replaced_store_are_named_by_the_next_one(home: Home) -> None:
    with home.open() as manager:
        manager.record_consent(USER, True, "1.0")
    old = home.back_up()
    with home.open() as manager:
        manager.grant_scope(USER, Scope.TRAIN)
        manager.revoke_consent(USER)
    home.restore(old)
    with home.open() as manager:
        assert missing(manager.receipts()) == {}, "so far the head alone shows it"
        assert any("written last" in each for each in manager.problems())
        manager.grant_scope(USER, Scope.CAPTURE)
        manager.grant_scope(USER, Scope.FETCH)
        assert numbers(manager) == [1, 4, 5]
        assert missing(manager.receipts()) == {
            4: "receipts 2-3 are missing: the store was replaced, by a backup or by hand"
        }
        assert manager.problems() == []


def test_a_new_store_in_an_old_ones_place_names_what_was_in_that(home: Home) -> None:
    three(home, None)
    home.restore_empty()
    with home.open() as manager:
        manager.record_consent(USER, True, "1.0")
        assert numbers(manager) == [4]
        assert missing(manager.receipts())[4].startswith("receipts 1-3 are missing: the store was")
        assert manager.problems() == []


def test_a_jump_that_no_receipt_explains_is_found(home: Home) -> None:
    first = Decision(
        number=1,
        user_id=USER,
        event="decision",
        opted_in=True,
        version="1.0",
        scopes=("capture",),
        sources=(),
        folders=(),
        at=7.0,
        metadata={},
        disclosure="",
        previous="",
    )
    one = write(first)
    four = write(msgspec.structs.replace(first, number=4, previous=one.hash))
    assert problems([one, four]) == ["receipt 4: receipts 2-3 are missing, and nothing says why"]
    two = write(msgspec.structs.replace(first, number=2, previous=one.hash, broken="restored"))
    assert problems([one, two]) == [] and missing([one, two]) == {}


def test_decisions_that_could_not_be_written_leave_no_gap_or_say_why(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "WAIT_S", 0.05)
    with home.open() as manager:
        manager.record_consent(USER, True, "1.0")
        holder = sqlite3.connect(home.db, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(ConsentLockedError):
            manager.grant_scope(USER, Scope.TRAIN)
        holder.execute("ROLLBACK")
        manager.grant_scope(USER, Scope.TRAIN)
        assert numbers(manager) == [1, 2]
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(ConsentLockedError):
            manager.revoke_consent(USER)
        holder.close()
        manager.revoke_consent(USER)
        assert numbers(manager) == [1, 2, 4]
        told = "receipt 3 is missing: a change of consent was interrupted"
        assert missing(manager.receipts()) == {4: told}
        assert manager.problems() == []
