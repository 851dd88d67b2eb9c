"""A chat answer as Anthropic's clients read it: one message, or a stream of events.

The gateway's dialect gives it deltas. It knows neither the backend that made them nor HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from inferhub.core.usage import Usage
from inferhub.modalities.base import Envelope, Problem
from inferhub.modalities.chat import ChatDelta
from inferhub.wire.anthropic_messages.blocks import FIELDS, BlockLayout, Piece, Start, Step
from inferhub.wire.anthropic_messages.errors import stream_error
from inferhub.wire.anthropic_messages.prompt import prompt_tokens
from inferhub.wire.anthropic_messages.request import MessagesRequest
from inferhub.wire.foreign import NOT_JSON

_encode = msgspec.json.encode
Tree = dict[str, Any]


class MessageUsage(msgspec.Struct):
    """The three input classes are disjoint, unlike OpenAI's."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: dict[str, int] | None = None


class MessagesResponse(msgspec.Struct):
    """Answer of `POST /v1/messages` without `stream`."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Tree]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessageUsage


def message_usage(usage: Usage) -> MessageUsage:
    details = {"thinking_tokens": usage.reasoning_tokens} if usage.reasoning_tokens else None
    return MessageUsage(
        input_tokens=usage.input_tokens - usage.cached_tokens,
        cache_creation_input_tokens=0,
        cache_read_input_tokens=usage.cached_tokens,
        output_tokens=usage.output_tokens,
        output_tokens_details=details,
    )


_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


class _Ending:
    """Why the answer ended, gathered from its deltas."""

    def __init__(self) -> None:
        self._reason = "end_turn"
        self.sequence: str | None = None
        self._is_refusal = False

    def take(self, delta: ChatDelta) -> None:
        self._is_refusal = self._is_refusal or bool(delta.refusal)
        self.sequence = delta.stop_sequence or self.sequence
        if delta.finish_reason:
            self._reason = _STOP_REASONS[delta.finish_reason]

    @property
    def reason(self) -> str:
        if self._is_refusal:
            return "refusal"
        return "stop_sequence" if self.sequence is not None and self._reason == "end_turn" else self._reason


class MessagesWriter:
    """Writes `message_start` to `message_stop`, each event with its name."""

    def __init__(self, request: MessagesRequest, envelope: Envelope) -> None:
        self._request = request
        self._envelope = envelope
        self._layout = BlockLayout()
        self._ending = _Ending()
        self._has_begun = False

    def delta(self, payload: ChatDelta) -> bytes:
        if payload.index:
            return b""
        self._ending.take(payload)
        steps = b"".join(map(_step_event, self._layout.take(payload)))
        return self._begin() + steps

    def end(self, usage: Usage) -> bytes:
        ending = {"stop_reason": self._ending.reason, "stop_sequence": self._ending.sequence}
        return b"".join(
            (
                self._begin(),
                *map(_step_event, self._layout.close()),
                _event("message_delta", {"delta": ending, "usage": message_usage(usage)}),
                _event("message_stop", {}),
            )
        )

    def passed(self, raw: bytes) -> None:
        """An answer that another endpoint goes on with is written here, from where the raw events left it."""
        self._has_begun = True
        self._layout.skip(
            raw.count(b"event: content_block_start\n"), raw.count(b"event: content_block_stop\n")
        )

    def fail(self, problem: Problem) -> bytes:
        return b"event: error\ndata: " + _encode(stream_error(problem)) + b"\n\n"

    def _begin(self) -> bytes:
        """The first event needs a count of the prompt before anybody counted it: clients show and trust it.
        `message_delta` puts it right."""
        if self._has_begun:
            return b""
        self._has_begun = True
        usage = message_usage(Usage(prompt_tokens(self._request), 1))
        message = _message(self._envelope, [], usage)
        return _event("message_start", {"message": message}) + _event("ping", {})


def fold(request: Any, envelope: Envelope, deltas: Sequence[ChatDelta], usage: Usage) -> bytes:
    """The whole message as JSON."""
    layout, ending = BlockLayout(), _Ending()
    steps: list[Step] = []
    for delta in deltas:
        if not delta.index:
            ending.take(delta)
            steps += layout.take(delta)
    steps += layout.close()
    message = _message(envelope, _content(steps), message_usage(usage))
    message.stop_reason, message.stop_sequence = ending.reason, ending.sequence
    return _encode(message)


def _message(envelope: Envelope, content: list[Tree], usage: MessageUsage) -> MessagesResponse:
    return MessagesResponse(envelope.id, "message", "assistant", envelope.model, content, None, None, usage)


def _content(steps: Sequence[Step]) -> list[Tree]:
    blocks: list[Tree] = []
    pieces: list[list[str]] = []
    for step in steps:
        if isinstance(step, Start):
            blocks.append(step.block)
            pieces.append([])
        elif isinstance(step, Piece):
            if step.kind == "signature_delta":
                blocks[step.place]["signature"] += step.text
            else:
                pieces[step.place].append(step.text)
    for block, texts in zip(blocks, pieces, strict=True):
        if block["type"] == "tool_use":
            block["input"] = _input("".join(texts))
        elif texts:
            block[block["type"]] = "".join(texts)
    return blocks


def _input(arguments: str) -> Tree:
    """A model that was cut off leaves half an object; clients expect one all the same."""
    try:
        found = msgspec.json.decode(arguments)
    except NOT_JSON:
        return {}
    return found if isinstance(found, dict) else {}


def _step_event(step: Step) -> bytes:
    if isinstance(step, Piece):
        delta = {"type": step.kind, FIELDS[step.kind]: step.text}
        return _event("content_block_delta", {"index": step.place, "delta": delta})
    if isinstance(step, Start):
        return _event("content_block_start", {"index": step.place, "content_block": step.block})
    return _event("content_block_stop", {"index": step.place})


def _event(name: str, fields: Tree) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode({"type": name, **fields}))
