"""What the owner does with the keys: keeps a copy, puts it back, begins a new epoch.

The one mistake that nothing heals is a second key for one epoch: peers then take the origin for
dead, for ever. So a new epoch comes after all that the files, the mesh's records and the memory of
this machine know of; and a home whose keys came from a copy, which may be older than the last
epoch, begins none before a peer has told what it holds.
"""

from __future__ import annotations

import errno
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gossip.keys import Keys, private_key, public_bytes
from gossip.wire import EPOCH_MAX, HOUR_S, Standing, encode

from . import keyfiles, keysafe, swarm
from .errors import MisuseError, OwnerError
from .home import PRIVATE_FILE, private_dir, remembered_path, sync_dir, write_atomic
from .identity import next_doc, read_seed, seed_file
from .keyfiles import (
    AWAY,
    BACKUP,
    DOC,
    MOMENT_MAX,
    OP,
    RESTORED,
    ROOT,
    SWARM,
    TRANSPORT,
    Backup,
    Change,
)
from .keysafe import Secrets
from .mailbox import Rekey
from .show import moment

if TYPE_CHECKING:
    from gossip.origin import Claims
    from gossip.wire import KeyDoc

    from .app import App

DAY_S = 86_400
SOON_D = 30  # days before a key's end at which the owner hears of it
UNREADABLE = "unreadable"  # in the place of an origin
OTHER_KEYS = "the keys of this home were replaced by those of another origin"
BUSY = "the keys are being copied or changed already"
# What file systems without a second name for a file (those of USB sticks) say of one.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


class KeysError(OwnerError):
    """This cannot be done with the keys as they are."""


class _Epochs(msgspec.Struct, frozen=True):
    """What this machine remembers, outside of the home, of the keys that it made."""

    origin: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Restored:
    """What `restore` did."""

    origin: bytes
    epoch: int
    replaced: str  # the origin that the home had before, in hex; empty if none
    made: float  # when the copy was made


# A copy -------------------------------------------------------------------------------------------


def export(
    app: App, path: Path, passphrase: str, *, root_only: bool = False, take_out: bool = False
) -> None:
    """Write all keys, or the root key alone, to a new file, and read it back.

    take_out: with root_only: remove the root key that was written from this machine. Raises
    KeysError if there is such a file, SafeError for a poor passphrase.
    """
    assert root_only or not take_out
    keysafe.check_passphrase(passphrase)
    with app.lock("keys", BUSY):
        kept = _secrets(app, root_only=root_only)
        now_s = app.clock.now_s()
        _write_new(path, keysafe.seal(kept, passphrase, now_s))
        if keysafe.unseal(path.read_bytes(), passphrase)[1] != kept:
            raise KeysError(
                f"{path} does not read back as it was written", unchanged="Trust it not."
            )
        doc = app.identity.keys.doc
        files = {BACKUP: msgspec.json.encode(Backup(now_s, doc.epoch, root_only))}
        if take_out:
            files[AWAY] = moment_of(now_s).encode() + b"\n"
        _change(app, doc, Change(files, gone=(ROOT,) if take_out else ()), kept.root)
    app.reload_identity()


def _change(app: App, doc: KeyDoc, change: Change, root: bytes | None = None) -> None:
    """Change the keys, if they are those still that were read: with this document, and this root
    key where that is to go. Raises KeysError."""
    folder = app.home / "keys"
    with keyfiles.writing(folder):
        same = (folder / DOC).read_bytes() == encode(doc)
        if same and ROOT in change.gone:
            same = read_seed(folder / ROOT) == root
        if not same:
            raise KeysError(
                "the keys were changed by another process meanwhile",
                unchanged="They were left as that process wrote them.",
                next_step="Look at them with `groove-node keys show`, then try again.",
            )
        keyfiles.put(folder, change)


def _secrets(app: App, *, root_only: bool) -> Secrets:
    folder, keys = app.home / "keys", app.reload_identity().keys
    with keyfiles.reading(folder):
        away = (folder / AWAY).exists()
        if root_only and away:
            raise _root_is_away()
        root = None if away else read_seed(folder / ROOT)
        if root_only:
            return Secrets(root)
        in_swarm = bool(swarm.load(app.home))  # a damaged one could not be put back
        return Secrets(
            root,
            read_seed(folder / OP),
            app.identity.transport,
            encode(keys.doc),
            (folder / SWARM).read_bytes() if in_swarm else b"",
        )


