"""Continues an answer that broke off: what was delivered of it, and the call for the rest.

The attempt ring makes a `Delivered` for routes with `resume`. Only a single text can go on: no tool call, no
thought, no probabilities, nothing whose form must be whole. Never repeats a piece, and counts each once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from inferhub.core.call import Call, Finished
from inferhub.core.usage import Usage
from inferhub.modalities.chat import ChatDelta, ChatRequest, TextFormat
from inferhub.modalities.completion import CompletionDelta, CompletionRequest
from inferhub.modalities.tokens import with_field

PREFILL = "prefill"
"""The feature of endpoints that start from given text."""
_MAX_CHARACTERS = 1024 * 1024
_COMPLETION_TOKENS = 16
# What a completion gets where its client sets no limit.


class Delivered:
    """What the client has of one answer."""

    __slots__ = ("_before", "_characters", "_pieces", "is_text")

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._characters = 0
        self._before = 0
        """Pieces of earlier endpoints, once the call has gone on."""
        self.is_text = True
        """Whether it is nothing but the beginning of one text."""

    def take(self, payload: Any) -> None:
        text = _text_of(payload)
        self._characters += len(text or "")
        if text is None or self._characters > _MAX_CHARACTERS:
            self.is_text = False
        elif text and self.is_text:
            self._pieces.append(text)

    def rest_of(self, call: Call) -> Call | None:
        """The call for what is missing; None where the answer was as long as it may be."""
        self._before = done = len(self._pieces)
        text = "".join(self._pieces)
        request, body = call.request, call.body
        name, limit = _limit_of(request)
        if limit is not None:
            if limit <= done:
                return None
            request = msgspec.structs.replace(request, **{name: limit - done})
            body = with_field(body, name, limit - done)
        # The client's own bytes hold the old limit; whoever goes on reads the modality's.
        return replace(call, request=request, body=body, native=None, resume=text)

    def end(self, finished: Finished) -> Finished:
        """The end of the last part, as the end of the whole: the prompt counts once, every piece once."""
        usage, done = finished.usage, self._before
        if not done:
            return finished
        # Whoever went on read what was delivered as part of its prompt.
        prompt = max(usage.input_tokens - done, 0)
        whole = replace(
            usage,
            input_tokens=prompt,
            cached_tokens=min(usage.cached_tokens, prompt),
            output_tokens=usage.output_tokens + done,
            source="unknown" if usage.source == "unknown" else "estimated",
        )
        return Finished(whole, finished.cost_usd)

    def full(self, call: Call) -> tuple[ChatDelta | CompletionDelta, Finished]:
        """What ends an answer that has all the tokens it may have."""
        last = ChatDelta if isinstance(call.request, ChatRequest) else CompletionDelta
        usage = Usage(0, len(self._pieces), source="unknown")
        return last(finish_reason="length"), Finished(usage)


def may_resume(call: Call) -> bool:
    """Whether an answer to this request is one text that another endpoint could go on with."""
    request = call.request
    if call.native is not None and call.native.needs:
        return False
    if isinstance(request, ChatRequest):
        return (
            (request.n or 1) == 1
            and not request.logprobs
            and isinstance(request.response_format, TextFormat | None)
            and request.tool_choice in (None, "none", "auto")
            and not request.functions
            and request.audio is None
        )
    if isinstance(request, CompletionRequest):
        return (
            isinstance(request.prompt, str)
            and (request.n or 1) == 1
            and (request.best_of or 1) == 1
            and request.logprobs is None
            and not request.echo
            and not request.suffix
        )
    return False


def _text_of(payload: Any) -> str | None:
    """None where it is more than text, or the last of it."""
    if type(payload) is ChatDelta:
        if payload == ChatDelta(payload.index, payload.content):
            return payload.content or ""
    elif type(payload) is CompletionDelta and payload == CompletionDelta(payload.index, payload.text):
        return payload.text
    return None


def _limit_of(request: ChatRequest | CompletionRequest) -> tuple[str, int | None]:
    """The field that ends the answer, and what it says."""
    if isinstance(request, CompletionRequest):
        return "max_tokens", _COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
    if request.max_completion_tokens is not None:
        return "max_completion_tokens", request.max_completion_tokens
    return "max_tokens", request.max_tokens
