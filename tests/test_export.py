"""Copies of what is stored: their forms, their filters, and what a training set may hold."""

from __future__ import annotations

import builtins
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_capture import NOON, HandClock, record

from leaves.model import unit
from node.capture import TrainingCorpus, TrainingRecord
from node.capture.corpus import CorpusError
from node.capture.export import Form, ParquetMissingError, Training, Wanted, export, form_of
from node.errors import MisuseError

VECTOR = unit(np.arange(1, 385, dtype=np.float32)[None])[0]


def said(number: int, session: str, kind: str, text: str, **more: Any) -> TrainingRecord:
    about = {"session_id": session, "content_type": kind, "content": text, "at": NOON + number}
    return record(number, **{**about, **more})


def closing(number: int, session: str, outcome: str) -> TrainingRecord:
    metadata = {"event": "SESSION_CLOSE", "outcome": outcome, "source": "jsonl"}
    return said(number, session, "workflow", "SESSION_CLOSE", metadata=metadata, domain="general")


@pytest.fixture
def corpus(tmp_path: Path) -> TrainingCorpus:
    """Sessions: open, restricted, open with a restricted second answer, and two of one ask."""
    made = TrainingCorpus(tmp_path / "c", clock=HandClock())
    made.add_records(
        [
            said(1, "open", "prompt", "What is a monad?"),
            said(2, "open", "completion", "A monoid.", terms_class="open"),
            said(3, "open", "prompt", "And a functor?"),
            said(4, "open", "completion", "A map.", terms_class="open"),
            closing(5, "open", "accepted"),
            said(6, "restricted", "prompt", "Plan a trip", domain="planning"),
            said(
                7,
                "restricted",
                "completion",
                "Go by train.",
                terms_class="restricted",
                domain="planning",
            ),
            closing(8, "restricted", "accepted"),
            said(9, "mixed", "prompt", "First"),
            said(10, "mixed", "completion", "One.", terms_class="open"),
            said(11, "mixed", "prompt", "Second"),
            said(12, "mixed", "completion", "Two.", terms_class="restricted"),
            said(13, "good", "prompt", "Name a prime"),
            said(14, "good", "completion", "Seven", terms_class="open"),
            closing(15, "good", "accepted"),
            said(16, "poor", "prompt", "name a prime."),
            said(17, "poor", "completion", "Nine", terms_class="open"),
            closing(18, "poor", "rejected"),
        ]
    )
    return made


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_lines_have_the_fields_of_the_specification_and_no_checksum(
    corpus: TrainingCorpus, tmp_path: Path
) -> None:
    done = export(corpus, tmp_path / "mine.jsonl", Form.JSONL)
    rows = lines(tmp_path / "mine.jsonl")
    assert len(rows) == 18 and (done.count, done.closing) == (14, 4)
    assert list(rows[0])[:9] == [
        "record_id",
        "user_id",
        "session_id",
        "timestamp",
        "domain",
        "content_type",
        "content",
        "metadata",
        "consent_version",
    ]
    assert "crc32" not in rows[0]
    assert (tmp_path / "mine.jsonl").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        (Wanted(domain="planning"), (2, 1)),
        (Wanted(domain="general"), (0, 0)),
        (Wanted(user_id="nobody"), (0, 0)),
        (Wanted(after=NOON + 15), (2, 1)),
        (Wanted(sessions={"open", "good"}), (6, 2)),
        (Wanted(sessions={"open"}, after=NOON + 4), (0, 1)),
    ],
)
def test_filters_leave_the_records_that_fit_all_of_them(
    corpus: TrainingCorpus, tmp_path: Path, wanted: Wanted, count: tuple[int, int]
) -> None:
    done = export(corpus, tmp_path / "mine.jsonl", Form.JSONL, wanted)
    assert (done.count, done.closing) == count


def test_a_vector_is_joined_once_to_the_first_ask_of_its_session(
    corpus: TrainingCorpus, tmp_path: Path
) -> None:
    export(corpus, tmp_path / "mine.jsonl", Form.JSONL, vectors={"open": VECTOR})
    joined = [row for row in lines(tmp_path / "mine.jsonl") if "vector" in row]
    assert [row["record_id"] for row in joined] == [f"{1:032x}"]
    assert np.allclose(joined[0]["vector"], VECTOR)


def test_a_chat_is_the_turns_of_a_session_and_says_what_the_terms_left_out(
    corpus: TrainingCorpus, tmp_path: Path
) -> None:
    done = export(corpus, tmp_path / "chat.jsonl", Form.CHAT)
    rows = lines(tmp_path / "chat.jsonl")
    assert [row["session_id"] for row in rows] == ["open", "good"]
    assert rows[0]["messages"] == [
        {"role": "user", "content": "What is a monad?"},
        {"role": "assistant", "content": "A monoid."},
        {"role": "user", "content": "And a functor?"},
        {"role": "assistant", "content": "A map."},
    ]
    assert done.left_out == {
        "terms: restricted": 1,
        "terms: of a later answer": 1,
        "tier C": 1,
    }


