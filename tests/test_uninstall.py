"""`groove-node uninstall`: it shows what goes, and afterwards nothing of the node is there."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import stat
from pathlib import Path

import pytest

from leaves.model import LeafId
from node import footprint, service, service_manager, uninstalling
from node.api.listening import Unix
from node.app import App
from node.cli import main
from node.home import cache_path, remembered_path
from node.service import Place
from node.uninstalling import UninstallError


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with a node of everything in it, and files of the user's own."""
    folder = tmp_path / "user"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    for name in ("XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GROOVE_HOME", str(folder / ".groove"))
    monkeypatch.setenv("GROOVE_CACHE", str(folder / ".cache" / "groove-node"))
    monkeypatch.setenv("GROOVE_STATE", str(folder / ".local" / "state" / "groove-node"))
    (folder / "notes.txt").write_text("the user's own")
    (folder / ".config").mkdir()
    (folder / ".cache").mkdir()
    (folder / ".local" / "state").mkdir(parents=True)
    return folder


@pytest.fixture
def home(user: Path) -> Path:
    app = App.open(create=True)
    app.identity  # noqa: B018 - a home has keys
    app.consent.record_consent(app.user_id, opted_in=True, consent_version="1.0")
    (app.home / "training_data").mkdir(exist_ok=True)
    (app.home / "training_data" / "2026-11-22.jsonl").write_text("{}\n" * 100)
    (app.home / "run.lock").touch()
    chassis = cache_path() / "chassis" / "smollm2-135m-0123456789ab"
    chassis.mkdir(parents=True)
    (chassis / "model.safetensors").write_bytes(bytes(1000))
    return app.home


def tree(folder: Path) -> set[str]:
    """Every file, link and folder below, but the folders in which others keep things too."""
    shared = {".config", ".cache", ".local", ".local/state"}
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {name for name in found - shared if not name.endswith(("-shm", "-wal"))}