def _write_new(path: Path, blob: bytes) -> None:
    """Write a file where there is none, whole or not at all."""
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        write_atomic(fresh, blob)
        try:
            os.link(fresh, path)
        except OSError as problem:
            if problem.errno not in _NO_LINKS:
                raise
            _write_in_place(path, blob)
    except FileExistsError:
        raise KeysError(
            f"{path} exists",
            unchanged="It was left as it is; nothing was exported.",
            next_step="Give a new name: an older copy is still a copy.",
        ) from None
    except FileNotFoundError:
        raise MisuseError(
            f"{path.parent}: no such folder", unchanged="Nothing was exported."
        ) from None
    finally:
        fresh.unlink(missing_ok=True)
    sync_dir(path.parent)


def _write_in_place(path: Path, blob: bytes) -> None:
    """Write a file where there is none; a kill may leave a part of it, which opens as nothing."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(blob)
            out.flush()
            os.fsync(out.fileno())
    except BaseException:
        path.unlink()
        raise


def restore(app: App, path: Path, passphrase: str, *, replace: bool = False) -> Restored:
    """Put exported keys into this home, all or none of them.

    replace: also over those that are there. Raises KeysError, SafeError.
    """
    header, kept = keysafe.unseal(read_export(path), passphrase)
    with app.lock("keys", BUSY):
        return _put_back(app, kept, header.made, replace=replace)


def _put_back(app: App, kept: Secrets, made: float, *, replace: bool) -> Restored:
    folder = app.home / "keys"
    origin, before = keysafe.origin_in(kept), origin_here(app)
    doc = kept.key_doc()
    if doc is None:
        return _root_put_back(app, kept, origin, made)
    if before and not replace:
        raise KeysError(
            f"{folder} holds keys already, of origin {before[:16]}…",
            unchanged="They were left as they are.",
            next_step="`--replace` gives them up for those of the file; `keys export` first keeps "
            "a copy of what is here.",
        )
    with app.lock("run", "a node is running here with the keys that are to be replaced"):
        files, gone = _restored_files(kept, made, app.clock.now_s(), doc.epoch)
        other = bool(before) and before != origin.hex()
        if other:
            if before != UNREADABLE:  # first: a kill must not leave what was granted to another
                app.consent.suspend(OTHER_KEYS)
            _put_mesh_aside(app)  # the last head in it is signed by a key that will be a stranger's
        if folder.exists() and any(folder.iterdir()):
            keyfiles.replace(folder, Change(files, gone))
        else:
            keyfiles.found(folder, Change(files, gone))
        app.reload_identity()
        if other:
            app.consent.suspend(OTHER_KEYS)
    return Restored(origin, doc.epoch, before if before != origin.hex() else "", made)


def _restored_files(
    kept: Secrets, made: float, now_s: float, epoch: int
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    assert kept.op is not None and kept.transport is not None
    files = {
        OP: seed_file(kept.op),
        TRANSPORT: seed_file(kept.transport),
        DOC: kept.doc,
        RESTORED: msgspec.json.encode(Backup(now_s, epoch)),
        BACKUP: msgspec.json.encode(Backup(made, epoch)),
    }
    if kept.swarm:
        files[SWARM] = kept.swarm
    if kept.root is None:
        return {**files, AWAY: moment_of(now_s).encode() + b"\n"}, (ROOT,)
    return {**files, ROOT: seed_file(kept.root)}, (AWAY,)


def _root_put_back(app: App, kept: Secrets, origin: bytes, made: float) -> Restored:
    before = origin_here(app)
    if before != origin.hex():
        raise KeysError(
            "the file holds the root key alone, of another origin than this home"
            if before
            else "the file holds the root key alone, and this home has no keys for it to vouch for",
            unchanged="Nothing was changed.",
            next_step="Restore a copy of all keys first: `keys export` without --root-only.",
        )
    assert kept.root is not None
    doc = app.identity.keys.doc
    _change(app, doc, Change({ROOT: seed_file(kept.root)}, gone=(AWAY,)))
    return Restored(origin, doc.epoch, "", made)


def read_export(path: Path) -> bytes:
    """The bytes of an export, or a few more than one can have. Raises MisuseError."""
    try:
        with path.open("rb") as file:
            return file.read(keysafe.FILE_BYTES_MAX + 1)
    except OSError as problem:
        raise MisuseError(
            f"{path} cannot be read: {problem.strerror}", unchanged="Nothing was changed."
        ) from None


def origin_here(app: App) -> str:
    """The origin of the keys in this home, in hex; empty if there are none. Makes none."""
    folder = app.home / "keys"
    if not any((folder / name).exists() for name in (ROOT, OP, TRANSPORT, DOC, keyfiles.CHANGE)):
        return ""
    try:
        return app.reload_identity().origin.hex()
    except OwnerError:
        return UNREADABLE  # damaged keys are what a copy is for, and still may be the owner's


def _put_mesh_aside(app: App) -> None:
    for name in ("mesh.db", "mesh.db-wal", "mesh.db-shm"):
        path = app.home / name
        if path.exists():
            path.rename(app.home / f"{name}.{int(app.clock.now_s())}.aside")
    sync_dir(app.home)


# A new epoch --------------------------------------------------------------------------------------


def rotate(
    app: App, *, revoke: bool = False, root: bytes | None = None, unheard: bool = False
) -> Keys:
    """Begin a new epoch under a new op key; durable once this returns, and told by the node.

    revoke: say of the keys before that they were stolen. root: the seed of the root key, where it
    is not on this machine. unheard: the owner knows that there is no later epoch than what is
    known here. Raises KeysError.
    """
    with app.lock("keys", BUSY):
        before, known = app.reload_identity().keys, claims_known(app)
        _check_may_rotate(app, before, known, unheard)
        seed = root if root is not None else root_here(app)
        if public_bytes(private_key(seed)) != before.doc.root:
            raise KeysError(
                "this is not the root key of this node's origin",
                unchanged="Nothing was changed.",
            )
        epochs = {before.doc.epoch, known.epoch, _remembered(app)}
        epoch = max(epochs) + 1
        revoked = {*before.doc.revoked, *(epochs - {0} if revoke else ())}
        op = app.adapters.secret()
        signing = private_key(seed)
        doc = next_doc(signing, op, epoch, app.clock.now_s(), tuple(sorted(revoked)))
        keys = Keys(private_key(op), doc)
        files = {OP: seed_file(op), DOC: encode(doc)}
        _remember(app, epoch)  # first: an epoch that is skipped does no harm
        _change(app, before.doc, Change(files, gone=(RESTORED,)))
    app.mailbox.post(Rekey(), app.clock.now_s())
    app.reload_identity()
    return keys


def _check_may_rotate(app: App, before: Keys, known: Claims, unheard: bool) -> None:
    if known.standing is Standing.DEAD:
        raise KeysError(
            "this origin is dead: two keys of one epoch were signed with its root key",
            unchanged="Nothing was changed.",
            next_step="Only a new origin helps: move the home's `keys` aside, and `init`.",
        )
    if max(before.doc.epoch, known.epoch, _remembered(app)) >= EPOCH_MAX:
        raise KeysError(f"all {EPOCH_MAX} epochs of this origin are used up", unchanged="")
    if (app.home / "keys" / RESTORED).exists() and not known.keys and not unheard:
        raise KeysError(
            "these keys were restored from a copy, and no peer has said yet which was the last: "
            "a second key of one epoch would be the end of this origin",
            unchanged="Nothing was changed.",
            next_step="Run the node until it is connected (`groove-node peers list`) and peers "
            "have told it what they hold; then rotate. Add `--unheard` if you know that this "
            "origin never had a later key than the copy's.",
        )


def root_here(app: App) -> bytes:
    """The seed of the root key. Raises KeysError if it is kept elsewhere."""
    if (app.home / "keys" / AWAY).exists():
        raise _root_is_away()
    return read_seed(app.home / "keys" / ROOT)


def root_in(path: Path, passphrase: str) -> bytes:
    """The seed of the root key in an export. Raises SafeError, KeysError."""
    _, kept = keysafe.unseal(read_export(path), passphrase)
    if kept.root is None:
        raise KeysError(f"{path} was made without the root key", unchanged="Nothing was changed.")
    return kept.root


def _root_is_away() -> KeysError:
    return KeysError(
        "the root key is not on this machine: it was taken out",
        unchanged="Nothing was changed.",
        next_step="`--root-file FILE` takes it from its export, for this once.",
    )


def _memory(app: App) -> Path:
    return remembered_path(app.home, "keys")


def _remembered(app: App) -> int:
    try:
        found = msgspec.json.decode(_memory(app).read_bytes(), type=_Epochs)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return 0
    ours = found.origin == app.origin.hex() and 0 < found.epoch <= EPOCH_MAX
    return found.epoch if ours else 0


def _remember(app: App, epoch: int) -> None:
    path = _memory(app)
    private_dir(path.parent)
    write_atomic(path, msgspec.json.encode(_Epochs(app.origin.hex(), epoch)))


# How they stand -----------------------------------------------------------------------------------


def claims_known(app: App) -> Claims:
    """What the mesh's records hold of this origin. Raises OwnerError if they are damaged."""
    from gossip.origin import Claims
    from gossip.records import RecordError, load

    origin = app.identity.origin
    if not (app.home / "mesh.db").exists():
        return Claims(origin)
    try:
        held = load(app.mesh_store.of(origin), origin).held.get(origin)
    except RecordError as problem:
        raise KeysError(
            f"{app.home / 'mesh.db'} cannot be used: {problem}",
            unchanged="The file was left as it is.",
            next_step="Move it aside: what is needed comes again from peers.",
        ) from None
    return held.claims if held else Claims(origin)