def test_restricted_outputs_come_in_by_the_owners_word_alone_and_flagged_ones_never(
    corpus: TrainingCorpus, tmp_path: Path
) -> None:
    training = Training(restricted_outputs=True, flagged={"open"})
    export(corpus, tmp_path / "chat.jsonl", Form.CHAT, training=training)
    assert [row["session_id"] for row in lines(tmp_path / "chat.jsonl")] == [
        "restricted",
        "mixed",
        "good",
    ]


def test_turns_of_one_side_are_joined_and_an_unanswered_ask_is_left_out(
    tmp_path: Path,
) -> None:
    made = TrainingCorpus(tmp_path / "c")
    made.add_records(
        [
            said(1, "s", "completion", "A greeting.", terms_class="open"),
            said(2, "s", "prompt", "One"),
            said(3, "s", "prompt", "more thing"),
            said(4, "s", "completion", "Answer.", terms_class="open"),
            said(5, "s", "prompt", "Never answered"),
        ]
    )
    export(made, tmp_path / "chat.jsonl", Form.CHAT)
    (row,) = lines(tmp_path / "chat.jsonl")
    assert row["messages"] == [
        {"role": "user", "content": "One\n\nmore thing"},
        {"role": "assistant", "content": "Answer."},
    ]


@pytest.mark.slow
def test_trl_reads_the_chat_and_the_preference_file(corpus: TrainingCorpus, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data_utils = pytest.importorskip("trl.data_utils")
    export(corpus, tmp_path / "chat.jsonl", Form.CHAT)
    export(corpus, tmp_path / "pairs.jsonl", Form.PREFERENCE)
    cache = str(tmp_path / "cache")
    for name, keys in (("chat", {"messages"}), ("pairs", {"prompt", "chosen", "rejected"})):
        path = str(tmp_path / f"{name}.jsonl")
        rows = datasets.load_dataset("json", data_files=path, split="train", cache_dir=cache)
        assert keys <= set(rows.column_names)
        example = {key: rows[0][key] for key in keys}
        assert data_utils.is_conversational(example)


def test_a_preference_file_has_the_better_of_two_answers_to_one_ask(
    corpus: TrainingCorpus, tmp_path: Path
) -> None:
    assert export(corpus, tmp_path / "pairs.jsonl", Form.PREFERENCE).count == 1
    (row,) = lines(tmp_path / "pairs.jsonl")
    assert row["prompt"] == [{"role": "user", "content": "Name a prime"}]
    assert row["chosen"] == [{"role": "assistant", "content": "Seven"}]
    assert row["rejected"] == [{"role": "assistant", "content": "Nine"}]


def test_parquet_has_a_row_a_record_and_vectors_where_they_were_asked_for(
    corpus: TrainingCorpus, tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    target = tmp_path / "mine.parquet"
    assert export(corpus, target, Form.PARQUET, vectors={"open": VECTOR}).count == 14
    table = parquet.read_table(target)
    first = table.slice(0, 1).to_pylist()[0]
    assert first["content"] == "What is a monad?" and json.loads(first["metadata"]) == {}
    assert np.allclose(first["vector"], VECTOR)
    assert table.column("vector").null_count == 17
    export(corpus, target, Form.PARQUET, Wanted(domain="planning"))
    assert "vector" not in parquet.read_table(target).column_names


def test_parquet_without_pyarrow_is_a_clear_error_and_writes_nothing(
    corpus: TrainingCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **how: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **how)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ParquetMissingError, match="pyarrow") as caught:
        export(corpus, tmp_path / "mine.parquet", Form.PARQUET)
    assert "groove-node[parquet]" in caught.value.next_step
    assert not (tmp_path / "mine.parquet").exists()


@pytest.mark.parametrize("form", list(Form))
def test_an_export_that_fails_leaves_the_earlier_file_as_it_was(
    corpus: TrainingCorpus, tmp_path: Path, form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out" / "mine"
    target.parent.mkdir()
    target.write_bytes(b"earlier")
    fsync = os.fsync

    def broken(fd: int) -> None:
        if os.path.realpath(f"/proc/self/fd/{fd}").startswith(str(target.parent)):
            raise OSError(5, "Input/output error")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(CorpusError, match="Input/output error"):
        export(corpus, target, form)
    assert target.read_bytes() == b"earlier" and len(list(target.parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "asked", "form"),
    [
        ("a.parquet", None, Form.PARQUET),
        ("a.PQ", None, Form.PARQUET),
        ("a.jsonl", None, Form.JSONL),
        ("a", None, Form.JSONL),
        ("a.jsonl", "chat", Form.CHAT),
    ],
)
def test_the_form_is_asked_for_or_told_by_the_name(
    name: str, asked: str | None, form: Form
) -> None:
    assert form_of(Path(name), asked) is form


@pytest.mark.parametrize(
    ("name", "asked", "why"),
    [
        ("a.csv", None, "'.csv' cannot be written"),
        ("a.jsonl.gz", "jsonl", "'.gz' cannot be written"),
        ("a.parquet", "chat", "'chat' does not go with the ending '.parquet'"),
        ("a.parquet", "jsonl", "'jsonl' does not go with"),
        ("a.jsonl", "parquet", "'parquet' does not go with the ending '.jsonl'"),
    ],
)
def test_an_ending_that_says_another_form_is_refused(
    name: str, asked: str | None, why: str
) -> None:
    with pytest.raises(MisuseError, match=why):
        form_of(Path(name), asked)
