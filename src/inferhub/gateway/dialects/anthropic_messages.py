"""Anthropic's Messages API for clients: `POST /v1/messages`. The translation is `wire/anthropic_messages`."""

from __future__ import annotations

from typing import Any

from inferhub.gateway.dialects.base import Dialect, Translated
from inferhub.modalities.chat import MODALITY
from inferhub.wire.anthropic_messages import request
from inferhub.wire.anthropic_messages.lower import lower
from inferhub.wire.anthropic_messages.writer import MessagesResponse, MessagesWriter, fold


def translate(asked: Any, _body: bytes) -> Translated:
    return Translated(*lower(asked))


DIALECT = Dialect(
    name=request.DIALECT,
    path="/v1/messages",
    summary="Answer a conversation, as Anthropic's clients ask",
    modality=MODALITY,
    request=request.MessagesRequest,
    response=MessagesResponse,
    check=request.check,
    translate=translate,
    fold=fold,
    writer=MessagesWriter,
    id_prefix="msg_",
    example={"max_tokens": 256, "messages": [{"role": "user", "content": "Say hello."}]},
    is_dotted=True,
)
