"""A kept answer: its deltas, few and large, and its usage, as msgpack that is read with its modality's types.

Deltas are shared by everybody who gets them, and never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Generic, TypeVar

import msgspec

from inferhub.core.call import Delta, Emit, Finished, Started
from inferhub.core.usage import Usage
from inferhub.modalities import modalities
from inferhub.modalities.chat import ChatDelta, FunctionDelta, ToolCallDelta
from inferhub.modalities.completion import CompletionDelta
from inferhub.stores.cache.base import MAX_VALUE_BYTES

PLACE = "cache"
"""The endpoint of what nobody computed."""
_PIECE_CHARACTERS = 4096
"""Of a joined text, so that a replayed stream is still written piece by piece."""
_DELTA_BYTES = 64
_PART_BYTES = 1024
# About what a piece takes, and one tool call or one token with its alternatives, all being bounded alike.

D = TypeVar("D")


class Answer(msgspec.Struct, Generic[D], array_like=True, frozen=True):
    """A whole answer, as it can be given again."""

    deltas: list[D]
    usage: Usage
    ignored_params: tuple[str, ...] = ()
    model: str = ""
    """Who gave it, where several could have."""
    described_by: str = ""


_encode = msgspec.msgpack.Encoder().encode


@cache
def _decoder(modality: str) -> msgspec.msgpack.Decoder[Answer[Any]]:
    return msgspec.msgpack.Decoder(Answer[modalities()[modality].delta])  # type: ignore[misc]


def encode(answer: Answer[Any]) -> bytes:
    return _encode(answer)


def decode(modality: str, value: bytes) -> Answer[Any] | None:
    """None for what cannot be read: of another version, or damaged."""
    try:
        return _decoder(modality).decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError):
        return None


async def replay(answer: Answer[Any], model: str, emit: Emit) -> None:
    started = Started(model, PLACE, ignored_params=answer.ignored_params, cache="hit")
    if answer.described_by:
        started = replace(started, described_by=answer.described_by)
    await emit(started)
    for payload in answer.deltas:
        await emit(Delta(payload))
    await emit(Finished(answer.usage))


class Recording:
    """Keeps what passes by, as long as it is not too large to be kept."""

    def __init__(self, modality: str) -> None:
        self._modality = modality
        self._payloads: list[Any] = []
        self._size_bytes = 0
        self.ignored_params: tuple[str, ...] = ()
        self.model = ""
        self.described_by = ""

    def take(self, payload: Any) -> None:
        if self._size_bytes > MAX_VALUE_BYTES:
            return
        self._size_bytes += _DELTA_BYTES
        for name in payload.__struct_fields__:
            value = getattr(payload, name)
            if type(value) is str or type(value) is bytes:
                self._size_bytes += len(value)
            elif type(value) is list:
                self._size_bytes += _PART_BYTES * len(value)
        if self._size_bytes > MAX_VALUE_BYTES:
            self._payloads.clear()
        else:
            self._payloads.append(payload)

    @property
    def has_begun(self) -> bool:
        return self._size_bytes > 0

    def answer(self, usage: Usage) -> Answer[Any] | None:
        if self._size_bytes > MAX_VALUE_BYTES:
            return None
        deltas = coalesce(self._modality, self._payloads)
        return Answer(deltas, usage, self.ignored_params, self.model, self.described_by)


def coalesce(modality: str, payloads: Sequence[Any]) -> list[Any]:
    """The same answer in fewer pieces. Pieces that are more than one text stay as they are."""
    text_of = _TEXTS.get(modality)
    if text_of is None:
        return list(payloads)
    joined: list[Any] = []
    place: object = None
    pieces: list[str] = []
    size = 0

    def close() -> None:
        if len(pieces) > 1:
            joined[-1] = _WITH_TEXT[modality](joined[-1], "".join(pieces))
        pieces.clear()

    for payload in payloads:
        found = text_of(payload)
        if found is not None and found[0] == place and size < _PIECE_CHARACTERS:
            pieces.append(found[1])
            size += len(found[1])
            continue
        close()
        joined.append(payload)
        place = None
        if found is not None:
            place, size = found[0], len(found[1])
            pieces.append(found[1])
    close()
    return joined


def _chat_text(delta: ChatDelta) -> tuple[object, str] | None:
    """(which text of which choice, the piece of it), where the delta is nothing else."""
    if delta.logprobs or delta.finish_reason or delta.refusal:
        return None
    if delta.tool_calls:
        if len(delta.tool_calls) > 1 or delta.content or delta.reasoning_content:
            return None
        call = delta.tool_calls[0]
        if call.id or call.type or not call.function or call.function.name or not call.function.arguments:
            return None
        return (delta.index, "arguments", call.index), call.function.arguments
    if delta.content and not delta.reasoning_content:
        return (delta.index, "content"), delta.content
    if delta.reasoning_content and not delta.content:
        return (delta.index, "reasoning"), delta.reasoning_content
    return None


def _with_chat_text(delta: ChatDelta, text: str) -> ChatDelta:
    if delta.tool_calls:
        call = delta.tool_calls[0]
        return ChatDelta(
            delta.index, tool_calls=[ToolCallDelta(call.index, function=FunctionDelta(None, text))]
        )
    if delta.content:
        return ChatDelta(delta.index, text)
    return ChatDelta(delta.index, reasoning_content=text)


def _completion_text(delta: CompletionDelta) -> tuple[object, str] | None:
    if delta.logprobs or delta.finish_reason or not delta.text:
        return None
    return delta.index, delta.text


_TEXTS: Mapping[str, Callable[[Any], tuple[object, str] | None]] = {
    "chat": _chat_text,
    "completion": _completion_text,
}
_WITH_TEXT: Mapping[str, Callable[[Any, str], Any]] = {
    "chat": _with_chat_text,
    "completion": lambda delta, text: CompletionDelta(delta.index, text),
}
