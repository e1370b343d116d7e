"""A project's `.env` protects its values wherever they are pasted, whether it is allowed or not."""

from __future__ import annotations

import json
import os
import string
from collections.abc import Iterable
from pathlib import Path
from random import Random

import pytest
from support_capture import USER

from node import importing
from node.app import App
from node.capture import known, known_folders
from node.capture.known import open_known
from node.capture.known_folders import env_files, looked_into, named_by_transcripts, read
from node.capture.known_sources import gather
from node.config import CaptureConfig
from node.consent import ConsentManager, Scope

WEAK = "blue-hunter2" + "!kettle"  # a password that no rule and no hash knows


def drawn(seed: int) -> str:
    rng = Random(seed)
    return "".join(
        rng.choice(string.digits if n % 3 == 0 else string.ascii_letters) for n in range(40)
    )


@pytest.fixture
def owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An owner's home with two projects, of which kettle has a password."""
    home = tmp_path / "owner"
    for name in ("kettle/sub", "toaster"):
        (home / "code" / name).mkdir(parents=True)
    (home / "code" / "kettle" / ".git").mkdir()
    (home / "code" / "kettle" / ".env").write_text(f"KETTLE_PASSWORD={WEAK}\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("CODEX_HOME", str(home / ".codex"))
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path / "groove"))
    monkeypatch.chdir(home / "code" / "toaster")
    return home


def env_of(owner: Path) -> dict[str, str]:
    return {"HOME": str(owner)}


def values(owner: Path, folders: Iterable[Path]) -> list[str]:
    return gather(env_of(owner), folders)


def codex_transcript(owner: Path, folder: Path, number: int = 1) -> Path:
    path = owner / ".codex" / "sessions" / "2026" / "04" / "26" / f"rollout-{number}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = {"id": f"{number}", "cwd": str(folder), "timestamp": "2026-04-26T12:00:00Z"}
    line = {"timestamp": "2026-04-26T12:00:00Z", "type": "session_meta", "payload": meta}
    path.write_text(json.dumps(line) + "\n")
    return path


def brought_in(app: App, tmp_path: Path, text: str) -> bytes:
    """What the corpus holds once a text has come in that names no folder."""
    source = tmp_path / "said.jsonl"
    source.write_text(json.dumps({"prompt": text, "completion": "Yes, do that."}) + "\n")
    assert importing.import_sessions(app, importing.Wanted("jsonl", [str(source)])).records
    app.corpus.flush()
    return b"".join(path.read_bytes() for path in app.corpus.files())


# ---- which folders -------------------------------------------------------------------------------


def test_withdrawing_a_folder_does_not_lower_what_protects_its_secrets(
    owner: Path, tmp_path: Path
) -> None:
    app = App.open(create=True)
    folders = [owner / "code" / "kettle", owner / "code" / "toaster"]
    app.consent.record_consent(
        app.user_id, True, "1.0", sources=["codex"], folders=folders, scopes=(Scope.CAPTURE,)
    )
    app.consent.disallow(app.user_id, folders=folders[:1])
    stored = brought_in(app, tmp_path, f"Try it with {WEAK}, please")
    assert WEAK.encode() not in stored and b"[API_KEY]" in stored


def test_a_folder_that_was_never_allowed_is_known_by_the_transcripts_of_other_tools(
    owner: Path, tmp_path: Path
) -> None:
    codex_transcript(owner, owner / "code" / "kettle" / "sub")
    app = App.open(create=True)
    app.consent.record_consent(app.user_id, True, "1.0", sources=["llm"])
    assert WEAK.encode() not in brought_in(app, tmp_path, f"Try it with {WEAK}, please")


def test_the_folder_of_a_session_is_looked_into_when_the_session_comes_in(owner: Path) -> None:
    app = App.open(create=True)
    app.consent.record_consent(app.user_id, True, "1.0")
    assert WEAK in app.scrubber.scrub(f"try {WEAK}")
    importing.intake_of(app).look_into(str(owner / "code" / "kettle" / "sub"))
    assert app.scrubber.scrub(f"try {WEAK}") == "try [API_KEY]"


def test_folders_are_looked_into_again_once_their_secrets_may_have_changed(
    owner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "LOOK_S", 0.0)
    kettle = owner / "code" / "kettle"
    here = open_known(owner / "none", CaptureConfig(), env_of(owner), [])
    here.look_into(str(kettle))
    (kettle / ".env").write_text(f"KETTLE_TOKEN={drawn(1)}\n")
    here.look_into(str(kettle))
    for value in (WEAK, drawn(1)):  # a transcript may be older than the file
        assert list(here.spans(f"x {value}".encode())) == [(2, 2 + len(value))]


