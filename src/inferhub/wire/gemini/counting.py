"""Reads the answer of Gemini's `countTokens`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from inferhub.core.errors import UpstreamFailed
from inferhub.wire.foreign import json_reader
from inferhub.wire.gemini.errors import read_stream_error


class _Answer(msgspec.Struct, rename="camel"):
    total_tokens: int | None = None
    error: Any = None


_read = json_reader(_Answer, "something that is not a token count")


def read_count(body: bytes, secrets: Collection[str] = ()) -> int:
    """Raises `UpstreamFailed` for anything but a count."""
    answer = _read(body)
    if answer.error:
        raise read_stream_error(answer.error, secrets)
    if answer.total_tokens is None or answer.total_tokens < 0:
        raise UpstreamFailed("The upstream sent no token count.")
    return answer.total_tokens
