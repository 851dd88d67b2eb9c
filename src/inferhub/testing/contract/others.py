"""What backends promise that make vectors, verdicts, ranks and counts."""

from __future__ import annotations

import math
import struct
from typing import Any

from inferhub.backends.base import Backend
from inferhub.core.call import Call
from inferhub.core.errors import BackendRefused, Unsupported
from inferhub.core.models import Capability
from inferhub.modalities.embedding import EmbeddingDelta
from inferhub.testing.calls import make_call
from inferhub.testing.contract.frame import check, finish


def vector_of(delta: EmbeddingDelta) -> tuple[float, ...]:
    return struct.unpack(f"<{len(delta.vector) // 4}f", delta.vector)


@check("embedding", fault="wrong_dimensions")
async def vectors_have_their_length(backend: Backend, capability: Capability) -> None:
    result = await finish(backend, make_call("embedding", input=["the sea", "a mountain"]))
    for delta in result.payloads:
        vector = vector_of(delta)
        if capability.dimensions is not None:
            assert len(vector) == capability.dimensions
        assert math.isclose(math.hypot(*vector), 1.0, abs_tol=1e-3)


@check("embedding", fault="missing_vector")
async def every_input_has_itsvector_of(backend: Backend, capability: Capability) -> None:
    texts = [f"{number} ships at sea" for number in range(40)]
    result = await finish(backend, make_call("embedding", input=texts))
    assert sorted(delta.index for delta in result.payloads) == list(range(40))


@check("embedding", fault="wrong_order")
async def a_batch_equals_single_inputs(backend: Backend, capability: Capability) -> None:
    """Within what dynamic quantisation allows: a batch-mate may move a vector by a hair."""
    texts = ["the sea", "a mountain railway in winter", "seven"]
    batch = await finish(backend, make_call("embedding", input=texts))
    by_index = {delta.index: vector_of(delta) for delta in batch.payloads}
    for index, text in enumerate(texts):
        alone = await finish(backend, make_call("embedding", input=text))
        similarity = sum(a * b for a, b in zip(vector_of(alone.payloads[0]), by_index[index], strict=True))
        assert similarity > 0.97, (text, similarity)


@check("embedding", fault="ignores_dimensions", feature="dimensions")
async def refuses_dimensions_it_cannot_make(backend: Backend, capability: Capability) -> None:
    plain = await finish(backend, make_call("embedding", input="the sea"))
    native = len(vector_of(plain.payloads[0]))
    try:
        await finish(backend, make_call("embedding", input="the sea", dimensions=native - 1))
    except (Unsupported, BackendRefused) as error:
        assert str(native) in error.message
    else:
        raise AssertionError("a length that the model cannot make was accepted")


@check("embedding", fault="ignores_token_inputs", feature="token_inputs")
async def reads_token_ids(backend: Backend, capability: Capability) -> None:
    result = await finish(backend, make_call("embedding", input=[[1000, 1001, 1002], [2000]]))
    assert sorted(delta.index for delta in result.payloads) == [0, 1]
    assert vector_of(result.payloads[0]) != vector_of(result.payloads[1])


# --- verdicts, ranks and counts ----------------------------------------------------------------


@check("moderation", fault="missing_result")
async def judges_every_text(backend: Backend, capability: Capability) -> None:
    result = await finish(backend, make_call("moderation", input=["the sea", "a mountain", "seven"]))
    assert sorted(delta.index for delta in result.payloads) == [0, 1, 2]


@check("moderation", fault="wrong_scores")
async def verdicts_agree_with_themselves(backend: Backend, capability: Capability) -> None:
    result = await finish(backend, make_call("moderation", input=["I like the sea.", "violence and hate"]))
    for verdict in result.payloads:
        assert verdict.categories.keys() == verdict.category_scores.keys()
        assert all(0 <= score <= 1 for score in verdict.category_scores.values())
        assert verdict.flagged == any(verdict.categories.values())


_DOCUMENTS = ["Flour, water and salt make a bread.", "Ships sail on the sea.", "A railway in winter."]


def _rank(**params: Any) -> Call:
    return make_call("rerank", **{"query": "Where do ships sail?", "documents": _DOCUMENTS, **params})


@check("rerank", fault="missing_result")
async def scores_every_document(backend: Backend, capability: Capability) -> None:
    result = await finish(backend, _rank())
    assert sorted(delta.index for delta in result.payloads) == [0, 1, 2]


@check("rerank", fault="wrong_scores")
async def scores_are_shares(backend: Backend, capability: Capability) -> None:
    result = await finish(backend, _rank())
    assert all(0 <= delta.relevance_score <= 1 for delta in result.payloads)


@check("rerank", fault="reversed_scores")
async def ranks_the_answer_first(backend: Backend, capability: Capability) -> None:
    for documents in (_DOCUMENTS, _DOCUMENTS[::-1]):
        result = await finish(backend, _rank(documents=documents))
        best = max(result.payloads, key=lambda delta: delta.relevance_score)
        assert documents[best.index] == "Ships sail on the sea."


@check("token_count", fault="wrong_count")
async def counts_what_chat_would_read(backend: Backend, capability: Capability) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How deep is it? 🌊"}]
    counted = await finish(backend, make_call("token_count", messages=messages))
    said = await finish(backend, make_call("chat", messages=messages, max_tokens=1))
    assert [delta.input_tokens for delta in counted.payloads] == [said.usage.input_tokens]


@check("token_count", fault="billed_count")
async def counting_is_free(backend: Backend, capability: Capability) -> None:
    assert (await finish(backend, make_call("token_count"))).usage.total_tokens == 0
