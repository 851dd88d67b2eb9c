"""Chat: our request to the engine's JSON, the engine's chunks to our deltas. Called by `backend`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from inferhub.backends.llamacpp.answers import sampling, total
from inferhub.backends.llamacpp.engine import Request, failure_of
from inferhub.backends.llamacpp.schemas import check_enforceable
from inferhub.backends.llamacpp.tools import CallReader, as_json, call_schema, offered
from inferhub.core.usage import Usage
from inferhub.modalities.chat import (
    ChatDelta,
    ChatRequest,
    ImagePart,
    JsonFormat,
    Message,
    RefusalPart,
    SchemaFormat,
    TextPart,
)
from inferhub.wire.openai_chat import ChatReader, parse_chat_chunk

FEATURES = frozenset({
    "stream", "tools", "tool_choice_named", "json_object", "json_schema",
    "logprobs", "n", "seed", "logit_bias", "prefill",
})  # fmt: skip


class ChatAnswer:
    """The `n` answers of one chat request, each an engine request of its own."""

    def __init__(self, request: ChatRequest, vocabulary: int, resume: str = "") -> None:
        """`resume` is what the only answer has said already."""
        count = request.n or 1
        tools, is_forced = offered(request)
        common = _common(request)
        if resume:
            common["messages"].append({"role": "assistant", "content": resume})
            common |= {"continue_final_message": True, "add_generation_prompt": False}
        grammar_param = "tools" if is_forced else "response_format" if request.response_format else None
        if is_forced:
            common |= {"tools": [as_json(tool) for tool in tools], "tool_choice": "none"}
            common["response_format"] = _schema_format(call_schema(tools))
        elif tools:
            grammar_param = "tools"
            common |= {"tools": [as_json(tool) for tool in tools], "tool_choice": "auto"}
            if request.parallel_tool_calls is not None:
                common["parallel_tool_calls"] = request.parallel_tool_calls
        self.requests = [
            Request(
                "chat",
                msgspec.json.encode(common | sampling(request, position, vocabulary)),
                prompt_param="messages",
                grammar_param=grammar_param,
            )
            for position in range(count)
        ]
        self._top_logprobs = request.top_logprobs or 0
        self._readers = [ChatReader() for _ in range(count)]
        self._calls = [CallReader() if is_forced else None for _ in range(count)]
        self._usages: dict[int, Usage] = {}

    def read(self, index: int, data: bytes) -> Sequence[ChatDelta]:
        chunk = parse_chat_chunk(data)
        if chunk.error is not None:
            raise failure_of(chunk.error, self.requests[index])
        deltas = self._readers[index].read(chunk)
        call = self._calls[index]
        if call is not None:
            deltas = [piece for delta in deltas for piece in _forced(call, delta)]
        for delta in deltas:
            delta.index = index
            for token in delta.logprobs or ():
                # The engine is always asked for one, else it sends twenty.
                token.top_logprobs = token.top_logprobs[: self._top_logprobs]
        return deltas

    def end(self, index: int) -> None:
        self._usages[index] = self._readers[index].end()

    def usage(self) -> Usage:
        return total(self._usages, len(self.requests))


def _forced(call: CallReader, delta: ChatDelta) -> Sequence[ChatDelta]:
    if delta.finish_reason:
        return call.end(delta.finish_reason)
    said = call.read(delta.content) if delta.content else []
    if delta.reasoning_content:
        return [ChatDelta(reasoning_content=delta.reasoning_content), *said]
    return said


def _common(request: ChatRequest) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": [_message(message) for message in request.messages]}
    if request.max_output_tokens is not None:
        body["max_tokens"] = request.max_output_tokens
    if request.logprobs:
        body |= {"logprobs": True, "top_logprobs": max(request.top_logprobs or 0, 1)}
    match request.response_format:
        case JsonFormat():
            body["response_format"] = {"type": "json_object"}
        case SchemaFormat(json_schema=spec):
            schema = spec.schema or {}
            check_enforceable(schema, "response_format")
            body["response_format"] = _schema_format(schema)
    return body


def _schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def _message(message: Message) -> dict[str, Any]:
    # Few templates know OpenAI's newer name for a system message.
    role = "system" if message.role == "developer" else message.role
    body: dict[str, Any] = {"role": role, "content": _content(message)}
    if message.tool_calls:
        body["tool_calls"] = [
            {"id": call.id, "type": "function", "function": msgspec.to_builtins(call.function)}
            for call in message.tool_calls
        ]
    for name in ("tool_call_id", "name", "reasoning_content"):
        if getattr(message, name) is not None:
            body[name] = getattr(message, name)
    return body


def _content(message: Message) -> str | list[dict[str, Any]]:
    """One text, which every template knows; parts where there are pictures, for an engine that sees them."""
    parts = message.content if isinstance(message.content, list) else []
    if not any(isinstance(part, ImagePart) for part in parts):
        return _text(message)
    said: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, ImagePart):
            said.append({"type": "image_url", "image_url": {"url": part.image_url.url}})
        elif isinstance(part, TextPart):
            said.append({"type": "text", "text": part.text})
    return said


def _text(message: Message) -> str:
    if not isinstance(message.content, list):
        return message.content or message.refusal or ""
    texts = [
        part.text if isinstance(part, TextPart) else part.refusal
        for part in message.content
        if isinstance(part, TextPart | RefusalPart)
    ]
    return "".join(texts)
