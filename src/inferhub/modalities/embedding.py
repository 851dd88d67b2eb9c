"""Embeddings: texts or token ids in, one unit vector each out."""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from inferhub.core.errors import Invalid
from inferhub.core.usage import Usage
from inferhub.modalities.base import Envelope, Modality
from inferhub.modalities.tokens import MAX_COUNT, TextOrTokens, input_tokens, split

MAX_INPUTS = 2048


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """Body of `POST /v1/embeddings`."""

    model: str
    input: TextOrTokens
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=MAX_COUNT)] | None = None
    user: str | None = None


class EmbeddingDelta(msgspec.Struct):
    """The vector of input `index`: little-endian float32, 4 bytes a dimension."""

    index: int
    vector: bytes


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingData(msgspec.Struct):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingResponse(msgspec.Struct):
    """Answer of `POST /v1/embeddings`."""

    object: Literal["list"]
    data: list[EmbeddingData]
    model: str
    usage: EmbeddingUsage


def inputs(request: EmbeddingRequest) -> list[str | list[int]]:
    return split(request.input, "input")


def _check(request: EmbeddingRequest) -> None:
    if request.input == []:
        raise Invalid("'input' is an empty array; send at least one text.", param="input", code="empty_array")
    items = inputs(request)
    if len(items) > MAX_INPUTS:
        raise Invalid(f"'input' has {len(items)} items; at most {MAX_INPUTS} are allowed.", param="input")
    for position, item in enumerate(items):
        if len(item) == 0:
            where = f"input[{position}]" if isinstance(request.input, list) else "input"
            raise Invalid(f"'{where}' is empty; every input needs at least one token.", param="input")


def _requires(request: EmbeddingRequest) -> Mapping[str, str]:
    asked = {
        "token_inputs": not isinstance(inputs(request)[0], str),
        "dimensions": request.dimensions is not None,
    }
    param = {"token_inputs": "input"}
    return {feature: param.get(feature, feature) for feature, is_asked in asked.items() if is_asked}


def _estimate(request: EmbeddingRequest, _body_bytes: int) -> Usage:
    return Usage(input_tokens(request.input), source="estimated")


def to_floats(vector: bytes) -> list[float]:
    floats = array("f", vector)
    if sys.byteorder == "big":
        floats.byteswap()
    return floats.tolist()


def _fold(
    request: EmbeddingRequest, envelope: Envelope, deltas: Sequence[EmbeddingDelta], usage: Usage
) -> bytes:
    is_base64 = request.encoding_format == "base64"
    return msgspec.json.encode(
        EmbeddingResponse(
            object="list",
            data=[
                EmbeddingData(
                    "embedding",
                    delta.index,
                    base64.b64encode(delta.vector).decode() if is_base64 else to_floats(delta.vector),
                )
                for delta in sorted(deltas, key=lambda d: d.index)
            ],
            model=envelope.model,
            usage=EmbeddingUsage(usage.input_tokens, usage.input_tokens),
        )
    )


MODALITY = Modality(
    name="embedding",
    path="/v1/embeddings",
    summary="Turn texts into vectors",
    request=EmbeddingRequest,
    delta=EmbeddingDelta,
    response=EmbeddingResponse,
    check=_check,
    requires=_requires,
    estimate=_estimate,
    cap=None,
    fold=_fold,
    writer=None,
    features=("token_inputs", "dimensions"),
    example={"input": "The quick brown fox"},
)
