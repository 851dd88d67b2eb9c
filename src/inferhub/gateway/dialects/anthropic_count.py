"""Anthropic's token counts for clients: `POST /v1/messages/count_tokens`, which needs no `max_tokens`."""

from __future__ import annotations

from typing import Any

from inferhub.gateway.dialects.base import Dialect, Translated
from inferhub.modalities.token_count import MODALITY, TokenCountResponse
from inferhub.wire.anthropic_messages import request
from inferhub.wire.anthropic_messages.lower import lower


def translate(asked: Any, _body: bytes) -> Translated:
    return Translated(*lower(asked))


DIALECT = Dialect(
    name=request.COUNT_DIALECT,
    path="/v1/messages/count_tokens",
    summary="Count the tokens of a conversation, as Anthropic's clients ask",
    modality=MODALITY,
    request=request.CountTokensRequest,
    response=TokenCountResponse,
    check=request.check,
    translate=translate,
    fold=MODALITY.fold,
    writer=None,
    id_prefix="count_",
    example={"messages": [{"role": "user", "content": "How long am I?"}]},
    is_dotted=True,
)
