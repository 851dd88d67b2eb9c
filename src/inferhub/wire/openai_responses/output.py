"""The output of one response while it grows: chat deltas in, output items and their events out.

Used by `writer` for every delta. Knows the order that OpenAI's clients rely on; numbers nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from inferhub.modalities.chat import join_details
from inferhub.modalities.chat.deltas import ChatDelta, ReasoningDetail, TokenLogprob, ToolCallDelta
from inferhub.wire.openai_responses.resource import (
    CallOut,
    MessageOut,
    OutputItem,
    ReasoningOut,
    RefusalOut,
    Status,
    SummaryPart,
    TextOut,
    ThoughtPart,
)
from inferhub.wire.openai_responses.thoughts import OWN_REASONING, pack

Event = Callable[..., bytes]
"""(type, **fields) → one encoded event."""

_encode = msgspec.json.Encoder().encode


class Output:
    """`items` holds what was said; each method returns the events that tell of it."""

    def __init__(self, seed: str, event: Event, *, as_summary: bool) -> None:
        self.items: list[OutputItem] = []
        self._seed = seed
        """Part of every item's id, so that none is like that of another response."""
        self._event = event
        self._as_summary = as_summary
        self._message: _OpenMessage | None = None
        self._thought: _OpenThought | None = None
        self._calls: dict[int, _OpenCall] = {}

    def add(self, delta: ChatDelta) -> bytes:
        events = b""
        if delta.reasoning_content or delta.reasoning_details:
            events += self._think(delta)
        if delta.content or delta.refusal or delta.annotations or delta.logprobs:
            events += self._say(delta)
        for call in delta.tool_calls or ():
            events += self._call_function(call)
        return events

    def close(self, status: Status = "completed") -> bytes:
        """End what is open; `status` is that of the last item, the one that a limit would have cut."""
        if not self.items:
            # An answer without a word is still an answer.
            events = self._open_message()
            events += self._text(ChatDelta(content=""))
        else:
            events = b""
        events += self._close_thought(status if self._is_last(self._thought) else "completed")
        events += self._close_message(status if self._is_last(self._message) else "completed")
        for call in self._calls.values():
            events += call.close(self._event, status if self._is_last(call) else "completed")
        self._calls.clear()
        return events

    def snapshot(self) -> list[OutputItem]:
        """What was said until now, unfinished things as such."""
        for open_one in (self._thought, self._message, *self._calls.values()):
            if open_one is not None:
                open_one.settle("incomplete")
        return self.items

    # --- thoughts ---

    def _think(self, delta: ChatDelta) -> bytes:
        events = self._close_message("completed")
        if self._thought is None:
            item = ReasoningOut(self._id(OWN_REASONING), "in_progress", [])
            self._thought = _OpenThought(item, self._append(item), as_summary=self._as_summary)
            events += self._added(item)
        return events + self._thought.add(delta, self._event)

    def _close_thought(self, status: Status) -> bytes:
        thought, self._thought = self._thought, None
        return thought.close(self._event, status) if thought else b""

    # --- words ---

    def _say(self, delta: ChatDelta) -> bytes:
        events = self._close_thought("completed")
        if self._message is None:
            events += self._open_message()
        return events + self._text(delta)

    def _text(self, delta: ChatDelta) -> bytes:
        assert self._message is not None  # noqa: S101 - the caller opened it
        return self._message.add(delta, self._event)

    def _open_message(self) -> bytes:
        item = MessageOut(self._id("msg_"), "in_progress", [])
        self._message = _OpenMessage(item, self._append(item))
        return self._added(item)

    def _close_message(self, status: Status) -> bytes:
        message, self._message = self._message, None
        return message.close(self._event, status) if message else b""

    # --- function calls ---

    def _call_function(self, delta: ToolCallDelta) -> bytes:
        function = delta.function
        events = b""
        call = self._calls.get(delta.index)
        if call is None:
            events = self._close_thought("completed") + self._close_message("completed")
            name = (function.name if function else None) or ""
            item = CallOut(self._id("fc_"), "in_progress", delta.id or self._id("call_"), name, "")
            # Calls stay open side by side: their pieces may come in any order.
            call = self._calls[delta.index] = _OpenCall(item, self._append(item))
            events += self._added(item)
        if delta.extra_content:
            call.item.extra_content = delta.extra_content
        if function and function.arguments:
            events += call.add(function.arguments, self._event)
        return events

    # --- items ---

    def _append(self, item: OutputItem) -> int:
        self.items.append(item)
        return len(self.items) - 1

    def _added(self, item: OutputItem) -> bytes:
        return self._event("response.output_item.added", output_index=len(self.items) - 1, item=item)

    def _id(self, prefix: str) -> str:
        return f"{prefix}{self._seed}{len(self.items)}"

    def _is_last(self, open_one: _OpenMessage | _OpenThought | _OpenCall | None) -> bool:
        return open_one is not None and open_one.place == len(self.items) - 1


