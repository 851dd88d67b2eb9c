"""Writes answers of OpenAI's format anew where the sender's own bytes cannot be passed on.

Only the parts that were wrong are replaced; everything else, the sender's id and model among it, keeps its
bytes. Called by backends of the pass-through lane, for the odd event, never for the ordinary one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from inferhub.core.usage import Usage
from inferhub.modalities.chat import ChatDelta
from inferhub.modalities.completion import CompletionDelta
from inferhub.modalities.tokens import token_usage
from inferhub.wire.sse import event_bytes

_encode = msgspec.json.encode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_choices = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_SAID = ("content", "reasoning_content", "reasoning_details", "refusal", "tool_calls", "annotations")
_NO_CHOICES = msgspec.Raw(b"[]")
_NULL = msgspec.Raw(b"null")
_USAGE_NULL = b',"usage":null'


def mended_events(data: bytes, payloads: Sequence[ChatDelta | CompletionDelta], usage: Usage | None) -> bytes:
    """The event with this data as one event for each payload, and with this usage where it had one."""
    fields = _fields(data)
    counted = fields.pop("usage", None)
    if counted is not None and usage is not None:
        # As in every event of a client that asked for usage.
        fields["usage"] = _NULL
    has_role = b'"role"' in bytes(fields.get("choices", _NO_CHOICES))
    events = b""
    for payload in payloads:
        choice = _chat_choice(payload, has_role) if isinstance(payload, ChatDelta) else _text_choice(payload)
        has_role = False
        fields["choices"] = msgspec.Raw(_encode([choice]))
        events += event_bytes(_encode(fields))
    if counted is not None and usage is not None and bytes(counted) != bytes(_NULL):
        fields["choices"] = _NO_CHOICES
        fields["usage"] = _mended_usage(counted, usage)
        events += event_bytes(_encode(fields))
    return events


def usage_event(data: bytes, usage: Usage) -> bytes:
    """The event that a sender owes who was asked to count and did not; `data` is of its last one."""
    usage_field = msgspec.Raw(_encode(token_usage(usage)))
    return event_bytes(_encode({**_fields(data), "choices": _NO_CHOICES, "usage": usage_field}))


def without_roles(data: bytes, choices: Collection[int]) -> bytes:
    """The data of an event without the roles of these choices, which had theirs: a client would join them."""
    fields = _fields(data)
    kept = _choices(fields["choices"])
    for choice in kept:
        if _index(choice.get("index", _NULL)) in choices:
            delta = _fields(choice["delta"])
            delta.pop("role", None)
            choice["delta"] = msgspec.Raw(_encode(delta))
    fields["choices"] = msgspec.Raw(_encode(kept))
    return _encode(fields)


def without_usage(data: bytes) -> bytes:
    """The data of an event without `usage`, for a client that did not ask for it."""
    # As most senders write it, with every token. Within a string its quotes would be escaped.
    bare = data.replace(_USAGE_NULL, b"")
    if b'"usage"' not in bare:
        return bare
    fields = _fields(bare)
    return bare if fields.pop("usage", None) is None else _encode(fields)


def with_choices(body: bytes, folded: bytes) -> bytes:
    """A whole answer with the choices of another."""
    return _encode({**_fields(body), "choices": _fields(folded)["choices"]})


def with_usage(body: bytes, usage: Usage) -> bytes:
    """A whole answer, or the data of an event, with totals that add up."""
    fields = _fields(body)
    fields["usage"] = _mended_usage(fields["usage"], usage)
    return _encode(fields)


def _index(value: msgspec.Raw) -> int:
    return msgspec.json.decode(value, type=int | None) or 0


def _mended_usage(counted: msgspec.Raw, usage: Usage) -> msgspec.Raw:
    """The sender's object, whatever else it tells, with our totals."""
    ours = token_usage(usage)
    totals = {
        "prompt_tokens": ours.prompt_tokens,
        "completion_tokens": ours.completion_tokens,
        "total_tokens": ours.total_tokens,
    }
    said = msgspec.json.decode(counted)
    return msgspec.Raw(_encode({**said, **totals} if isinstance(said, dict) else totals))


def _chat_choice(payload: ChatDelta, has_role: bool) -> dict[str, Any]:
    said = {name: value for name in _SAID if (value := getattr(payload, name))}
    choice: dict[str, Any] = {
        "index": payload.index,
        "delta": {"role": "assistant", **said} if has_role else said,
        "finish_reason": payload.finish_reason,
    }
    if payload.logprobs:
        choice["logprobs"] = {"content": payload.logprobs}
    return choice


def _text_choice(payload: CompletionDelta) -> dict[str, Any]:
    return {
        "index": payload.index,
        "text": payload.text,
        "logprobs": payload.logprobs,
        "finish_reason": payload.finish_reason,
    }
