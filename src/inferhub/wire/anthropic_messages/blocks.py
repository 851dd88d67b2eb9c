"""Lays the deltas of a chat answer out as content blocks, which follow each other and never overlap.

Used by `writer`, for events and for whole answers alike. Pure; holds one answer's state.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import msgspec

from inferhub.modalities.chat import ChatDelta, ReasoningDetail, ToolCallDelta
from inferhub.wire.foreign import NOT_JSON


class Start(NamedTuple):
    place: int
    block: dict[str, Any]
    """As it is before its first piece."""


class Piece(NamedTuple):
    place: int
    kind: Literal["text_delta", "thinking_delta", "signature_delta", "input_json_delta"]
    text: str


class Stop(NamedTuple):
    place: int


Step = Start | Piece | Stop

FIELDS = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
    "input_json_delta": "partial_json",
}
"""What each kind of piece calls its text."""


class _Call:
    """One tool call while it is being written."""

    __slots__ = ("arguments", "id", "name", "written")

    def __init__(self) -> None:
        self.id = self.name = self.arguments = ""
        self.written = 0
        """Characters of the arguments that are out."""

    @property
    def is_whole(self) -> bool:
        try:
            msgspec.json.decode(self.arguments)
        except NOT_JSON:
            return False
        return True


class BlockLayout:
    """`take` each delta in order, then `close`."""

    def __init__(self) -> None:
        self._index = -1
        self._open: tuple[Any, ...] = ()
        """What the open block is; empty where none is open."""
        self._calls: dict[int, _Call] = {}
        """Those that are not closed, by their place in the answer; the first is the one that is open."""

    @property
    def count(self) -> int:
        """Blocks so far."""
        return self._index + 1

    def skip(self, started: int, stopped: int) -> None:
        """So many blocks were begun and ended elsewhere. One that is open is text: nothing else goes on."""
        self._index += started
        if started != stopped:
            self._open = ("text",) if started > stopped else ()

    def take(self, delta: ChatDelta) -> Iterator[Step]:
        if delta.reasoning_details:
            for detail in delta.reasoning_details:
                yield from self._thought(detail)
        if delta.reasoning_content and not _shows(delta.reasoning_details):
            yield from self._enter(("thinking", None), {"type": "thinking", "thinking": "", "signature": ""})
            yield Piece(self._index, "thinking_delta", delta.reasoning_content)
        for text in (delta.content, delta.refusal):
            if text:
                yield from self._enter(("text",), {"type": "text", "text": ""})
                yield Piece(self._index, "text_delta", text)
        for call in delta.tool_calls or ():
            yield from self._call(call)

    def close(self) -> Iterator[Step]:
        """What is still held back, and the end of the open block."""
        while self._calls:
            yield from self._next_call()
            yield from self._write_call(is_last=True)
        yield from self._leave()

    def _enter(self, what: tuple[Any, ...], block: dict[str, Any]) -> Iterator[Step]:
        """Make this the open block, unless it is. A tool call in the way is over: the model speaks again."""
        if self._open == what:
            return
        while self._calls:
            yield from self._next_call()
            yield from self._write_call(is_last=True)
        yield from self._begin(what, block)

    def _begin(self, what: tuple[Any, ...], block: dict[str, Any]) -> Iterator[Step]:
        yield from self._leave()
        self._index += 1
        self._open = what
        yield Start(self._index, block)

    def _leave(self) -> Iterator[Step]:
        if self._open:
            self._open = ()
            yield Stop(self._index)

    def _thought(self, detail: ReasoningDetail) -> Iterator[Step]:
        if detail.type == "reasoning.encrypted":
            if detail.data:
                # Whole by itself: two in a row are two blocks.
                block = {"type": "redacted_thinking", "data": detail.data}
                yield from self._enter(("redacted", object()), block)
            return
        text = detail.text or detail.summary
        if text or detail.signature:
            what = ("thinking", detail.index)
            yield from self._enter(what, {"type": "thinking", "thinking": "", "signature": ""})
        if text:
            yield Piece(self._index, "thinking_delta", text)
        if detail.signature:
            yield Piece(self._index, "signature_delta", detail.signature)

    # --- tool calls: others may mix their pieces, here one follows the other ----------------------

    def _call(self, delta: ToolCallDelta) -> Iterator[Step]:
        call = self._calls.setdefault(delta.index, _Call())
        call.id = call.id or delta.id or ""
        if delta.function is not None:
            call.name = call.name or delta.function.name or ""
            call.arguments += delta.function.arguments or ""
        yield from self._next_call()
        yield from self._write_call(is_last=False)
        # The next one has begun and this one is complete JSON: no more of it will come.
        while len(self._calls) > 1 and self._first.is_whole:
            yield from self._write_call(is_last=True)
            yield from self._next_call()
            yield from self._write_call(is_last=False)

    @property
    def _first(self) -> _Call:
        return next(iter(self._calls.values()))

    def _next_call(self) -> Iterator[Step]:
        place, call = next(iter(self._calls.items()))
        if self._open != ("tool", place):
            block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
            yield from self._begin(("tool", place), block)

    def _write_call(self, *, is_last: bool) -> Iterator[Step]:
        place, call = next(iter(self._calls.items()))
        if is_last:
            del self._calls[place]
            call.arguments = call.arguments or "{}"
        if call.written < len(call.arguments):
            yield Piece(self._index, "input_json_delta", call.arguments[call.written :])
            call.written = len(call.arguments)


def _shows(details: list[ReasoningDetail] | None) -> bool:
    """Whether the details say what `reasoning_content` says."""
    return any(detail.text or detail.summary for detail in details or ())