class _OpenThought:
    def __init__(self, item: ReasoningOut, place: int, *, as_summary: bool) -> None:
        self.item = item
        self.place = place
        self._said: list[str] = []
        self._details: list[ReasoningDetail] = []
        self._kind = "reasoning_summary_text" if as_summary else "reasoning_text"
        self._where: dict[str, Any] = {"item_id": item.id, "output_index": place}
        self._where["summary_index" if as_summary else "content_index"] = 0
        self._part: type[SummaryPart] | type[ThoughtPart] = SummaryPart if as_summary else ThoughtPart

    def add(self, delta: ChatDelta, event: Event) -> bytes:
        self._details += delta.reasoning_details or ()
        if not delta.reasoning_content:
            return b""
        events = b"" if self._said else self._part_event("added", "", event)
        self._said.append(delta.reasoning_content)
        return events + event(f"response.{self._kind}.delta", **self._where, delta=delta.reasoning_content)

    def close(self, event: Event, status: Status) -> bytes:
        self.settle(status)
        events = b""
        if self._said:
            text = "".join(self._said)
            events = event(f"response.{self._kind}.done", **self._where, text=text)
            events += self._part_event("done", text, event)
        return events + event("response.output_item.done", output_index=self.place, item=self.item)

    def settle(self, status: Status) -> None:
        self.item.status = status
        if self._said and self._part is SummaryPart:
            self.item.summary = [SummaryPart("".join(self._said))]
        elif self._said:
            self.item.content = [ThoughtPart("".join(self._said))]
        self.item.encrypted_content = pack(_joined(self._details))

    def _part_event(self, what: str, text: str, event: Event) -> bytes:
        kind = "reasoning_summary_part" if self._part is SummaryPart else "content_part"
        return event(f"response.{kind}.{what}", **self._where, part=self._part(text))


