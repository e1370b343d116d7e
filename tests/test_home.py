"""The owner's files: where they are, and that they are private and never half-written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from node.home import (
    HomeError,
    WideOpenError,
    check_private,
    get_or_create_user_id,
    groove_cache,
    groove_home,
    owner_path,
    write_atomic,
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GROOVE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "home"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_home_and_the_cache_are_made_for_the_owner_alone(home: Path) -> None:
    assert groove_home() == home
    assert mode(groove_home()) == 0o700
    assert mode(groove_cache()) == 0o700


def test_the_specifications_paths_follow_groove_home(home: Path) -> None:
    assert owner_path("~/.groove/consent.db") == home / "consent.db"
    assert owner_path("~/.groove") == home
    assert owner_path("~/.grooves") == Path.home() / ".grooves"


def test_a_home_that_cannot_be_made_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(HomeError) as caught:
        groove_home()
    assert caught.value.next_step


def test_a_key_that_others_can_read_is_refused_with_the_command_that_mends_it(
    tmp_path: Path,
) -> None:
    key = tmp_path / "key"
    key.touch(mode=0o600)
    check_private(key)
    key.chmod(0o644)
    with pytest.raises(WideOpenError) as caught:
        check_private(key)
    assert "0644" in caught.value.what
    assert "0600" in caught.value.what
    assert caught.value.next_step == f"chmod 600 {key}"
    key.chmod(0o600)
    tmp_path.chmod(0o750)
    with pytest.raises(WideOpenError, match="0750, expected 0700"):
        check_private(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_that_belongs_to_somebody_else_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch(mode=0o600)
    os.chown(key, 12345, 12345)
    with pytest.raises(WideOpenError, match="belongs to user 12345"):
        check_private(key)


def test_a_replaced_file_is_whole_private_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "state"
    write_atomic(target, b"old")
    write_atomic(target, b"new")
    assert target.read_bytes() == b"new"
    assert mode(target) == 0o600
    assert list(tmp_path.iterdir()) == [target]


def test_a_replacement_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "state"
    target.mkdir()  # a file cannot replace a folder
    with pytest.raises(OSError):
        write_atomic(target, b"new")
    assert list(tmp_path.iterdir()) == [target]


def test_the_user_id_is_drawn_once_and_reused(tmp_path: Path) -> None:
    first = get_or_create_user_id(tmp_path)
    assert len(first) == 32
    assert int(first, 16) >= 0
    assert get_or_create_user_id(tmp_path) == first
    assert mode(tmp_path / "user_id") == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["user_id"]


def test_a_damaged_user_id_is_named_and_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "user_id").write_bytes(b"")
    with pytest.raises(HomeError, match="user_id"):
        get_or_create_user_id(tmp_path)
    assert (tmp_path / "user_id").read_bytes() == b""
