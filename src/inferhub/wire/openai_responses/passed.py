"""Follows an upstream's own events on their way to the client: what is needed should the upstream break off.

Used by `writer` in the pass-through lane. Changes nothing, and passes over what it cannot read.
"""

from __future__ import annotations

from typing import Any

import msgspec

_ABSENT = msgspec.Raw()


class _Event(msgspec.Struct):
    type: str = ""
    sequence_number: int | None = None
    output_index: int = 0
    delta: Any = None
    item: msgspec.Raw = _ABSENT
    response: msgspec.Raw = _ABSENT


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)


class Passed:
    """`add` what is forwarded, whole events each time."""

    def __init__(self) -> None:
        self.number = -1
        """Of the last event."""
        self._response: dict[str, Any] | None = None
        self._items: dict[int, dict[str, Any]] = {}
        self._pieces: dict[int, list[str]] = {}
        """Of the items that are not done."""

    def add(self, raw: bytes) -> None:
        for block in raw.split(b"\n\n"):
            data = b"\n".join(line[5:] for line in block.split(b"\n") if line.startswith(b"data:"))
            if data:
                try:
                    self._follow(_decode_event(data))
                except _UNREADABLE:
                    continue

    def broken(self, error: Any) -> dict[str, Any] | None:
        """The upstream's response as failed, with what was said; None where it never introduced one."""
        if self._response is None:
            return None
        output = [self._so_far(place) for place in sorted(self._items)]
        return {**self._response, "status": "failed", "error": error, "output": output}

    def _follow(self, event: _Event) -> None:
        if event.sequence_number is not None:
            self.number = event.sequence_number
        place = event.output_index
        match event.type:
            case "response.output_text.delta" | "response.function_call_arguments.delta":
                if isinstance(event.delta, str) and place in self._pieces:
                    self._pieces[place].append(event.delta)
            case "response.output_item.added":
                self._items[place] = _decode_object(event.item)
                self._pieces[place] = []
            case "response.output_item.done":
                self._items[place] = _decode_object(event.item)
                self._pieces.pop(place, None)
            case _ if self._response is None and event.response:
                self._response = _decode_object(event.response)

    def _so_far(self, place: int) -> dict[str, Any]:
        item = self._items[place]
        if place not in self._pieces:
            return item
        item = {**item, "status": "incomplete"}
        text = "".join(self._pieces[place])
        if text and item.get("type") == "function_call":
            item["arguments"] = text
        elif text:
            item["content"] = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
        return item