def test_a_short_password_of_a_folder_that_is_not_allowed_is_written_nowhere(owner: Path) -> None:
    home = owner / "groove"
    (home / "keys").mkdir(parents=True)
    here = open_known(home, CaptureConfig(), env_of(owner), [])
    here.look_into(str(owner / "code" / "kettle"))
    assert list(here.spans(WEAK.encode())) and not (home / known.FILE).exists()
    (owner / "code" / "toaster" / ".env").write_text(f"TOKEN={drawn(2)}\n")
    here.look_into(str(owner / "code" / "toaster"))
    disk = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    assert (home / known.FILE).exists()
    assert WEAK.encode() not in disk and drawn(2).encode() not in disk


def test_switched_off_no_folder_is_looked_into(owner: Path) -> None:
    def asked() -> Iterable[Path]:
        raise AssertionError("folders were asked for")
        yield

    here = open_known(owner, CaptureConfig(known_values=False), env_of(owner), asked())
    here.look_into(str(owner / "code" / "kettle"))
    assert not list(here.spans(WEAK.encode()))


def test_the_working_folder_comes_first_then_those_ever_allowed(owner: Path) -> None:
    kettle, toaster = owner / "code" / "kettle", owner / "code" / "toaster"
    codex_transcript(owner, kettle / "sub")
    with ConsentManager(owner / "consent.db") as consent:
        consent.record_consent(USER, True, "1.0", sources=["codex"], folders=[kettle])
        consent.revoke_consent(USER)
        assert list(looked_into(consent, USER)) == [toaster, kettle, kettle / "sub"]


@pytest.mark.parametrize("said", ['"no/absolute"', '"/nul\\u0000"', '"/half\\ud800"', '"x', "7"])
def test_what_a_transcript_says_of_its_folder_may_be_nonsense(owner: Path, said: str) -> None:
    codex_transcript(owner, owner).write_text(f'{{"payload":{{"cwd":{said}}}}}\n')
    assert list(named_by_transcripts()) == []


def test_what_a_text_in_a_transcript_quotes_is_no_folder_of_it(owner: Path) -> None:
    text = json.dumps({"payload": {"text": json.dumps({"cwd": "/etc"})}})
    codex_transcript(owner, owner).write_text(text + "\n")
    assert list(named_by_transcripts()) == []


def test_so_many_folders_and_no_more_are_taken_from_transcripts(
    owner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_folders, "NAMED_MAX", 3)
    for number in range(5):
        codex_transcript(owner, Path(f"/work/p{number}"), number)
    assert len(list(named_by_transcripts())) == 3


# ---- which files ---------------------------------------------------------------------------------


def test_of_a_folder_its_parents_are_read_up_to_the_root_of_the_project(owner: Path) -> None:
    (owner / "code" / ".env").write_text(f"API_TOKEN={drawn(3)}\n")
    (owner / "code" / "kettle" / "api").mkdir()
    (owner / "code" / "kettle" / "api" / ".env").write_text(f"API_TOKEN={drawn(4)}\n")
    assert values(owner, [owner / "code" / "kettle" / "sub"]) == [WEAK, drawn(4)]


def test_without_a_root_parents_are_read_up_to_the_home(owner: Path) -> None:
    (owner / "code" / ".env").write_text(f"API_TOKEN={drawn(5)}\n")
    (owner.parent / ".env").write_text(f"API_TOKEN={drawn(6)}\n")
    assert values(owner, [owner / "code" / "toaster"]) == [drawn(5)]


def test_neither_the_home_nor_what_holds_it_is_searched(owner: Path) -> None:
    assert values(owner, [owner, owner.parent, Path("/")]) == []


def test_a_link_out_of_the_project_is_not_followed_and_one_inside_is(owner: Path) -> None:
    kettle, toaster = owner / "code" / "kettle", owner / "code" / "toaster"
    (kettle / "sub" / ".env").symlink_to("../.env")
    (toaster / ".git").mkdir()
    (toaster / ".env").symlink_to(kettle / ".env")
    (toaster / ".env.loop").symlink_to(toaster / ".env.loop")
    assert values(owner, [toaster]) == []
    assert read(kettle / "sub" / ".env", kettle) == (kettle / ".env").read_text()


def test_a_pipe_a_device_and_a_large_file_are_passed_over_without_waiting(owner: Path) -> None:
    toaster = owner / "code" / "toaster"
    os.mkfifo(toaster / ".env")
    (toaster / ".env.local").symlink_to("/dev/zero")
    line = f"API_TOKEN={drawn(7)}\n"
    (toaster / ".env.huge").write_text(line * (known_folders.FILE_BYTES_MAX // len(line) + 1))
    assert values(owner, [toaster]) == []
    assert read(Path("/dev/zero")) == ""


def test_the_files_and_folders_of_one_look_are_bounded(
    owner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_folders, "FILES_MAX", 4)
    for number in range(9):
        (owner / "code" / "toaster" / f".env.{number}").touch()
    assert len(env_files(owner, [owner / "code" / "toaster"])) == 4
    monkeypatch.setattr(known_folders, "FOLDERS_MAX", 1)
    assert env_files(owner, [owner / "code" / "toaster"]) == []  # the home alone was looked into
