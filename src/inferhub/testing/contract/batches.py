"""What a backend promises that computes several calls together: everyone gets what they would get alone.

Others pass these checks by having no batches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from inferhub.backends.base import Backend, BatchBackend, BatchResult
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.errors import ContextOverflow, InferHubError
from inferhub.core.models import Capability
from inferhub.modalities.embedding import EmbeddingDelta
from inferhub.testing.calls import make_call
from inferhub.testing.contract import frame
from inferhub.testing.contract.frame import Result, check, finish
from inferhub.testing.contract.others import vector_of

_TEXTS = ("the sea", "a mountain railway in winter", "seven", "flour, water and salt " * 6, "the sea")
_LEAST_SIMILARITY = 0.9999
_MOST_APART = 1e-3


@check("embedding", "rerank", fault="mixes_batch")
async def answers_in_a_batch_as_alone(backend: Backend, capability: Capability) -> None:
    calls = [_call(capability, text) for text in _TEXTS]
    for call, result in await _together(backend, calls):
        together, alone = _whole(result), await finish(backend, call)
        assert together.usage == alone.usage
        assert len(together.payloads) == len(alone.payloads)
        by_index = {payload.index: payload for payload in alone.payloads}
        for payload in together.payloads:
            _assert_alike(payload, by_index[payload.index])


@check("embedding", "rerank", fault="one_fails_batch")
async def one_call_in_a_batch_fails_alone(backend: Backend, capability: Capability) -> None:
    if capability.context_tokens is None:
        return
    long = "sea " * (capability.context_tokens + 8)
    calls = [_call(capability, text) for text in ("the sea", long, "seven")]
    if results := await _together(backend, calls):
        first, refused, last = (result for _, result in results)
        assert isinstance(refused, ContextOverflow), refused
        assert _whole(first).payloads
        assert _whole(last).payloads


async def _together(backend: Backend, calls: Sequence[Call]) -> list[tuple[Call, BatchResult]]:
    """Each call with its answer; nothing where the backend makes no batches."""
    if not isinstance(backend, BatchBackend) or calls[0].modality not in backend.batches:
        return []
    try:
        async with asyncio.timeout(frame.PATIENCE_S):
            results = await backend.run_batch(calls)
    except InferHubError as error:
        raise AssertionError("one call's error was raised for the whole batch") from error
    assert len(results) == len(calls), f"{len(results)} answers to {len(calls)} calls"
    return list(zip(calls, results, strict=True))


def _call(capability: Capability, text: str) -> Call:
    if capability.modality == "rerank":
        return make_call("rerank", query=text, documents=["Ships sail on the sea.", text[:40]])
    return make_call("embedding", input=[text, text[::-1].strip()])


def _whole(result: BatchResult) -> Result:
    assert not isinstance(result, InferHubError), result
    *deltas, finished = result
    assert isinstance(finished, Finished), "the answer ended without Finished"
    assert all(isinstance(delta, Delta) for delta in deltas), "something came after Finished"
    return Result([delta.payload for delta in deltas if isinstance(delta, Delta)], finished.usage)


def _assert_alike(one: object, other: object) -> None:
    if isinstance(one, EmbeddingDelta) and isinstance(other, EmbeddingDelta):
        similarity = sum(a * b for a, b in zip(vector_of(one), vector_of(other), strict=True))
        assert similarity > _LEAST_SIMILARITY, similarity
    else:
        ours, theirs = getattr(one, "relevance_score", 0.0), getattr(other, "relevance_score", 0.0)
        assert abs(ours - theirs) < _MOST_APART, (ours, theirs)
