"""`POST /v1/llm/chat`: a conversation in the fewest words, for those who write their own client.

The same calls as `/v1/chat/completions`, translated both ways; what it cannot say, that one can.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from inferhub.core.errors import Invalid
from inferhub.core.usage import Usage
from inferhub.gateway.dialects.base import Dialect, Translated
from inferhub.modalities.base import Envelope, Problem
from inferhub.modalities.chat import MODALITY, ChatDelta, ChatRequest, Message


class Turn(msgspec.Struct, frozen=True):
    role: Literal["system", "user", "assistant"]
    content: str


class LlmChatRequest(msgspec.Struct, kw_only=True):
    """Body of `POST /v1/llm/chat`. One of `message` and `messages` is needed."""

    message: str | None = None
    """What the user says; short for a single turn."""
    messages: list[Turn] | None = None
    model: str = ""
    """The first chat model where none is named."""
    system: str | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    stream: bool | None = None


class LlmUsage(msgspec.Struct):
    input_tokens: int
    output_tokens: int


class LlmChatResponse(msgspec.Struct):
    """The whole answer, and the last event of a stream with an empty `text`."""

    id: str
    model: str
    text: str
    finish_reason: str
    usage: LlmUsage


class _Piece(msgspec.Struct):
    text: str


class _Failure(msgspec.Struct):
    error: Problem


_encode = msgspec.json.Encoder().encode


def _check(asked: LlmChatRequest) -> None:
    if (asked.message is None) == (asked.messages is None):
        raise Invalid("Send either 'message', a text, or 'messages', a list of turns.", param="message")
    if asked.messages == []:
        raise Invalid("'messages' is an empty array; send at least one turn.", param="messages")


def _translate(asked: LlmChatRequest, _body: bytes) -> Translated:
    turns = asked.messages or [Turn("user", asked.message or "")]
    if asked.system is not None:
        turns = [Turn("system", asked.system), *turns]
    request = ChatRequest(
        model=asked.model,
        messages=[Message(role=turn.role, content=turn.content) for turn in turns],
        max_completion_tokens=asked.max_tokens,
        temperature=asked.temperature,
        stream=asked.stream,
    )
    MODALITY.check(request)
    body: dict[str, Any] = {"model": asked.model, "messages": turns}
    for name in ("max_completion_tokens", "temperature", "stream"):
        if getattr(request, name) is not None:
            body[name] = getattr(request, name)
    return Translated(request, _encode(body))


def _fold(asked: LlmChatRequest, envelope: Envelope, deltas: Sequence[ChatDelta], usage: Usage) -> bytes:
    text = "".join(delta.content or delta.refusal or "" for delta in deltas)
    return _encode(_closing(envelope, text, _reason(deltas), usage))


def _closing(envelope: Envelope, text: str, reason: str, usage: Usage) -> LlmChatResponse:
    counted = LlmUsage(usage.input_tokens, usage.output_tokens)
    return LlmChatResponse(envelope.id, envelope.model, text, reason, counted)


def _reason(deltas: Sequence[ChatDelta]) -> str:
    return next((delta.finish_reason for delta in reversed(deltas) if delta.finish_reason), "stop")


class _Writer:
    """`{"text": …}` for each piece, then the whole record without its text."""

    def __init__(self, asked: LlmChatRequest, envelope: Envelope) -> None:
        self._envelope = envelope
        self._reason = "stop"

    def delta(self, payload: ChatDelta) -> bytes:
        self._reason = payload.finish_reason or self._reason
        text = payload.content or payload.refusal
        return _event(_Piece(text)) if text else b""

    def passed(self, raw: bytes) -> None:
        """Nothing passes: no upstream speaks this dialect."""

    def end(self, usage: Usage) -> bytes:
        return _event(_closing(self._envelope, "", self._reason, usage)) + b"data: [DONE]\n\n"

    def fail(self, problem: Problem) -> bytes:
        return _event(_Failure(problem))


def _event(said: msgspec.Struct) -> bytes:
    return b"data: %b\n\n" % _encode(said)


DIALECT = Dialect(
    name="llm_chat",
    path="/v1/llm/chat",
    summary="Answer a conversation, in the fewest words",
    modality=MODALITY,
    request=LlmChatRequest,
    response=LlmChatResponse,
    check=_check,
    translate=_translate,
    fold=_fold,
    writer=_Writer,
    id_prefix="llm-",
    example={"message": "Say hello."},
)
