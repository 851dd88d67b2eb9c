"""Chat deltas as the events of a Responses stream, or all at once as one response object.

Used by the dialect. Every event has its name, its type and a number one higher than the one before it; the
stream ends with the terminal event, and nothing follows that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from inferhub.core.usage import Usage
from inferhub.modalities.base import Envelope, Problem
from inferhub.modalities.chat.deltas import ChatDelta
from inferhub.wire.foreign import NOT_JSON
from inferhub.wire.openai_responses.output import Output
from inferhub.wire.openai_responses.passed import Passed
from inferhub.wire.openai_responses.request import ResponsesRequest
from inferhub.wire.openai_responses.resource import ResponseResource, begin, error_of, finish

_encode = msgspec.json.Encoder().encode
# Quotes inside a text are escaped, so that neither of these is ever found in one.
_RESPONSE = b'"response"'


class ResponsesWriter:
    """A `StreamWriter`. `result` is what the stream came to, for whoever keeps it."""

    def __init__(self, request: ResponsesRequest, envelope: Envelope) -> None:
        self._resource = begin(request, envelope)
        self._number = -1
        reasoning = request.reasoning
        as_summary = bool(reasoning and reasoning.wanted_summary)
        seed = envelope.id.removeprefix("resp_")
        self._output = Output(f"{seed}_", self._event, as_summary=as_summary)
        self._reason: str | None = None
        self._is_open = False
        self._closing: bytes | None = None
        self._upstream = Passed()

    def delta(self, payload: ChatDelta) -> bytes:
        events = b"" if self._is_open else self._begin()
        if payload.index:
            # Responses has one answer; nobody can ask for a second.
            return events
        if payload.finish_reason:
            self._reason = payload.finish_reason
        return events + self._output.add(payload)

    def passed(self, raw: bytes) -> None:
        self._is_open = True
        self._upstream.add(raw)
        self._number = max(self._number, self._upstream.number)

    def finish(self, usage: Usage, *, is_stored: bool = True) -> bytes:
        """The response object as the stream's end will have it; `end` writes the same."""
        closing = b"" if self._is_open else self._begin()
        if self._closing is None:
            is_cut = self._reason in ("length", "content_filter")
            self._closing = closing + self._output.close("incomplete" if is_cut else "completed")
            self._resource.output = self._output.items
            finish(self._resource, self._reason, usage)
        self._resource.store = self._resource.store and is_stored
        return _encode(self._resource)

    def end(self, usage: Usage) -> bytes:
        if self._closing is None:
            self.finish(usage)
        name = "response.incomplete" if self._resource.status == "incomplete" else "response.completed"
        return (self._closing or b"") + self._event(name, response=self._resource)

    def failed(self, problem: Problem) -> bytes:
        """The response object of a stream that broke, as `fail` will write it."""
        return _encode(self._broken(problem))

    def fail(self, problem: Problem) -> bytes:
        events = b"" if self._is_open else self._begin()
        return events + self._event("response.failed", response=self._broken(problem))

    def _broken(self, problem: Problem) -> ResponseResource | dict[str, Any]:
        error = error_of(problem)
        forwarded = self._upstream.broken(error)
        if forwarded is not None:
            return forwarded
        self._resource.status = "failed"
        self._resource.error = error
        self._resource.output = self._output.snapshot()
        return self._resource

    def _begin(self) -> bytes:
        self._is_open = True
        opening = self._event("response.created", response=self._resource)
        return opening + self._event("response.in_progress", response=self._resource)

    def _event(self, kind: str, *, head: bytes = b"", **fields: Any) -> bytes:
        """`head` are fields that the caller encoded already, with the type among them."""
        self._number += 1
        body = head or _encode({"type": kind, **fields})[1:-1]
        return b'event: %b\ndata: {%b,"sequence_number":%d}\n\n' % (kind.encode(), body, self._number)


def fold(request: ResponsesRequest, envelope: Envelope, deltas: Sequence[ChatDelta], usage: Usage) -> bytes:
    writer = ResponsesWriter(request, envelope)
    for delta in deltas:
        writer.delta(delta)
    return writer.finish(usage)


def final_response(raw: bytes) -> bytes | None:
    """The response object in the last event of an upstream's stream; None where there is none."""
    for line in reversed(raw.splitlines()):
        if line.startswith(b"data:") and _RESPONSE in line:
            try:
                found = msgspec.json.decode(line[5:], type=_Terminal)
            except NOT_JSON:
                return None
            return bytes(found.response) if found.type in _TERMINAL else None
    return None


class _Terminal(msgspec.Struct):
    type: str
    response: msgspec.Raw


_TERMINAL = {"response.completed", "response.incomplete"}