def standing(app: App) -> dict[str, Any]:
    """What `keys show` shows; no secret is in it."""
    folder, identity = app.home / "keys", app.identity
    doc, known, backup = identity.keys.doc, claims_known(app), last_export(app)
    return {
        "origin": identity.origin.hex(),
        "peer": peer_id(identity.transport),
        "folder": str(folder),
        "epoch": doc.epoch,
        "op": doc.op.hex(),
        "valid_until": doc.not_after_h * HOUR_S,
        "days_left": max(int(doc.not_after_h * HOUR_S - app.clock.now_s()) // DAY_S, 0),
        "revoked": list(doc.revoked),
        "standing": _standing(identity.keys, known),
        "epoch_known": known.epoch,
        "root": "elsewhere" if (folder / AWAY).exists() else "here",
        "swarm_key": (folder / SWARM).exists(),
        "restored": (folder / RESTORED).exists(),
        "exported": msgspec.to_builtins(backup) if backup else None,
    }


def _standing(keys: Keys, known: Claims) -> str:
    """What the mesh makes of the key in use, in a word."""
    if known.standing is Standing.DEAD:
        return "dead"
    if known.epoch > keys.doc.epoch:
        return "superseded"
    if known.epoch == keys.doc.epoch and known.standing is Standing.FROZEN:
        return "revoked" if known.is_revoked else "frozen"
    return "sound"


def advice(found: dict[str, Any]) -> str:
    """What the owner can do about how the keys stand; empty if nothing is to be done."""
    match found["standing"]:
        case "frozen":
            return ": two histories were signed with it -> groove-node keys rotate"
        case "revoked":
            return ": nothing it signs stands -> groove-node keys rotate"
        case "superseded":
            return (
                f": epoch {found['epoch_known']} is in use elsewhere -> restore its copy, or "
                "groove-node keys rotate"
            )
        case "dead":
            return ": two keys of one epoch; only a new origin helps"
    if found["restored"]:
        return "; restored from a copy: it signs nothing until a peer has told what was signed last"
    return ""


def last_export(app: App) -> Backup | None:
    try:
        return msgspec.json.decode((app.home / "keys" / BACKUP).read_bytes(), type=Backup)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def peer_id(transport: bytes) -> str:
    """The name of a libp2p host with this key: the key itself, as all implementations write it."""
    import base58

    # An identity multihash (0x00, 36 bytes) of the protobuf {type: Ed25519, data: 32 bytes}.
    public = public_bytes(private_key(transport))
    return base58.b58encode(b"\x00\x24\x08\x01\x12\x20" + public).decode()


def moment_of(seconds: float) -> str:
    from leaves.model import Instant

    return moment(Instant(min(int(seconds), MOMENT_MAX)))  # a document may name any hour
