"""Reads moderation answers in OpenAI's format, and in Mistral's, which leaves out the verdict."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import msgspec

from inferhub.core.errors import UpstreamFailed
from inferhub.core.usage import Usage
from inferhub.modalities.moderation import ModerationDelta
from inferhub.wire.foreign import json_reader
from inferhub.wire.openai_errors import read_stream_error
from inferhub.wire.openai_usage import UpstreamUsage, read_usage


class _Result(msgspec.Struct):
    categories: dict[str, bool]
    category_scores: dict[str, float] = {}
    category_applied_input_types: dict[str, list[Literal["text", "image"]]] = {}
    flagged: bool | None = None


class _Answer(msgspec.Struct):
    results: list[_Result] = []
    usage: UpstreamUsage | None = None
    error: Any = None


class Moderations(NamedTuple):
    deltas: list[ModerationDelta]
    usage: Usage
    """Of unknown source where the sender counts nothing: OpenAI does not bill moderation."""
    is_whole: bool
    """Whether a client can read it as it came."""


_read = json_reader(_Answer, "something that is not a moderation")


def read_moderations(body: bytes, count: int) -> Moderations:
    """The verdicts on `count` inputs. Raises `UpstreamFailed` unless each has one."""
    answer = _read(body)
    if answer.error:
        raise read_stream_error(answer.error)
    if len(answer.results) != count:
        raise UpstreamFailed(f"The upstream sent {len(answer.results)} verdicts for {count} inputs.")
    deltas = [
        ModerationDelta(
            index,
            any(result.categories.values()) if result.flagged is None else result.flagged,
            result.categories,
            result.category_scores,
            result.category_applied_input_types,
        )
        for index, result in enumerate(answer.results)
    ]
    is_whole = all(result.flagged is not None and result.category_scores for result in answer.results)
    return Moderations(deltas, read_usage(answer.usage), is_whole)
