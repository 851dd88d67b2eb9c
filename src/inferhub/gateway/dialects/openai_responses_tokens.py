"""OpenAI's `POST /v1/responses/input_tokens`: how many tokens a request would have. Nothing is generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from inferhub.core.usage import Usage
from inferhub.gateway.dialects.base import Dialect, Translated
from inferhub.modalities.base import Envelope
from inferhub.modalities.token_count import MODALITY as TOKEN_COUNT
from inferhub.modalities.token_count import TokenCount
from inferhub.wire.openai_responses.lower import lower
from inferhub.wire.openai_responses.request import ResponsesRequest, check


class InputTokens(msgspec.Struct):
    """Answer of `POST /v1/responses/input_tokens`."""

    input_tokens: int
    object: Literal["response.input_tokens"] = "response.input_tokens"


def _translate(request: ResponsesRequest, _body: bytes) -> Translated:
    lowered = lower(request)
    return Translated(lowered.request, lowered.body, needs=lowered.needs)


def _fold(
    _request: ResponsesRequest, _envelope: Envelope, deltas: Sequence[TokenCount], _usage: Usage
) -> bytes:
    return msgspec.json.encode(InputTokens(sum(delta.input_tokens for delta in deltas)))


DIALECT = Dialect(
    name="openai_responses_tokens",
    path="/v1/responses/input_tokens",
    summary="Count the tokens of a response's input",
    modality=TOKEN_COUNT,
    request=ResponsesRequest,
    response=InputTokens,
    check=check,
    translate=_translate,
    fold=_fold,
    writer=None,
    id_prefix="resp_",
    example={"input": "How long am I?"},
    is_stateful=True,
)
