"""Embeddings in Gemini's format: the body of `batchEmbedContents`, and its answer."""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from inferhub.core.errors import UpstreamFailed
from inferhub.core.usage import Usage
from inferhub.wire.foreign import json_reader
from inferhub.wire.gemini.errors import read_stream_error
from inferhub.wire.gemini.usage import UsageMetadata, read_usage

MAX_BATCH = 100
"""Texts in one request; Google refuses more."""
_UNIT_TOLERANCE = 1e-4


class _Embedding(msgspec.Struct):
    values: list[float] = []


class _Answer(msgspec.Struct, rename="camel"):
    embeddings: list[_Embedding] = []
    usage_metadata: UsageMetadata | None = None
    error: Any = None


_read = json_reader(_Answer, "something that is not a list of embeddings")


def lift_embeddings(texts: Sequence[str], model: str, dimensions: int | None) -> dict[str, Any]:
    size = {} if dimensions is None else {"outputDimensionality": dimensions}
    return {"requests": [{"model": model, "content": {"parts": [{"text": text}]}, **size} for text in texts]}


def read_embeddings(body: bytes, count: int, secrets: Collection[str] = ()) -> tuple[list[bytes], Usage]:
    """The vectors of `count` texts in their order: unit length, little-endian float32.
    Raises `UpstreamFailed` unless each text has one, all of the same length."""
    answer = _read(body)
    if answer.error:
        raise read_stream_error(answer.error, secrets)
    if len(answer.embeddings) != count:
        raise UpstreamFailed(f"The upstream sent {len(answer.embeddings)} embeddings for {count} inputs.")
    vectors = [_pack(embedding.values) for embedding in answer.embeddings]
    if len({len(vector) for vector in vectors}) != 1:
        raise UpstreamFailed("The upstream sent embeddings of different lengths.")
    return vectors, read_usage(answer.usage_metadata)


def _pack(values: Sequence[float]) -> bytes:
    length = math.hypot(*values)
    if not 0 < length < math.inf:
        raise UpstreamFailed("The upstream sent an embedding that is not a vector.")
    if abs(length - 1) > _UNIT_TOLERANCE:
        # Google shortens a vector by cutting it off, and leaves it to others to stretch it again.
        values = [value / length for value in values]
    return struct.pack(f"<{len(values)}f", *values)
