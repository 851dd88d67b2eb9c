"""What an upstream is sent: the client's own fields, each with the bytes that it had, and our few changes.

Called once for each request. Pure: knows the vendor's facts and no connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from inferhub.backends.vendors import Vendor
from inferhub.core.call import Call
from inferhub.core.errors import Invalid
from inferhub.modalities.rerank import texts
from inferhub.wire.foreign import NOT_JSON

Fields = dict[str, msgspec.Raw]

# A client must not choose where the operator's key is sent.
DROPPED_FIELDS = ("api_base", "base_url", "api_key", "extra_headers")
_LIMITS = ("max_completion_tokens", "max_tokens")
# Fields that translated requests carry for vendors who know them.
_MESSAGE_EXTRAS = ("cache_control", "reasoning_content", "reasoning_details", "is_error")
_TRUE = msgspec.Raw(b"true")
_FALSE = msgspec.Raw(b"false")
_BASE64 = msgspec.Raw(b'"base64"')
# Always asked for, so that a call is counted whether or not its client wants to see the count.
_COUNT_USAGE = msgspec.Raw(b'{"include_usage":true}')
_encode = msgspec.json.encode
_decode = msgspec.json.decode
_decode_fields = msgspec.json.Decoder(Fields).decode


class RequestWriter:
    """Writes requests to one model of one upstream."""

    def __init__(self, row: Vendor, model: str) -> None:
        self._row = row
        self._model = msgspec.Raw(_encode(model))
        self._by_modality: dict[str, Callable[[Call, Fields], None]] = {
            "chat": self._chat,
            "completion": self._completion,
            "embedding": self._embedding,
            "rerank": self._rerank,
        }

    def body(self, call: Call) -> bytes:
        """In the modality's own dialect. Raises `Invalid` for what is no JSON object."""
        fields = self._fields(call.body)
        change = self._by_modality.get(call.modality)
        if change is not None:
            change(call, fields)
        for name in self._row.drops:
            fields.pop(name, None)
        for name, theirs in self._row.renames.items():
            if name in fields:
                fields[theirs] = fields.pop(name)
        return _encode(fields)

    def responses_body(self, call: Call, body: bytes) -> bytes:
        """A Responses request for an upstream that answers those itself."""
        fields = self._fields(body)
        if call.stream:
            fields["stream"] = _TRUE
        limit = call.request.max_output_tokens
        if limit is not None and _absent(fields.get("max_output_tokens")):
            # Admission counts on it.
            fields["max_output_tokens"] = msgspec.Raw(str(limit).encode())
        return _encode(fields)

    def tokenize_body(self, call: Call) -> bytes:
        """What vLLM needs to count a chat."""
        fields = self._fields(call.body)
        asked = {name: fields[name] for name in ("model", "messages", "tools") if name in fields}
        return _encode({**asked, "add_generation_prompt": True})

    def _fields(self, body: bytes) -> Fields:
        try:
            fields = _decode_fields(body)
        except NOT_JSON as error:
            raise Invalid("The body is not a JSON object.") from error
        for name in (*DROPPED_FIELDS, "stream"):
            fields.pop(name, None)
        fields["model"] = self._model
        return fields

    def _chat(self, call: Call, fields: Fields) -> None:
        self._ask_for_stream(call, fields)
        row = self._row
        if row.output_limit != "both":
            given = [fields.pop(name, None) for name in _LIMITS]
            limit = next((value for value in given if not _absent(value)), None)
            if limit is not None:
                fields[row.output_limit] = limit
        elif not any(_absent(fields.get(name)) for name in _LIMITS):
            # Admission counted on the newer one, and which one a server obeys is its own choice.
            fields["max_tokens"] = fields["max_completion_tokens"]
        if call.native is not None or row.message_drops or call.resume:
            self._change_messages(call, fields)
        if call.native is not None and "tools" in fields:
            fields["tools"] = _raw([_without(tool, ("cache_control",)) for tool in _decode(fields["tools"])])

    def _completion(self, call: Call, fields: Fields) -> None:
        self._ask_for_stream(call, fields)
        if call.resume and isinstance(call.request.prompt, str):
            fields["prompt"] = _raw(call.request.prompt + call.resume)

    def _embedding(self, _: Call, fields: Fields) -> None:
        # vLLM would embed a conversation instead, and fetch the pictures that it names.
        for name in ("encoding_format", "messages"):
            fields.pop(name, None)
        if self._row.base64:
            # A quarter of the bytes of decimal numbers, and exact; a client's wish is met when we answer.
            fields["encoding_format"] = _BASE64

    def _rerank(self, call: Call, fields: Fields) -> None:
        request = call.request
        if request.rank_fields is None and not all(isinstance(item, str) for item in request.documents):
            fields["documents"] = _raw(texts(request))

    def _ask_for_stream(self, call: Call, fields: Fields) -> None:
        asked = fields.pop("stream_options", None)
        if not call.stream:
            return
        fields["stream"] = _TRUE
        if not self._row.stream_options:
            return
        fields["stream_options"] = _COUNT_USAGE
        options = None if asked is None else _decode(asked)
        if isinstance(options, dict) and options.keys() - {"include_usage"}:
            fields["stream_options"] = _raw({**options, "include_usage": True})

    def _change_messages(self, call: Call, fields: Fields) -> None:
        unwanted = set(self._row.message_drops)
        if call.native is not None:
            unwanted |= {*_MESSAGE_EXTRAS, "extra_content"} - set(self._row.message_extras)
        messages = [_without(message, unwanted) for message in _decode(fields["messages"])]
        if call.resume:
            self._resume(call.resume, messages, fields)
        fields["messages"] = _raw(messages)

    def _resume(self, said: str, messages: list[dict[str, Any]], fields: Fields) -> None:
        """Let it go on with what the client has already."""
        last = messages[-1]
        if last.get("role") == "assistant" and isinstance(last.get("content"), str):
            last["content"] += said
        else:
            last = {"role": "assistant", "content": said}
            messages.append(last)
        if self._row.prefill == "prefix":
            last["prefix"] = True
        elif self._row.prefill == "continue":
            fields["continue_final_message"], fields["add_generation_prompt"] = _TRUE, _FALSE


def _without(value: Any, names: set[str] | tuple[str, ...]) -> Any:
    """A message, a tool or a part without these fields, its parts and tool calls likewise."""
    if not isinstance(value, dict):
        return value
    kept = {name: item for name, item in value.items() if name not in names}
    for name in ("content", "tool_calls"):
        if isinstance(kept.get(name), list):
            kept[name] = [_without(item, names) for item in kept[name]]
    return kept


def _absent(value: msgspec.Raw | None) -> bool:
    return value is None or bytes(value) == b"null"


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(_encode(value))
