"""Copies of what is stored, in the forms that other programs read.

JSON lines and Parquet are the whole of it, record by record, in the form of the specification's §4:
the owner's copy. Chat and preference files are training sets, session by session and pair by pair,
so they hold only what may be trained on; how many were left out is said.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from leaves.model import Vector
from leaves.ports import Progress, Report, silent
from node.errors import MisuseError, OwnerError

from .corpus import TrainingCorpus
from .pairs import Pair, preference_pairs
from .record import ContentType, TrainingRecord
from .sessions import Session, grouped, session_of, turns_of
from .stats import reading
from .terms import trainable, why_left_out

_PARQUET_ROWS = 2_000  # of a row group: what is in memory together
_REPORT_SESSIONS = 1_000
_ASKS = (ContentType.PROMPT, ContentType.CONVERSATION)


class Form(StrEnum):
    """What an exported file looks like."""

    JSONL = "jsonl"  # a record a line
    PARQUET = "parquet"  # a record a row
    CHAT = "chat"  # {"messages": […]} a line, one session each: what trl's SFTTrainer reads
    PREFERENCE = "preference"  # {"prompt", "chosen", "rejected"} a line: trl's DPOTrainer


class ParquetMissingError(OwnerError):
    """pyarrow is not installed."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which records are exported; None stands for all.

    Closing records follow their sessions, of whatever domain. A session is in a chat or preference
    file if its ask is the user's, of the domain, and its last record is younger than `after`.
    """

    user_id: str | None = None
    domain: str | None = None
    after: float | None = None  # exclusive, Unix seconds
    sessions: Collection[str] | None = None

    def record(self, record: TrainingRecord) -> bool:
        return (
            self.user_id in (None, record.user_id)
            # The tag of a closing record is that of its one word, the same in every session.
            and (self.domain is None or (record.domain == self.domain and not record.closes))
            and (self.after is None or record.timestamp > self.after)
            and (self.sessions is None or record.session_id in self.sessions)
        )

    def session(self, session: Session) -> bool:
        return (
            self.user_id in (None, session.user_id)
            and self.domain in (None, session.domain)
            and (self.after is None or session.last > self.after)
            and (self.sessions is None or session.session_id in self.sessions)
        )


@dataclass(frozen=True, slots=True)
class Training:
    """What a training set may contain."""

    restricted_outputs: bool = False
    flagged: Collection[str] = frozenset()  # by the second scan


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: records, sessions or pairs, and what was left out of a training set.

    Closing records of sessions are in a copy of the records, but not in `count`, which agrees with
    `CorpusStats.summary`.
    """

    count: int
    closing: int = 0
    left_out: dict[str, int] = field(default_factory=dict)


_LINES, _COLUMNS = (".jsonl", ".ndjson"), (".parquet", ".pq")


def form_of(path: Path, asked: str | None = None) -> Form:
    """The form that was asked for, or that a file's name tells; JSON lines if it has no ending.

    Raises MisuseError for an ending that is not known, or that tells of another form than asked.
    """
    ending = path.suffix.lower()
    if ending not in (*_LINES, *_COLUMNS, ""):
        raise MisuseError(
            f"{path.name}: files that end in {ending!r} cannot be written",
            unchanged="Nothing was written.",
            next_step=f"Known endings are {', '.join(_LINES)} (a JSON document a line) and "
            f"{', '.join(_COLUMNS)} (Parquet).",
        )
    if asked is None:
        return Form.PARQUET if ending in _COLUMNS else Form.JSONL
    form = Form(asked)
    fitting = _COLUMNS if form is Form.PARQUET else _LINES
    if ending and ending not in fitting:
        raise MisuseError(
            f"{path.name}: the form {form.value!r} does not go with the ending {ending!r}",
            unchanged="Nothing was written.",
            next_step=f"Name a file that ends in {' or '.join(fitting)}, or leave --format out.",
        )
    return form


def export(
    corpus: TrainingCorpus,
    path: Path,
    form: Form,
    wanted: Wanted = Wanted(),
    *,
    vectors: Mapping[str, Vector] | None = None,
    training: Training = Training(),
    report: Report = silent,
) -> Exported:
    """Write a file, mode 0600, that appears whole or not at all.

    vectors: session id -> shape (d,), float32. In record forms they are joined as `vector` to the
    first ask of their session, in chat to the session; for preference they pair asks that are near.
    Raises CorpusError if the file cannot be written, ParquetMissingError without pyarrow.
    """
    match form:
        case Form.JSONL:
            rows = _Rows(corpus, wanted, vectors, report)
            with corpus.output(path) as out:
                written = _lines(out, rows)
            return Exported(written - rows.closing, rows.closing)
        case Form.PARQUET:
            parquet = _pyarrow()
            rows = _Rows(corpus, wanted, vectors, report)
            with corpus.output(path) as out:
                written = _parquet(parquet, out, rows, vectors is not None)
            return Exported(written - rows.closing, rows.closing)
        case Form.CHAT:
            left_out: Counter[str] = Counter()
            chats = _chats(corpus, wanted, vectors, training, left_out, report)
            with corpus.output(path) as out:
                written = _lines(out, chats)
            return Exported(written, left_out=dict(left_out))
        case Form.PREFERENCE:
            pairs = _preferences(corpus, wanted, vectors, training, report)
            with corpus.output(path) as out:
                return Exported(_lines(out, pairs))


