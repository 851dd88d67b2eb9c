"""The pieces of a chat answer, as backends yield them and as they travel between processes."""

from __future__ import annotations

from typing import Literal

import msgspec


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[TopLogprob] = []


class FunctionDelta(msgspec.Struct, omit_defaults=True):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(msgspec.Struct, omit_defaults=True):
    """First per index: `id`, `type`, `function.name` and arguments `""`; then argument pieces only."""

    index: int
    id: str | None = None
    type: str | None = None
    function: FunctionDelta | None = None


FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


class ChatDelta(msgspec.Struct, omit_defaults=True):
    """One piece of one choice. A backend sends exactly one with `finish_reason` per choice, last."""

    index: int = 0
    content: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallDelta] | None = None
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
