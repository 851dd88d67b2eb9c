"""OpenAI Responses: `POST /v1/responses` as chat, streamed or whole.

Stored responses are the business of `gateway/responses`, which runs in front of this and needs the store.
"""

from __future__ import annotations

from inferhub.gateway.dialects.base import Dialect, Translated
from inferhub.modalities.chat import MODALITY as CHAT
from inferhub.wire.openai_responses.lower import lower
from inferhub.wire.openai_responses.request import ResponsesRequest, check
from inferhub.wire.openai_responses.resource import ResponseResource
from inferhub.wire.openai_responses.writer import ResponsesWriter, fold


def _translate(request: ResponsesRequest, _body: bytes) -> Translated:
    lowered = lower(request)
    return Translated(lowered.request, lowered.body, needs=lowered.needs)


DIALECT = Dialect(
    name="openai_responses",
    path="/v1/responses",
    summary="Answer a conversation, and keep the answer",
    modality=CHAT,
    request=ResponsesRequest,
    response=ResponseResource,
    check=check,
    translate=_translate,
    fold=fold,
    writer=ResponsesWriter,
    id_prefix="resp_",
    example={"input": "Say hello."},
    is_stateful=True,
)
