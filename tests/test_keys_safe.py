"""A copy of the keys: what is in the file, what is not, and what a hostile one can ask for."""

from __future__ import annotations

import base64
import errno
import fcntl
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gossip_kit import NOW_S
from hypothesis import given, settings
from hypothesis import strategies as st
from support_faults import killed_at, steps_of

from gossip.keys import issue, private_key, public_bytes
from gossip.wire import encode
from node import keyfiles, keysafe, rekeying, swarm
from node.app import App, BusyError
from node.identity import load_or_create, read_seed
from node.keysafe import SafeError, Secrets, seal, unseal
from node.rekeying import KeysError

PASSPHRASE = "a dozen grey geese"
QUICK = 10  # log2 of scrypt's cost: a mebibyte


class Clock:
    def now_s(self) -> float:
        return float(NOW_S)


def opened(home: Path, *, keys: bool = True) -> App:
    home.mkdir(mode=0o700, exist_ok=True)
    app = App(home, Clock())
    if keys:
        app.identity  # noqa: B018 - a home has keys
    return app


def files(home: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (home / "keys").iterdir()}


@pytest.fixture
def app(tmp_path: Path) -> App:
    return opened(tmp_path / "home")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal, "__defaults__", (QUICK,))


@pytest.fixture
def kept(app: App) -> Secrets:
    folder = app.home / "keys"
    return Secrets(
        read_seed(folder / "root.key"),
        read_seed(folder / "op.key"),
        app.identity.transport,
        encode(app.identity.keys.doc),
        b"5a" * 32 + b"\n",
    )


# ---- the file ------------------------------------------------------------------------------------


def test_a_copy_gives_back_what_was_put_in_and_says_of_whom_it_is(kept: Secrets, app: App) -> None:
    header, again = unseal(seal(kept, PASSPHRASE, 7.0), PASSPHRASE)
    assert again == kept
    assert (header.origin, header.holds, header.made) == (app.origin.hex(), "all", 7.0)


def test_the_real_cost_of_a_guess_is_128_mib(kept: Secrets) -> None:
    blob = seal(kept, PASSPHRASE, 0.0, keysafe.LOG2_N)
    header, again = unseal(blob, PASSPHRASE)
    assert again == kept
    assert 128 * header.r << header.log2_n == 128 << 20


def test_no_secret_stands_in_the_file_and_none_in_a_repr(kept: Secrets) -> None:
    blob = seal(kept, PASSPHRASE, 0.0)
    assert repr(kept) == "Secrets(…)"
    for secret in (kept.root, kept.op, kept.transport, kept.swarm):
        assert secret
        for form in (secret, secret.hex().encode(), base64.b64encode(secret)):
            assert form not in blob


def test_two_copies_of_the_same_keys_have_nothing_in_common(kept: Secrets) -> None:
    one, two = (json.loads(seal(kept, PASSPHRASE, 0.0)) for _ in range(2))
    assert one["header"]["salt"] != two["header"]["salt"]
    assert one["header"]["nonce"] != two["header"]["nonce"] and one["sealed"] != two["sealed"]


def test_a_letter_that_keyboards_write_in_two_ways_is_one(kept: Secrets) -> None:
    blob = seal(kept, "caf\u00e9 au lait, twice", 0.0)
    assert unseal(blob, "cafe\u0301 au lait, twice")[1] == kept


@pytest.mark.parametrize("passphrase", ["", "too short", "x" * 1025])
def test_a_passphrase_that_is_none_is_refused_before_anything_is_written(
    app: App, tmp_path: Path, passphrase: str
) -> None:
    with pytest.raises(SafeError, match="10 to 1,024"):
        rekeying.export(app, tmp_path / "copy", passphrase)
    assert not (tmp_path / "copy").exists()


def test_another_passphrase_or_a_changed_byte_opens_nothing(kept: Secrets) -> None:
    blob = seal(kept, PASSPHRASE, 0.0)
    with pytest.raises(SafeError, match="passphrase"):
        unseal(blob, PASSPHRASE + "!")
    document = json.loads(blob)
    for field, value in (("made", 1.0), ("holds", "root"), ("log2_n", QUICK + 1)):
        changed = {**document, "header": {**document["header"], field: value}}
        with pytest.raises(SafeError):
            unseal(json.dumps(changed).encode(), PASSPHRASE)


