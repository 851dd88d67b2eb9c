"""Reads reranking answers, which Cohere and Jina write nearly alike and vLLM, Together and others copy."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import msgspec

from inferhub.core.errors import UpstreamFailed
from inferhub.core.usage import Usage
from inferhub.modalities.rerank import RerankDelta, RerankRequest
from inferhub.wire.foreign import json_reader
from inferhub.wire.openai_errors import read_stream_error


class _Result(msgspec.Struct):
    index: int
    relevance_score: float
    document: Any = None


class _Tokens(msgspec.Struct):
    input_tokens: float | None = None


class _Meta(msgspec.Struct):
    tokens: _Tokens | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    total_tokens: int | None = None


class _Answer(msgspec.Struct):
    results: list[_Result] | None = None
    usage: _Usage | None = None
    meta: _Meta | None = None
    error: Any = None


class Ranking(NamedTuple):
    deltas: list[RerankDelta]
    usage: Usage
    """Of unknown source where the sender counts no tokens; Cohere counts searches."""
    is_whole: bool
    """Whether a client can read it as it came: the best first, with the documents where it asked for them."""


_read = json_reader(_Answer, "something that is not a ranking")


def read_ranking(body: bytes, request: RerankRequest) -> Ranking:
    """Raises `UpstreamFailed` unless every result is of one of the documents, and of each at most one."""
    answer = _read(body)
    if answer.error:
        raise read_stream_error(answer.error)
    if answer.results is None:
        raise UpstreamFailed("The upstream sent something that is not a ranking.")
    count = len(request.documents)
    places = [result.index for result in answer.results]
    expected = min(request.top_n or count, count)
    if len(set(places)) != len(places) or not all(0 <= place < count for place in places):
        raise UpstreamFailed("The upstream ranked documents that it was not sent.")
    if len(places) < expected:
        raise UpstreamFailed(f"The upstream ranked {len(places)} of {count} documents.")
    scores = [result.relevance_score for result in answer.results]
    if not all(map(math.isfinite, scores)):
        raise UpstreamFailed("The upstream sent a score that is not a number.")
    has_documents = all(result.document is not None for result in answer.results)
    is_whole = (
        len(places) == expected
        and scores == sorted(scores, reverse=True)
        and (has_documents or not request.return_documents)
    )
    deltas = [RerankDelta(result.index, result.relevance_score) for result in answer.results]
    return Ranking(deltas, _usage(answer), is_whole)


def _usage(answer: _Answer) -> Usage:
    counted = answer.usage
    tokens = (counted.prompt_tokens or counted.total_tokens) if counted else None
    if tokens is None and answer.meta and answer.meta.tokens and answer.meta.tokens.input_tokens is not None:
        tokens = int(answer.meta.tokens.input_tokens)
    return Usage(source="unknown") if tokens is None else Usage(tokens)
