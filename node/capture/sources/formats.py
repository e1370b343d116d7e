"""Every format of transcripts that is known: the one list to add another to."""

from __future__ import annotations

from collections.abc import Sequence

from .claude_code import ClaudeCode
from .codex import Codex
from .llm_logs import LlmLogs
from .source import TranscriptFormat


def formats(*, tool_output: bool = False) -> Sequence[TranscriptFormat]:
    """The formats, by name. tool_output: keep what tools gave back."""
    return (ClaudeCode(tool_output=tool_output), Codex(tool_output=tool_output), LlmLogs())