def ran(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        main(["uninstall", *arguments])
    return ended.value.code


def test_nothing_is_left_but_what_was_never_the_nodes(home: Path, user: Path) -> None:
    before = tree(user)
    assert any(name.startswith(".groove/keys/") for name in before)
    assert remembered_path(home / "consent.db", "consent").exists()
    assert ran("--yes") == 0
    assert tree(user) == {"notes.txt"}


def test_a_dry_run_shows_each_part_with_its_size_and_removes_nothing(
    home: Path, user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(user)
    assert ran("--dry-run", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    parts = {part["what"]: part for part in shown["parts"]}
    assert parts["home"]["path"] == str(home) and parts["home"]["bytes"] > 300
    assert parts["cache"] == {
        "what": "cache",
        "path": str(cache_path()),
        "files": 1,
        "bytes": 1000,
    }
    assert "state" in parts and shown["removed"] == [] and shown["published"] == []
    assert tree(user) == before


def test_without_a_terminal_and_without_yes_nothing_is_removed(
    home: Path, user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(user)
    assert ran() == 2
    assert "--yes" in capsys.readouterr().err
    assert tree(user) == before


def test_keys_that_were_never_copied_are_warned_of(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran("--dry-run") == 0
    assert "no copy of the keys was ever made" in capsys.readouterr().err
    assert ran("--dry-run", "--keep-keys") == 0
    assert "no copy" not in capsys.readouterr().err


def test_kept_keys_are_the_same_origin_in_the_next_home(home: Path, user: Path) -> None:
    origin = App(home).origin
    assert ran("--yes", "--keep-keys") == 0
    assert {path.name for path in home.iterdir()} == {"keys"}
    assert App.open(create=True).origin == origin


def test_a_removal_that_was_killed_anywhere_is_finished_by_the_next(
    home: Path, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    real, steps = uninstalling._remove, 0

    def dying(path: Path) -> None:
        nonlocal steps
        steps += 1
        if steps % 2 == 0:
            raise Killed
        real(path)

    monkeypatch.setattr(uninstalling, "_remove", dying)
    for _ in range(60):
        try:
            uninstalling.carry_out(uninstalling.plan())
        except Killed:
            continue
        break
    assert steps > 4 and tree(user) == {"notes.txt"}


def test_while_a_node_runs_nothing_of_the_home_is_removed(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(home)
    with (home / "run.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert ran("--yes") == 1
    assert "a node runs here" in capsys.readouterr().err
    assert tree(home) == before


def test_the_service_goes_with_the_node(home: Path, user: Path) -> None:
    manager = service_manager.of_this_machine(Place.here())
    service.install(manager.service)
    assert manager.service.path.is_relative_to(user)
    assert ran("--yes") == 0
    assert not manager.service.path.exists() and not home.exists()


def test_a_service_file_that_the_owner_changed_stops_it_before_anything_goes(
    home: Path, user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manager = service_manager.of_this_machine(Place.here())
    service.install(manager.service)
    with manager.service.path.open("a") as file:
        file.write("# mine\n")
    before = tree(user)
    assert ran("--yes") == 1
    assert "may hold what you want to keep" in capsys.readouterr().err
    assert tree(user) == before


def test_what_others_put_into_the_cache_folder_stays(home: Path, user: Path) -> None:
    (cache_path() / "somebodys.db").write_text("not the node's")
    assert ran("--yes") == 0
    assert tree(user) == {
        "notes.txt",
        ".cache/groove-node",
        ".cache/groove-node/somebodys.db",
    }


def test_the_state_of_another_home_stays(home: Path) -> None:
    other = remembered_path(home.parent / "other" / "consent.db", "consent")
    other.write_text("{}")
    assert ran("--yes") == 0
    assert list(other.parent.iterdir()) == [other]


@pytest.mark.parametrize("place", [".", "documents"])
def test_a_folder_that_is_no_home_is_never_removed(
    user: Path, place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = (user / place).resolve()
    folder.mkdir(exist_ok=True)
    (folder / "thesis.txt").write_text("ten years")
    monkeypatch.setenv("GROOVE_HOME", str(folder))
    assert ran("--yes") == 1
    assert "Nothing was removed" in capsys.readouterr().err
    assert (folder / "thesis.txt").exists()


def test_a_home_that_is_a_link_goes_with_what_it_points_to(
    home: Path, user: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    home.rename(disk)
    home.symlink_to(disk)
    assert ran("--yes") == 0
    assert tree(user) == {"notes.txt"} | {  # remembered of the folder that it once was
        str(path.relative_to(user)) for path in (user / ".local/state").rglob("*")
    }
    assert not disk.exists()


def test_a_socket_that_a_killed_node_left_elsewhere_goes_too(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir(mode=0o700)
    place = Unix(folder / "api.sock")
    (home / "groove.toml").write_text(f'[api]\nlisten = "unix:{place.path}"\n')
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(place.path))
    assert stat.S_ISSOCK(place.path.lstat().st_mode)
    assert ran("--yes") == 0
    assert not os.path.lexists(place.path)


def test_published_leaves_are_named_before_the_only_key_to_them_goes(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(App, "shown", lambda self: {LeafId("ab" * 16): None})
    assert ran("--dry-run") == 0
    said = capsys.readouterr().err
    assert "--retract" in said and "ab" * 16 in said
    assert ran("--retract") == 1
    assert "no node runs here" in capsys.readouterr().err


def test_a_second_time_there_is_nothing_and_that_is_no_error(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran("--yes") == 0
    assert ran("--yes") == 0
    assert "Nothing of this node is here" in capsys.readouterr().out


def test_a_file_that_cannot_be_removed_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uninstalling, "_without", lambda part: None)
    with pytest.raises(UninstallError, match="still there"):
        uninstalling.carry_out(uninstalling.plan())


def test_a_folder_with_keys_of_others_is_no_home(
    user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = user / "project"
    (project / "keys").mkdir(parents=True, mode=0o700)
    project.chmod(0o700)
    (project / "keys" / "deploy.pub").write_text("of a server")
    (project / "thesis.txt").write_text("years of work")
    monkeypatch.setenv("GROOVE_HOME", str(project))
    before = tree(user)
    assert ran("--yes") != 0
    assert tree(user) == before


def test_what_others_keep_in_a_shared_cache_stays_under_whatever_name(
    home: Path, user: Path
) -> None:
    cache = cache_path()
    strangers = {"uv.lock", "Cargo.lock", "state.vscdb", "probes/mine.txt"}
    for name in strangers:
        (cache / name).parent.mkdir(exist_ok=True)
        (cache / name).write_text("another's")
    assert ran("--yes") == 0
    left = {str(x.relative_to(cache)) for x in cache.rglob("*") if x.is_file()}
    assert left == strangers


def test_keys_behind_a_link_are_told_of(
    home: Path, user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "keys").rename(user / "stick")
    (home / "keys").symlink_to(user / "stick")
    assert ran("--yes") == 1
    assert str(user / "stick") in capsys.readouterr().err
    assert (user / "stick" / "op.key").exists() and not home.exists()


def test_a_pipe_named_like_a_lock_keeps_nobody_waiting(home: Path, user: Path) -> None:
    os.mkfifo(home / "config.lock")
    assert ran("--yes") == 0
    assert not home.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("keys/root.key", "of a zone"), ("user_id", "hello"), ("keys/op.doc", "no document")],
)
def test_files_named_like_a_nodes_make_no_home(
    user: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str
) -> None:
    project = user / "project"
    (project / name).parent.mkdir(parents=True, mode=0o700)
    project.chmod(0o700)
    (project / name).write_text(content)
    (project / "thesis.txt").write_text("years of work")
    monkeypatch.setenv("GROOVE_HOME", str(project))
    before = tree(user)
    assert ran("--yes") == 1
    assert tree(user) == before


def test_what_others_keep_in_a_home_stays_and_is_named(
    home: Path, user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strangers = {"thesis.txt", "keys/deploy.pub", "poetry.lock", "notes/plan.md"}
    for name in strangers:
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text("another's")
    assert ran("--yes") == 0
    assert {str(x.relative_to(home)) for x in home.rglob("*") if x.is_file()} == strangers
    assert "thesis.txt" in capsys.readouterr().err
    assert ran("--yes") == 1  # it is no home any more


def test_what_others_keep_in_the_caches_folders_stays(home: Path, user: Path) -> None:
    strangers = {"chassis/drawing.dwg", "kingfisher/photo.jpg", "canaries/bird.json"}
    for name in strangers:
        (cache_path() / name).parent.mkdir(exist_ok=True)
        (cache_path() / name).write_text("another's")
    assert ran("--yes") == 0
    left = {str(x.relative_to(cache_path())) for x in cache_path().rglob("*") if x.is_file()}
    assert left == strangers


def test_a_single_key_behind_a_link_is_told_of(
    home: Path, user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "keys" / "root.key").rename(user / "root.key")
    (home / "keys" / "root.key").symlink_to(user / "root.key")
    assert ran("--yes") == 1
    assert str(user / "root.key") in capsys.readouterr().err
    assert (user / "root.key").exists() and not home.exists()


def test_a_home_on_a_disk_of_its_own_is_left_empty(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.rmdir

    def busy(path: Path) -> None:
        if path == home:
            raise OSError(errno.EBUSY, "Device or resource busy")
        real(path)

    monkeypatch.setattr(Path, "rmdir", busy)
    assert ran("--yes") == 0
    assert list(home.iterdir()) == []


def test_a_removal_that_fails_says_what_is_true(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(uninstalling, "_remove", failing)
    assert ran("--yes") == 1
    said = capsys.readouterr().err
    assert "removed until then is gone" in said and "is whole" not in said


def test_every_file_that_a_module_of_the_node_names_in_the_home_is_known() -> None:
    elsewhere = {"capture.tombstones", "capture.known_sources", "s3_store", "registry"}
    root = Path(footprint.__file__).parent
    named = re.compile(
        r"^(?:[A-Z]+_)?(?:FILE|FOLDER|MARKER|RECEIPTS|PENDING|CORPUS)(?:: Final)? = \"([^/\"]+)\"",
        re.M,
    )
    inside = {"hard.txt", "known_values.key", "swarm.key", "by-hand"}  # of a folder of the home
    for module in sorted(root.rglob("*.py")):
        dotted = ".".join(module.relative_to(root).with_suffix("").parts)
        if dotted in elsewhere or dotted.startswith("capture.sources.") or dotted == "uninstalling":
            continue
        for name in set(named.findall(module.read_text("utf-8"))) - inside:
            assert footprint.is_known(name, footprint.HOME), f"{dotted}: {name}"
