"""Nesting without end, in a field that nobody reads, is an upstream's failure like any other garbage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from inferhub.core.errors import UpstreamFailed
from inferhub.testing.calls import make_call
from inferhub.wire.anthropic_messages.reader import MessagesReader, read_count
from inferhub.wire.gemini import counting
from inferhub.wire.gemini.reader import parse_chunk
from inferhub.wire.openai_chat import parse_chat_chunk
from inferhub.wire.openai_completion import parse_completion_chunk
from inferhub.wire.openai_embedding import read_embeddings
from inferhub.wire.openai_errors import read_error
from inferhub.wire.openai_moderation import read_moderations
from inferhub.wire.openai_responses.reader import ResponsesReader
from inferhub.wire.rerank import read_ranking

DEEP = b'{"odd":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    "read",
    [
        parse_chat_chunk,
        parse_completion_chunk,
        lambda data: read_embeddings(data, 1),
        lambda data: read_moderations(data, 1),
        lambda data: read_ranking(data, make_call("rerank").request),
        MessagesReader().read,
        MessagesReader().read_whole,
        read_count,
        parse_chunk,
        counting.read_count,
        lambda data: ResponsesReader(()).read("response.created", data),
        lambda data: ResponsesReader(()).read_whole(data),
    ],
)
def test_endless_nesting_is_an_upstreams_failure(read: Callable[[bytes], Any]) -> None:
    with pytest.raises(UpstreamFailed) as failed:
        read(DEEP)
    assert "[" not in failed.value.message


def test_endless_nesting_in_an_error_leaves_its_status() -> None:
    assert isinstance(read_error(500, {}, DEEP), UpstreamFailed)