class _OpenMessage:
    """Its parts come one after the other: a text, and perhaps a refusal."""

    def __init__(self, item: MessageOut, place: int) -> None:
        self.item = item
        self.place = place
        self._said: list[str] = []
        self._part: TextOut | RefusalOut | None = None
        self._where: dict[str, Any] = {}
        self._head = b""
        """The unchanging beginning of a text delta, encoded once: there is one for every token."""

    def add(self, delta: ChatDelta, event: Event) -> bytes:
        events = b""
        if delta.content is not None or delta.annotations or delta.logprobs:
            events += self._switch(TextOut, event)
            events += self._add_text(delta, event)
        if delta.refusal:
            events += self._switch(RefusalOut, event)
            self._said.append(delta.refusal)
            events += event("response.refusal.delta", **self._where, delta=delta.refusal)
        return events

    def _add_text(self, delta: ChatDelta, event: Event) -> bytes:
        part = self._part
        assert isinstance(part, TextOut)  # noqa: S101 - switched to just now
        events = b""
        logprobs = [_logprob(token) for token in delta.logprobs or ()]
        part.logprobs += logprobs
        if delta.content or logprobs:
            text = delta.content or ""
            self._said.append(text)
            events = event(
                "response.output_text.delta",
                head=self._head + _encode(text) + b',"logprobs":' + _encode(logprobs),
            )
        for annotation in map(flat_annotation, delta.annotations or ()):
            part.annotations.append(annotation)
            events += event(
                "response.output_text.annotation.added",
                **self._where,
                annotation_index=len(part.annotations) - 1,
                annotation=annotation,
            )
        return events

    def _switch(self, kind: type[TextOut] | type[RefusalOut], event: Event) -> bytes:
        if isinstance(self._part, kind):
            return b""
        events = self._close_part(event)
        self._part = TextOut("", [], []) if kind is TextOut else RefusalOut("")
        self.item.content.append(self._part)
        self._where = {
            "item_id": self.item.id,
            "output_index": self.place,
            "content_index": len(self.item.content) - 1,
        }
        self._head = b'"type":"response.output_text.delta",' + _encode(self._where)[1:-1] + b',"delta":'
        return events + event("response.content_part.added", **self._where, part=self._part)

    def _close_part(self, event: Event) -> bytes:
        part = self._part
        if part is None:
            return b""
        self._fill()
        if isinstance(part, TextOut):
            events = event("response.output_text.done", **self._where, text=part.text, logprobs=part.logprobs)
        else:
            events = event("response.refusal.done", **self._where, refusal=part.refusal)
        self._said = []
        return events + event("response.content_part.done", **self._where, part=part)

    def close(self, event: Event, status: Status) -> bytes:
        events = self._close_part(event)
        self._part = None
        self.item.status = status
        return events + event("response.output_item.done", output_index=self.place, item=self.item)

    def settle(self, status: Status) -> None:
        self._fill()
        self.item.status = status

    def _fill(self) -> None:
        if isinstance(self._part, TextOut):
            self._part.text = "".join(self._said)
        elif self._part is not None:
            self._part.refusal = "".join(self._said)


class _OpenCall:
    def __init__(self, item: CallOut, place: int) -> None:
        self.item = item
        self.place = place
        self._said: list[str] = []
        self._where = {"item_id": item.id, "output_index": place}

    def add(self, arguments: str, event: Event) -> bytes:
        self._said.append(arguments)
        return event("response.function_call_arguments.delta", **self._where, delta=arguments)

    def close(self, event: Event, status: Status) -> bytes:
        self.settle(status)
        if status == "completed":
            self.item.arguments = self.item.arguments or "{}"
        events = event(
            "response.function_call_arguments.done",
            **self._where,
            name=self.item.name,
            arguments=self.item.arguments,
        )
        return events + event("response.output_item.done", output_index=self.place, item=self.item)

    def settle(self, status: Status) -> None:
        self.item.status = status
        self.item.arguments = "".join(self._said)


def flat_annotation(annotation: dict[str, Any]) -> dict[str, Any]:
    """A citation of chat, whose fields are under the name of its type, as Responses writes it."""
    kind = annotation.get("type")
    inner = annotation.get(kind) if isinstance(kind, str) else None
    return {"type": kind, **inner} if isinstance(inner, dict) else annotation


def _joined(details: list[ReasoningDetail]) -> list[ReasoningDetail]:
    return join_details([ChatDelta(reasoning_details=details)])


def _logprob(token: TokenLogprob) -> dict[str, Any]:
    return {
        "token": token.token,
        "logprob": token.logprob,
        "bytes": _bytes(token.token, token.bytes),
        "top_logprobs": [
            {"token": top.token, "logprob": top.logprob, "bytes": _bytes(top.token, top.bytes)}
            for top in token.top_logprobs
        ],
    }


def _bytes(token: str, given: list[int] | None) -> list[int]:
    return list(token.encode("utf-8", "surrogatepass")) if given is None else given
