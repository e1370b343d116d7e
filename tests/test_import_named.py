"""What an owner may name in an import, and that a wrong name is told and leaves nothing behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support_transcripts import FOLDER, ClaudeChat, LlmLog, Rollout, lines_of, written

from node import doctor
from node.app import App
from node.capture.sources.kinds import kind_of
from node.consent import Scope
from node.imported import Imported
from node.importing import SourceRefusedError, Wanted, import_sessions
from node.tally import Tally

ROW = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}]}


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    """A home in which every source is allowed; no tool keeps anything here."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user" / ".config"))
    for name, folder in (("CLAUDE_CONFIG_DIR", "claude"), ("CODEX_HOME", "codex")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    monkeypatch.setenv("GROOVE_HOME", str(tmp_path / "home"))
    app = App.open(create=True)
    app.consent.grant_scope(app.user_id, Scope.CAPTURE)
    sources = ["claude-code", "codex", "llm"]
    app.consent.allow(app.user_id, sources=sources, folders=[Path(FOLDER)])
    return app


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """One file of each source, all with the same kind of name."""
    folder = tmp_path / "files"
    chat = ClaudeChat()
    chat.ask("Make the kettle whistle.")
    chat.text("It whistles.")
    rollout = Rollout()
    rollout.meta()
    rollout.exchange("Make the kettle whistle.", "It whistles.")
    log = LlmLog(folder.parent / "m.db")
    log.response("r1", "Why is tea hot?", "The kettle.")
    return {
        "claude-code": written(folder / "claude-code.jsonl", chat.rows),
        "codex": written(folder / "codex.jsonl", rollout.rows),
        "jsonl": written(folder / "jsonl.jsonl", [ROW]),
        "llm": log.path,
    }


def bring(app: App, source: str, *what: Path | str) -> Imported:
    return import_sessions(app, Wanted(source, [str(each) for each in what]))


@pytest.mark.parametrize("source", ["claude-code", "codex", "jsonl", "llm"])
def test_a_file_is_known_by_its_lines_and_imported(
    app: App, files: dict[str, Path], source: str
) -> None:
    assert kind_of(files[source]) == source
    assert bring(app, source, files[source]).added == 1


@pytest.mark.parametrize("source", ["claude-code", "codex", "jsonl", "llm"])
@pytest.mark.parametrize("kind", ["claude-code", "codex", "jsonl", "llm"])
def test_a_file_of_another_source_is_refused_by_its_name_and_nothing_is_remembered(
    app: App, files: dict[str, Path], source: str, kind: str
) -> None:
    if kind == source:
        return
    with pytest.raises(SourceRefusedError, match=f"but looks like one of {kind}") as caught:
        bring(app, source, files[kind])
    assert caught.value.next_step == f"groove-node import {kind} {files[kind]}"
    assert Tally(app.home).read().sources == {}
    assert not any("format has changed" in finding.text for finding in doctor.examine())


def test_a_file_of_nothing_that_is_known_is_no_transcript(app: App, tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"a": 1}\n\0\xff\n')
    for source in ("claude-code", "codex"):
        with pytest.raises(SourceRefusedError, match=rf"m\.jsonl is no transcript of {source}$"):
            bring(app, source, path)


def test_a_file_of_another_source_among_a_tools_own_does_not_say_that_the_format_has_changed(
    app: App, files: dict[str, Path], tmp_path: Path
) -> None:
    project = tmp_path / "claude" / "projects" / "-kettle"
    project.mkdir(parents=True)
    for kind in ("claude-code", "jsonl", "codex"):
        shutil.copy(files[kind], project)
    done = bring(app, "claude-code")
    assert (done.added + done.known, done.strangers, done.unknown) == (1, 2, {})
    assert not any("format has changed" in finding.text for finding in doctor.examine())


def test_a_transcript_with_some_unknown_kinds_says_that_the_format_has_changed(
    app: App, files: dict[str, Path]
) -> None:
    path = files["claude-code"]
    path.write_bytes(path.read_bytes() + lines_of([{"type": "brand-new", "uuid": "n"}]))
    assert bring(app, "claude-code", path).unknown == {"brand-new": 1}


@pytest.mark.parametrize(
    "named", ["claude", "claude/projects", "claude/projects/-home-ada-kettle", "."]
)
def test_any_folder_that_holds_transcripts_is_imported(
    app: App, files: dict[str, Path], tmp_path: Path, named: str
) -> None:
    project = tmp_path / "claude" / "projects" / "-home-ada-kettle"
    (project / "s" / "subagents").mkdir(parents=True)
    shutil.copy(files["claude-code"], project / "s.jsonl")
    shutil.copy(files["claude-code"], project / "s" / "subagents" / "agent-1.jsonl")
    shutil.copy(files["jsonl"], tmp_path / "claude" / "history.jsonl")
    files["claude-code"].unlink()
    done = bring(app, "claude-code", tmp_path / named)
    assert (done.added, done.strangers, done.unreadable) == (1, 0, 0)


def test_the_folder_of_llms_configuration_and_of_codex_are_imported(
    app: App, files: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "llm").mkdir()
    files["llm"].rename(tmp_path / "llm" / "logs.db")
    assert bring(app, "llm", tmp_path / "llm").added == 1
    day = tmp_path / "codex" / "sessions" / "2026" / "04" / "26"
    day.mkdir(parents=True)
    files["codex"].rename(day / "rollout-2026-04-26T12-00-00-1.jsonl")
    assert bring(app, "codex", tmp_path / "codex").added == 1


@pytest.mark.parametrize("source", ["claude-code", "codex", "llm", "jsonl"])
def test_a_name_of_nothing_is_said_to_be_of_nothing(app: App, tmp_path: Path, source: str) -> None:
    with pytest.raises(SourceRefusedError, match=r"there is no file or folder .*absent") as caught:
        bring(app, source, tmp_path / "absent")
    assert caught.value.unchanged == "Nothing was imported."


def test_a_folder_without_transcripts_is_said_to_have_none(app: App, tmp_path: Path) -> None:
    with pytest.raises(SourceRefusedError, match=f"no transcripts of codex are in {tmp_path}"):
        bring(app, "codex", tmp_path)
