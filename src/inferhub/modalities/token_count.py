"""Token counts: a chat request in, how many tokens its prompt has for this model out. Nothing is generated.

Costs nothing and uses none of the caller's tokens; for limits of requests it is one like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from inferhub.core.usage import Usage
from inferhub.modalities.base import Envelope, Modality
from inferhub.modalities.chat.request import ChatRequest, check, requires

_OF_THE_PROMPT = ("tools", "functions", "vision", "audio_input", "file_input")
"""What of a chat changes its prompt; everything else is about an answer that nobody makes."""


class TokenCount(msgspec.Struct):
    """The one piece of the answer."""

    input_tokens: int


class TokenCountResponse(msgspec.Struct):
    """Answer of `POST /v1/chat/completions/input_tokens`."""

    input_tokens: int


def _requires(request: ChatRequest) -> Mapping[str, str]:
    return {feature: param for feature, param in requires(request).items() if feature in _OF_THE_PROMPT}


def _estimate(_request: ChatRequest, _body_bytes: int) -> Usage:
    return Usage(source="estimated")


def _fold(_request: ChatRequest, _envelope: Envelope, deltas: Sequence[TokenCount], _usage: Usage) -> bytes:
    return msgspec.json.encode(TokenCountResponse(sum(delta.input_tokens for delta in deltas)))


MODALITY = Modality(
    name="token_count",
    path="/v1/chat/completions/input_tokens",
    summary="Count the tokens of a conversation",
    request=ChatRequest,
    delta=TokenCount,
    response=TokenCountResponse,
    check=check,
    requires=_requires,
    estimate=_estimate,
    cap=None,
    fold=_fold,
    writer=None,
    features=(*_OF_THE_PROMPT, "remote_urls"),
    example={"messages": [{"role": "user", "content": "How long am I?"}]},
    is_free=True,
)
