"""Mends the tool calls of chat answers: every call introduced once, numbered from 0, its arguments in pieces.

Used by `openai_chat` for each choice. Says of every piece whether it was right as it came, so that a
stream that needs no mending can be forwarded untouched.
"""

from __future__ import annotations

from typing import Any

import msgspec

from inferhub.core.clock import new_id
from inferhub.core.errors import UpstreamFailed
from inferhub.modalities.chat import FunctionDelta, ToolCallDelta
from inferhub.wire.foreign import NOT_JSON

_MAX_UNNAMED_CHARS = 65536


class UpstreamFunction(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class UpstreamToolCall(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: UpstreamFunction | None = None
    extra_content: dict[str, Any] | None = None


class ToolNumbering:
    """Follows the tool calls of one choice."""

    def __init__(self) -> None:
        self.count = 0
        """Calls introduced so far."""
        self.is_mended = False
        """Whether what the last `follow` or `close` said differs from what the sender wrote."""
        self._calls: dict[int | str, _OpenCall] = {}
        self._key_by_index: dict[int, int | str] = {}
        self._ids: set[str] = set()
        self._last: int | str = -1

    def follow(self, piece: UpstreamToolCall) -> list[ToolCallDelta]:
        """What a piece adds."""
        name = (piece.function.name or None) if piece.function else None
        arguments, is_object = _text_of(piece.function.arguments if piece.function else None)
        key = self._last = self._key(piece, name, arguments)
        call = self._calls.setdefault(key, _OpenCall())
        call.id = call.id or piece.id
        if call.place is not None:
            new = call.take(arguments)
            as_sent = not (is_object or name or piece.id) and piece.index == call.place and new == arguments
            self.is_mended = not as_sent
            return _more(call, new, piece.extra_content)
        # Some senders name the function after its first arguments; clients need the name first.
        call.held += arguments
        if len(call.held) > _MAX_UNNAMED_CHARS:
            raise UpstreamFailed("The upstream sent a tool call without a name.")
        if not name:
            self.is_mended = True
            return []
        self.is_mended = is_object or call.held != arguments or piece.index != self.count
        deltas = self._introduce(call, name, piece.extra_content)
        self.is_mended = self.is_mended or call.id != piece.id or piece.type != "function"
        return deltas

    def close(self) -> list[ToolCallDelta]:
        """What is still owed when the sender has finished: `{}` where a call got no arguments at all."""
        deltas = []
        for call in self._calls.values():
            if call.place is None:
                continue
            rest = call.rest()
            if not rest and not call.said_chars:
                rest = "{}"
            if rest:
                deltas += _more(call, rest, None)
        self.is_mended = bool(deltas)
        return deltas

    @property
    def is_complete(self) -> bool:
        """Whether there are calls and the arguments of each can be read."""
        named = [call for call in self._calls.values() if call.place is not None]
        return bool(named) and all(is_json(call.said()) or not call.said_chars for call in named)

    def _introduce(
        self, call: _OpenCall, name: str, extra_content: dict[str, Any] | None
    ) -> list[ToolCallDelta]:
        call.place = self.count
        call.name = name
        self.count += 1
        call.id = call.id if call.id and call.id not in self._ids else new_id("call")
        self._ids.add(call.id)
        first = ToolCallDelta(call.place, call.id, "function", FunctionDelta(name, ""), extra_content)
        return [first, *_more(call, call.take(call.held), None)]

    def _key(self, piece: UpstreamToolCall, name: str | None, arguments: str) -> int | str:
        """Which call this piece belongs to: by index, unless what it brings is plainly another call."""
        if piece.index is None:
            return piece.id or (f"#{self.count}" if name else self._last)
        current = self._key_by_index.get(piece.index)
        if current is None:
            current = self._key_by_index[piece.index] = piece.index
        elif name and self._is_other(self._calls[current], piece, name, arguments):
            current = self._key_by_index[piece.index] = f"{piece.index}/{self.count}"
        return current

    def _is_other(self, call: _OpenCall, piece: UpstreamToolCall, name: str, arguments: str) -> bool:
        if call.place is None:
            return False
        if piece.id:
            return piece.id not in self._ids
        # Nothing but the name tells them apart, and senders repeat the name within one call too.
        said = call.said()
        return is_json(said) and (name != call.name or (bool(arguments) and not arguments.startswith(said)))


class _OpenCall:
    """One tool call while it is being read."""

    __slots__ = ("_doubt", "_is_cumulative", "_said", "held", "id", "name", "place", "said_chars")

    def __init__(self) -> None:
        self.id: str | None = None
        self.name = ""
        self.place: int | None = None
        """None until the call has a name and was introduced."""
        self.held = ""
        """Arguments that came before the name."""
        self.said_chars = 0
        self._said: list[str] = []
        self._is_cumulative = False
        self._doubt = ""

    def said(self) -> str:
        if len(self._said) > 1:
            self._said = ["".join(self._said)]
        return self._said[0] if self._said else ""

    def take(self, arguments: str) -> str:
        """What is new in a piece, from senders of pieces and from those who send all that there is so far.

        A piece that begins with everything before it is a repetition where the two in a row could never
        be JSON. Where they could (`{"a":` twice, an object within an object) the next piece decides.
        """
        if self._doubt:
            doubt, self._doubt = self._doubt, ""
            if arguments.startswith(doubt):
                self._is_cumulative = True
            else:
                self._add(doubt)
                return doubt + self.take(arguments)
        # Only an object can be repeated from its start, and only a piece as long as all before it.
        if self._said and len(arguments) >= self.said_chars and arguments[:1] in "{[":
            said = self.said()
            if arguments.startswith(said):
                if not self._is_cumulative and said.rstrip()[-1:] in (":", ",", "["):
                    self._doubt = arguments
                    return ""
                self._is_cumulative = True
                return self._add(arguments[len(said) :])
        return self._add(arguments)

    def rest(self) -> str:
        """What a doubt still holds back at the end."""
        doubt, self._doubt = self._doubt, ""
        if doubt and is_json(doubt):
            return self._add(doubt[self.said_chars :])
        return self._add(doubt)

    def _add(self, new: str) -> str:
        if new:
            self._said.append(new)
            self.said_chars += len(new)
        return new


def _more(call: _OpenCall, arguments: str, extra_content: dict[str, Any] | None) -> list[ToolCallDelta]:
    assert call.place is not None  # noqa: S101 - only of calls that were introduced
    if not arguments and not extra_content:
        return []
    function = FunctionDelta(arguments=arguments) if arguments else None
    return [ToolCallDelta(call.place, function=function, extra_content=extra_content)]


def _text_of(arguments: str | dict[str, Any] | None) -> tuple[str, bool]:
    """(as text, whether it came as an object)"""
    if isinstance(arguments, dict):
        # An empty one says no more than an empty text, which some send before the arguments come.
        return msgspec.json.encode(arguments).decode() if arguments else "", True
    return arguments or "", False


def is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except NOT_JSON:
        return False
    return True
