"""Reads embedding answers in OpenAI's format; the sibling of `openai_chat`."""

from __future__ import annotations

import base64
import binascii
import struct
from typing import Any, NamedTuple

import msgspec

from inferhub.core.errors import UpstreamFailed
from inferhub.core.usage import Usage
from inferhub.modalities.embedding import EmbeddingDelta
from inferhub.wire.foreign import json_reader
from inferhub.wire.openai_errors import read_stream_error
from inferhub.wire.openai_usage import UpstreamUsage, read_usage


class _Item(msgspec.Struct):
    embedding: str | list[float]
    index: int | None = None


class _Answer(msgspec.Struct):
    data: list[_Item] = []
    usage: UpstreamUsage | None = None
    error: Any = None


class Embeddings(NamedTuple):
    deltas: list[EmbeddingDelta]
    usage: Usage
    is_base64: bool
    """Whether a client that asked for base64 can read it as it came: all of them so, and in order."""


_read = json_reader(_Answer, "something that is not a list of embeddings")


def read_embeddings(body: bytes, count: int) -> Embeddings:
    """The vectors of `count` inputs in their order. Raises `UpstreamFailed` unless each input has one,
    all of the same length."""
    answer = _read(body)
    if answer.error:
        raise read_stream_error(answer.error)
    vectors: dict[int, bytes] = {}
    for position, item in enumerate(answer.data):
        vectors[position if item.index is None else item.index] = _pack(item.embedding)
    if len(answer.data) != count or sorted(vectors) != list(range(count)):
        raise UpstreamFailed(f"The upstream sent {len(answer.data)} embeddings for {count} inputs.")
    if len({len(vector) for vector in vectors.values()}) != 1:
        raise UpstreamFailed("The upstream sent embeddings of different lengths.")
    deltas = [EmbeddingDelta(index, vectors[index]) for index in range(count)]
    is_base64 = all(
        isinstance(item.embedding, str) and item.index == place for place, item in enumerate(answer.data)
    )
    return Embeddings(deltas, read_usage(answer.usage), is_base64)


def _pack(embedding: str | list[float]) -> bytes:
    """Little-endian float32, whichever of the two encodings the upstream chose."""
    try:
        if isinstance(embedding, str):
            vector = base64.b64decode(embedding, validate=True)
        else:
            vector = struct.pack(f"<{len(embedding)}f", *embedding)
    except (binascii.Error, ValueError, OverflowError) as error:
        raise UpstreamFailed("The upstream sent an embedding that cannot be read.") from error
    if not vector or len(vector) % 4:
        raise UpstreamFailed("The upstream sent an embedding that is not a vector of float32.")
    return vector