@settings(max_examples=200)
@given(data=st.data())
def test_no_file_raises_anything_but_a_word_for_the_owner(data: st.DataObject) -> None:
    blob = bytearray(seal(Secrets(bytes(32)), PASSPHRASE, 0.0, QUICK))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(blob) - 1))
        blob[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    try:
        assert unseal(bytes(blob), PASSPHRASE)[1] == Secrets(bytes(32))
    except SafeError as problem:
        assert bytes(32).hex() not in str(problem)


def header(**changed: Any) -> bytes:
    """A file whose header asks for something else than ours do."""
    document = json.loads(seal(Secrets(bytes(32)), PASSPHRASE, 0.0, QUICK))
    return json.dumps({**document, "header": {**document["header"], **changed}}).encode()


@pytest.mark.parametrize(
    "asked",
    [
        *({"log2_n": 19}, {"log2_n": 40}, {"log2_n": -1}, {"r": 2**30}, {"p": 2**30}),
        *({"salt": ""}, {"salt": "ab" * 4000}, {"nonce": "00"}, {"kdf": "none"}),
        *({"version": 2}, {"more": 1}, {"made": 1e300}, {"made": -1e15}),
        *({"salt": "a" * 31 + "\n"}, {"nonce": "a" * 23 + "\n"}, {"origin": "a" * 63 + "\n"}),
    ],
)
def test_a_file_that_asks_for_more_than_ours_do_is_refused_before_it_is_granted(
    asked: dict[str, Any],
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SafeError, match="no export of keys"):
        unseal(header(**asked), PASSPHRASE)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_a_file_without_end_is_read_no_further_than_a_copy_is_long() -> None:
    assert len(rekeying.read_export(Path("/dev/zero"))) == keysafe.FILE_BYTES_MAX + 1
    with pytest.raises(SafeError, match="longer than"):
        unseal(bytes(keysafe.FILE_BYTES_MAX + 1), PASSPHRASE)


def test_parts_that_do_not_belong_together_are_no_keys(kept: Secrets, tmp_path: Path) -> None:
    other = opened(tmp_path / "other").home / "keys"
    seed = read_seed(other / "op.key")
    for mixed in (
        Secrets(kept.root, seed, kept.transport, kept.doc),
        Secrets(seed, kept.op, kept.transport, kept.doc),
        Secrets(kept.root, None, kept.transport, kept.doc),
        Secrets(kept.root, kept.op, kept.transport, b"no document"),
        Secrets(),
    ):
        with pytest.raises(SafeError):
            keysafe.origin_in(mixed)


def test_sealed_keys_that_the_node_could_not_show_or_use_are_refused(kept: Secrets) -> None:
    assert kept.root and kept.op
    doc = issue(
        private_key(kept.root),
        public_bytes(private_key(kept.op)),
        epoch=1,
        not_before_h=0,
        not_after_h=2**32 - 1,
    )
    with pytest.raises(SafeError, match="not a date"):
        seal(Secrets(kept.root, kept.op, kept.transport, encode(doc)), PASSPHRASE, 0.0)
    for junk in (b"\xff" * 4000, b"5a" * 31, b"5a" * 33):
        blob = seal(Secrets(kept.root, kept.op, kept.transport, kept.doc, junk), PASSPHRASE, 0.0)
        with pytest.raises(SafeError, match="swarm key"):
            unseal(blob, PASSPHRASE)


@pytest.mark.parametrize("at", ["1e300", "-1e15", "253402300800"])
def test_a_note_of_a_copy_with_no_date_is_no_note(app: App, at: str) -> None:
    (app.home / "keys" / "backup.json").write_text(f'{{"at": {at}, "epoch": 1}}')
    assert rekeying.standing(app)["exported"] is None


def test_a_damaged_swarm_key_is_not_copied(app: App, tmp_path: Path) -> None:
    (app.home / "keys" / "swarm.key").touch(0o600)
    with pytest.raises(swarm.SwarmKeyError):
        rekeying.export(app, tmp_path / "copy", PASSPHRASE)
    assert not (tmp_path / "copy").exists()


# ---- out and in ----------------------------------------------------------------------------------


def test_what_is_exported_is_restored_byte_for_byte(app: App, tmp_path: Path) -> None:
    swarm = app.home / "keys" / "swarm.key"
    swarm.write_bytes(b"5a" * 32 + b"\n")
    swarm.chmod(0o600)
    before = files(app.home)
    rekeying.export(app, tmp_path / "copy", PASSPHRASE)
    new = opened(tmp_path / "new", keys=False)
    done = rekeying.restore(new, tmp_path / "copy", PASSPHRASE)
    assert (done.origin, done.epoch, done.replaced) == (app.origin, 1, "")
    assert {name: files(new.home)[name] for name in before} == before
    assert all(path.stat().st_mode & 0o077 == 0 for path in (new.home / "keys").iterdir())


def test_no_file_is_overwritten(app: App, tmp_path: Path) -> None:
    (tmp_path / "copy").write_text("precious")
    with pytest.raises(KeysError, match="exists"):
        rekeying.export(app, tmp_path / "copy", PASSPHRASE)
    assert (tmp_path / "copy").read_text() == "precious"
    assert rekeying.last_export(app) is None
    assert [path.name for path in tmp_path.iterdir()].count("copy") == 1
    assert not list(tmp_path.glob("*.tmp"))


@pytest.fixture(params=[errno.EPERM, errno.ENOTSUP])
def stick(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on a file system where a file has one name, as on most USB sticks."""

    def refuses(*_: object, **__: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(os, "link", refuses)
    folder = tmp_path / "stick"
    folder.mkdir()
    return folder


def test_a_copy_is_written_where_a_file_cannot_have_two_names(app: App, stick: Path) -> None:
    rekeying.export(app, stick / "copy", PASSPHRASE)
    before = (stick / "copy").read_bytes()
    assert unseal(before, PASSPHRASE)[1].op and (stick / "copy").stat().st_mode & 0o077 == 0
    with pytest.raises(KeysError, match="exists"):
        rekeying.export(app, stick / "copy", PASSPHRASE)
    assert (stick / "copy").read_bytes() == before
    assert [path.name for path in stick.iterdir()] == ["copy"]


def test_a_full_stick_keeps_no_part_of_a_copy(
    app: App, stick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:  # the first file and its folder were written before the link failed
            raise OSError(errno.ENOSPC, "full")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        rekeying.export(app, stick / "copy", PASSPHRASE)
    assert not list(stick.iterdir()) and rekeying.last_export(app) is None


def test_the_date_of_the_last_copy_is_noted_and_nothing_of_the_keys(
    app: App, tmp_path: Path, kept: Secrets
) -> None:
    rekeying.export(app, tmp_path / "copy", PASSPHRASE)
    assert kept.root
    note = files(app.home)["backup.json"]
    assert json.loads(note) == {"at": NOW_S, "epoch": 1, "root_only": False}


def test_keys_that_are_there_are_not_replaced_unasked(app: App, tmp_path: Path) -> None:
    other = opened(tmp_path / "other")
    rekeying.export(other, tmp_path / "copy", PASSPHRASE)
    before = files(app.home)
    with pytest.raises(KeysError, match="holds keys already"):
        rekeying.restore(app, tmp_path / "copy", PASSPHRASE)
    assert files(app.home) == before


def test_with_another_origins_keys_consent_is_off_and_the_mesh_begins_anew(
    app: App, tmp_path: Path
) -> None:
    other = opened(tmp_path / "other")
    rekeying.export(other, tmp_path / "copy", PASSPHRASE)
    app.consent.record_consent(app.user_id, True, "1.0")
    assert app.mesh_store.load() == []
    app.mesh_store.close()
    before = app.origin.hex()
    done = rekeying.restore(app, tmp_path / "copy", PASSPHRASE, replace=True)
    assert (done.replaced, app.origin) == (before, other.origin)
    assert not app.consent.is_opted_in(app.user_id)
    assert not (app.home / "mesh.db").exists() and list(app.home.glob("mesh.db.*.aside"))


def test_damaged_keys_are_put_right_from_a_copy(app: App, tmp_path: Path) -> None:
    rekeying.export(app, tmp_path / "copy", PASSPHRASE)
    before, origin = files(app.home), app.origin
    (app.home / "keys" / "op.doc").write_bytes(b"\0" * 100)
    (app.home / "keys" / "root.key").unlink()
    damaged = App(app.home, Clock())
    assert rekeying.restore(damaged, tmp_path / "copy", PASSPHRASE, replace=True).origin == origin
    assert {name: files(app.home)[name] for name in before} == before


@pytest.mark.parametrize("whose", ["its own", "another's"])
def test_a_change_that_cannot_be_read_is_set_aside_for_a_copy(
    app: App, tmp_path: Path, whose: str
) -> None:
    source = app if whose == "its own" else opened(tmp_path / "other")
    rekeying.export(source, tmp_path / "copy", PASSPHRASE)
    change = app.home / "keys" / "change.json"
    change.touch(0o600)
    change.write_bytes(b'{"files":')
    with pytest.raises(keyfiles.IdentityError) as told:
        App(app.home, Clock()).identity  # noqa: B018
    assert "keys restore --replace" in told.value.next_step
    rekeying.restore(App(app.home, Clock()), tmp_path / "copy", PASSPHRASE, replace=True)
    assert load_or_create(app.home, 0.0).origin == source.origin
    (aside,) = change.parent.glob("change.json.*.aside")
    assert aside.read_bytes() == b'{"files":' and aside.stat().st_mode & 0o077 == 0


def test_what_a_killed_restore_left_is_removed_when_the_keys_are_next_read(app: App) -> None:
    dead, works = app.home / ".keys.1.tmp", app.home / ".keys.2.tmp"
    for folder in (dead, works):
        folder.mkdir(mode=0o700)
        (folder / "change.json").write_bytes(b"secrets")
    with keyfiles._turn(works, fcntl.LOCK_EX):  # as who makes it does
        app.reload_identity()
        assert not dead.exists() and (works / "change.json").exists()
    app.reload_identity()
    assert not works.exists()


# ---- two at once ---------------------------------------------------------------------------------


def test_while_keys_are_changed_nobody_else_copies_replaces_or_rotates_them(
    app: App, tmp_path: Path
) -> None:
    rekeying.export(app, tmp_path / "copy", PASSPHRASE)
    before = files(app.home)
    for other in (
        lambda: rekeying.rotate(app),
        lambda: rekeying.export(app, tmp_path / "new", PASSPHRASE, root_only=True, take_out=True),
        lambda: rekeying.restore(app, tmp_path / "copy", PASSPHRASE, replace=True),
    ):
        with app.lock("keys"), pytest.raises(BusyError, match="copied or changed"):
            other()
    assert files(app.home) == before and not (tmp_path / "new").exists()


def test_a_root_key_that_was_not_exported_is_not_taken_out(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever replaced it between the reading and the removal, lock or no lock."""
    other = files(opened(tmp_path / "other").home)
    real = keysafe.seal

    def meanwhile(*given: Any) -> bytes:
        for name in ("root.key", "op.key", "op.doc"):
            (app.home / "keys" / name).write_bytes(other[name])
        return real(*given)

    monkeypatch.setattr(keysafe, "seal", meanwhile)
    with pytest.raises(KeysError, match="another process"):
        rekeying.export(app, tmp_path / "root", PASSPHRASE, root_only=True, take_out=True)
    assert files(app.home)["root.key"] == other["root.key"] and "root.away" not in files(app.home)


def test_a_rotation_never_puts_its_key_beside_another_origins(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = files(opened(tmp_path / "other").home)
    real = rekeying._remember

    def meanwhile(app: App, epoch: int) -> None:
        for name in ("root.key", "op.key", "op.doc"):
            (app.home / "keys" / name).write_bytes(other[name])
        real(app, epoch)

    monkeypatch.setattr(rekeying, "_remember", meanwhile)
    with pytest.raises(KeysError, match="another process"):
        rekeying.rotate(app)
    assert {name: files(app.home)[name] for name in ("op.key", "op.doc")} == {
        name: other[name] for name in ("op.key", "op.doc")
    }


def test_keys_are_not_replaced_under_a_running_node(app: App, tmp_path: Path) -> None:
    rekeying.export(app, tmp_path / "copy", PASSPHRASE)
    with app.lock("run"), pytest.raises(BusyError, match="running"):
        rekeying.restore(app, tmp_path / "copy", PASSPHRASE, replace=True)


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "a swarm's key", "other keys"])
def test_a_kill_at_any_write_of_a_restore_leaves_all_of_the_keys_or_none(
    app: App, tmp_path: Path, there: str
) -> None:
    rekeying.export(app, tmp_path / "copy", PASSPHRASE)

    def home(name: str) -> Path:
        made = opened(tmp_path / name, keys=there == "other keys").home
        if there in ("an empty folder", "a swarm's key"):
            (made / "keys").mkdir(mode=0o700)
        if there == "a swarm's key":
            (made / "keys" / "swarm.key").touch(mode=0o600)
        return made

    def restored(home: Path) -> Callable[[], object]:
        return lambda: rekeying.restore(
            App(home, Clock()), tmp_path / "copy", PASSPHRASE, replace=True
        )

    steps, seen = steps_of(restored(home("counted"))), set()
    assert steps > 10
    for step in range(1, steps + 1):
        at = home(f"at{step}")
        before = rekeying.origin_here(App(at, Clock()))
        killed_at(step, restored(at))
        found = rekeying.origin_here(App(at, Clock()))
        assert found in (before, app.origin.hex())  # and what it is of fits together
        seen.add(found == before)
        restored(at)()  # the same command ends what was begun
        assert load_or_create(at, 0.0).origin == app.origin
        assert not list(at.glob(".keys.*"))
    assert seen == {True, False}


# ---- the root key elsewhere ----------------------------------------------------------------------


def test_a_node_starts_and_rotates_with_its_root_key_elsewhere(app: App, tmp_path: Path) -> None:
    root = read_seed(app.home / "keys" / "root.key")
    rekeying.export(app, tmp_path / "root", PASSPHRASE, root_only=True, take_out=True)
    assert "root.key" not in files(app.home)
    app = App(app.home, Clock())
    assert rekeying.standing(app)["root"] == "elsewhere"
    with pytest.raises(KeysError, match="not on this machine"):
        rekeying.rotate(app)
    assert app.reload_identity().keys.doc.epoch == 1
    given = rekeying.root_in(tmp_path / "root", PASSPHRASE)
    assert given == root and rekeying.rotate(app, root=given).doc.epoch == 2
    assert "root.key" not in files(app.home)


def test_a_root_key_comes_back_to_its_own_node_alone(app: App, tmp_path: Path) -> None:
    rekeying.export(app, tmp_path / "root", PASSPHRASE, root_only=True, take_out=True)
    for other in (opened(tmp_path / "other"), opened(tmp_path / "new", keys=False)):
        with pytest.raises(KeysError, match="root key alone"):
            rekeying.restore(other, tmp_path / "root", PASSPHRASE, replace=True)
    rekeying.restore(app, tmp_path / "root", PASSPHRASE)
    assert public_bytes(private_key(rekeying.root_here(app))) == app.identity.keys.doc.root


def test_another_nodes_root_key_begins_no_epoch(app: App, tmp_path: Path) -> None:
    stranger = read_seed(opened(tmp_path / "other").home / "keys" / "root.key")
    with pytest.raises(KeysError, match="not the root key"):
        rekeying.rotate(app, root=stranger)
    assert app.reload_identity().keys.doc.epoch == 1


def test_a_copy_made_without_the_root_key_says_so_when_it_is_restored(
    app: App, tmp_path: Path
) -> None:
    rekeying.export(app, tmp_path / "root", PASSPHRASE, root_only=True, take_out=True)
    rekeying.export(app, tmp_path / "rest", PASSPHRASE)
    new = opened(tmp_path / "new", keys=False)
    rekeying.restore(new, tmp_path / "rest", PASSPHRASE)
    assert rekeying.standing(new)["root"] == "elsewhere"
    with pytest.raises(KeysError, match="without the root key"):
        rekeying.root_in(tmp_path / "rest", PASSPHRASE)
    rekeying.restore(new, tmp_path / "root", PASSPHRASE)
    assert rekeying.standing(new)["root"] == "here"
