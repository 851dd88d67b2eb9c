"""Reranking: a query and documents in, how well each document answers it out. In Cohere's and Jina's form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from inferhub.core.errors import Invalid
from inferhub.core.usage import Usage
from inferhub.modalities.base import Envelope, Modality
from inferhub.modalities.tokens import MAX_COUNT, text_tokens

MAX_DOCUMENTS = 1000
_DOCUMENTS_PER_SEARCH = 100
"""As many as Cohere counts for one search."""


class RerankRequest(msgspec.Struct, kw_only=True):
    """Body of `POST /v1/rerank`."""

    model: str
    query: str
    documents: list[str | dict[str, Any]]
    """Texts, or objects with a `text`; what else such an object has comes back with it."""
    top_n: Annotated[int, Meta(ge=1, le=MAX_COUNT)] | None = None
    return_documents: bool | None = None
    rank_fields: list[str] | None = None
    max_tokens_per_doc: Annotated[int, Meta(ge=1, le=MAX_COUNT)] | None = None
    max_chunks_per_doc: Annotated[int, Meta(ge=1, le=MAX_COUNT)] | None = None
    priority: int | None = None
    user: str | None = None


class RerankDelta(msgspec.Struct):
    """How well the document at `index` answers the query, from 0 to 1."""

    index: int
    relevance_score: float


class RerankResult(msgspec.Struct, omit_defaults=True):
    index: int
    relevance_score: float
    document: dict[str, Any] | None = None


class RerankUsage(msgspec.Struct):
    """Jina's."""

    prompt_tokens: int
    total_tokens: int


class ApiVersion(msgspec.Struct):
    version: str = "2"


class RerankTokens(msgspec.Struct):
    input_tokens: int


class RerankUnits(msgspec.Struct):
    search_units: int
    """One for every 100 documents, as Cohere counts. InferHub bills tokens."""
    input_tokens: int


class RerankMeta(msgspec.Struct):
    """Cohere's."""

    api_version: ApiVersion
    billed_units: RerankUnits
    tokens: RerankTokens


class RerankResponse(msgspec.Struct):
    """Answer of `POST /v1/rerank`: the best document first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: RerankUsage
    meta: RerankMeta


def texts(request: RerankRequest) -> list[str]:
    """What is to be ranked, in the order of the request."""
    return [item if isinstance(item, str) else str(item.get("text", "")) for item in request.documents]


def _check(request: RerankRequest) -> None:
    if not request.query:
        raise Invalid("'query' is empty.", param="query")
    if not request.documents:
        raise Invalid(
            "'documents' is empty; send at least one document.", param="documents", code="empty_array"
        )
    if len(request.documents) > MAX_DOCUMENTS:
        raise Invalid(
            f"'documents' has {len(request.documents)} items; at most {MAX_DOCUMENTS} are allowed.",
            param="documents",
        )
    for position, item in enumerate(request.documents):
        where = f"documents[{position}]"
        if isinstance(item, str):
            if not item:
                raise Invalid(f"'{where}' is empty.", param=where)
        elif request.rank_fields is None:
            _check_text(item, where)


def _check_text(document: dict[str, Any], where: str) -> None:
    text = document.get("text")
    if text is None:
        raise Invalid(
            f"'{where}.text' is required.", param=f"{where}.text", code="missing_required_parameter"
        )
    if not isinstance(text, str):
        raise Invalid(f"'{where}.text' must be a string.", param=f"{where}.text", code="invalid_type")
    if not text:
        raise Invalid(f"'{where}.text' is empty.", param=f"{where}.text")


def _requires(request: RerankRequest) -> Mapping[str, str]:
    asked = {
        "rank_fields": request.rank_fields is not None,
        "max_tokens_per_doc": request.max_tokens_per_doc is not None,
        "max_chunks_per_doc": request.max_chunks_per_doc is not None,
        "priority": request.priority is not None,
    }
    return {feature: feature for feature, is_asked in asked.items() if is_asked}


def _estimate(request: RerankRequest, _body_bytes: int) -> Usage:
    """Most rerankers read the query once with every document."""
    query = text_tokens(request.query)
    tokens = sum(
        query + text_tokens(item if isinstance(item, str) else msgspec.json.encode(item).decode())
        for item in request.documents
    )
    return Usage(tokens, source="estimated")


def _fold(request: RerankRequest, envelope: Envelope, deltas: Sequence[RerankDelta], usage: Usage) -> bytes:
    best = sorted(deltas, key=lambda delta: (-delta.relevance_score, delta.index))[: request.top_n]
    searches = -(-len(request.documents) // _DOCUMENTS_PER_SEARCH)
    return msgspec.json.encode(
        RerankResponse(
            id=envelope.id,
            model=envelope.model,
            results=[
                RerankResult(delta.index, delta.relevance_score, _document(request, delta.index))
                for delta in best
            ],
            usage=RerankUsage(usage.input_tokens, usage.total_tokens),
            meta=RerankMeta(
                ApiVersion(), RerankUnits(searches, usage.input_tokens), RerankTokens(usage.input_tokens)
            ),
        )
    )


def _document(request: RerankRequest, index: int) -> dict[str, Any] | None:
    if not request.return_documents:
        return None
    item = request.documents[index]
    return {"text": item} if isinstance(item, str) else item


MODALITY = Modality(
    name="rerank",
    path="/v1/rerank",
    aliases=("/v2/rerank",),
    summary="Sort documents by how well they answer a query",
    request=RerankRequest,
    delta=RerankDelta,
    response=RerankResponse,
    check=_check,
    requires=_requires,
    estimate=_estimate,
    cap=None,
    fold=_fold,
    writer=None,
    features=("rank_fields", "max_tokens_per_doc", "max_chunks_per_doc", "priority"),
    example={"query": "Where do ships sail?", "documents": ["On the sea.", "A mountain railway."]},
)