def _lines(out: BinaryIO, rows: Iterable[dict[str, Any]]) -> int:
    count = 0
    for row in rows:
        out.write(msgspec.json.encode(row) + b"\n")
        count += 1
    return count


@dataclass(slots=True)
class _Rows:
    """The records as they are written; `closing` counts those that close a session."""

    corpus: TrainingCorpus
    wanted: Wanted
    vectors: Mapping[str, Vector] | None
    report: Report
    closing: int = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        joined: set[str] = set()
        given: set[str] = set()
        vectors = self.vectors
        for record in self.corpus.records(read=reading(self.corpus, "export", self.report)):
            closes_given = record.closes and record.session_id in given
            if not (closes_given or self.wanted.record(record)):
                continue
            given.add(record.session_id)
            self.closing += record.closes
            row: dict[str, Any] = msgspec.to_builtins(record)
            if vectors is not None and record.content_type in _ASKS:
                vector = None if record.session_id in joined else vectors.get(record.session_id)
                if vector is not None:
                    joined.add(record.session_id)
                    row["vector"] = vector.tolist()
            yield row


def _chats(
    corpus: TrainingCorpus,
    wanted: Wanted,
    vectors: Mapping[str, Vector] | None,
    training: Training,
    left_out: Counter[str],
    report: Report,
) -> Iterator[dict[str, Any]]:
    for done, records in enumerate(grouped(corpus.files(), wanted.sessions)):
        if done % _REPORT_SESSIONS == 0:
            report(Progress("export", done, 0, "sessions"))
        session = session_of(records)
        if not wanted.session(session):
            continue
        reason = why_left_out(
            session,
            restricted_outputs=training.restricted_outputs,
            flagged=training.flagged,
        )
        turns = _paired(turns_of(records))
        if reason is None and not _all_trainable(records, training):
            left_out["terms: of a later answer"] += 1
        elif reason is not None or not turns:
            left_out[reason or "no completion"] += 1
        else:
            row = {
                "messages": turns,
                "session_id": session.session_id,
                "domain": session.domain,
                "source": session.source,
                "tier": session.tier,
                "terms_class": session.terms_class,
            }
            vector = vectors.get(session.session_id) if vectors is not None else None
            yield row if vector is None else {**row, "vector": vector.tolist()}


def _paired(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """Messages as a chat template takes them: by turns, from an ask to an answer.

    Asks, or answers, that follow one another are one message; what comes before the first ask
    (but the system's word) and after the last answer is left out.
    """
    merged: list[dict[str, str]] = []
    for turn in turns:
        if merged and merged[-1]["role"] == turn["role"]:
            merged[-1] = {**turn, "content": f"{merged[-1]['content']}\n\n{turn['content']}"}
        elif turn["role"] != "assistant" or any(each["role"] == "user" for each in merged):
            merged.append(turn)
    while merged and merged[-1]["role"] != "assistant":
        merged.pop()
    return merged


def _all_trainable(records: list[TrainingRecord], training: Training) -> bool:
    return all(
        trainable(record.terms_class, restricted_outputs=training.restricted_outputs)
        for record in records
        if record.content_type in (ContentType.COMPLETION, ContentType.CONVERSATION)
    )


def _preferences(
    corpus: TrainingCorpus,
    wanted: Wanted,
    vectors: Mapping[str, Vector] | None,
    training: Training,
    report: Report,
) -> Iterator[dict[str, Any]]:
    def read(only: Collection[str] | None) -> Iterator[Session]:
        sessions = corpus.sessions(wanted.sessions if only is None else only)
        for done, session in enumerate(sessions):
            if done % _REPORT_SESSIONS == 0:
                report(Progress("export", done, 0, "sessions"))
            if wanted.session(session):
                yield session

    found: Iterator[Pair] = preference_pairs(
        read,
        vectors,
        restricted_outputs=training.restricted_outputs,
        flagged=training.flagged,
    )
    for pair in found:
        yield {
            "prompt": [{"role": "user", "content": pair.prompt}],
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
            "kind": pair.kind.value,
            "chosen_session": pair.chosen_session,
            "rejected_session": pair.rejected_session,
        }


def _pyarrow() -> Any:
    try:
        import pyarrow as arrow
        import pyarrow.parquet
    except ImportError:
        raise ParquetMissingError(
            "Parquet files need pyarrow, which is not installed",
            unchanged="Nothing was written.",
            next_step="pip install 'groove-node[parquet]', or export to a .jsonl file.",
        ) from None
    return arrow


def _parquet(arrow: Any, out: BinaryIO, rows: Iterable[dict[str, Any]], with_vectors: bool) -> int:
    """Columns are the fields of a record; `metadata` is JSON, for its keys differ by record."""
    text = arrow.string()
    columns = {
        name: arrow.float64() if name == "timestamp" else text
        for name in TrainingRecord.__dataclass_fields__
    }
    if with_vectors:
        columns["vector"] = arrow.list_(arrow.float32())
    schema = arrow.schema(list(columns.items()))
    count = 0
    with arrow.parquet.ParquetWriter(out, schema, compression="zstd") as writer:
        for block in _blocks(rows, _PARQUET_ROWS):
            for row in block:
                row["metadata"] = json.dumps(row["metadata"], ensure_ascii=False)
            writer.write_table(arrow.Table.from_pylist(block, schema=schema))
            count += len(block)
    return count


def _blocks(rows: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    block: list[dict[str, Any]] = []
    for row in rows:
        block.append(row)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
