"""The pieces of a chat answer, as backends yield them and as they travel between processes."""

from __future__ import annotations

from typing import Any, Literal

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


class ReasoningDetail(msgspec.Struct, omit_defaults=True):
    """A thought in the form that OpenRouter made common: signed text, a summary, or sealed data."""

    type: Literal["reasoning.text", "reasoning.summary", "reasoning.encrypted"]
    text: str | None = None
    summary: str | None = None
    data: str | None = None
    signature: str | None = None
    id: str | None = None
    format: str | None = None
    """Who can read it again, for example `anthropic-claude-v1`."""
    index: int | None = None
    """Pieces of one thought share it."""


class ToolCallDelta(msgspec.Struct, omit_defaults=True):
    """First per index: `id`, `type`, `function.name` and arguments `""`; then argument pieces only."""

    index: int
    id: str | None = None
    type: str | None = None
    function: FunctionDelta | None = None
    extra_content: dict[str, Any] | None = None
    """What the vendor wants back with the call; see `ToolCall`."""


FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


class ChatDelta(msgspec.Struct, omit_defaults=True):
    """One piece of one choice. A backend sends exactly one with `finish_reason` per choice, last."""

    index: int = 0
    content: str | None = None
    reasoning_content: str | None = None
    """What may be shown of a thought."""
    reasoning_details: list[ReasoningDetail] | None = None
    """What has to go back to the vendor in the next turn: signatures and sealed thoughts."""
    refusal: str | None = None
    tool_calls: list[ToolCallDelta] | None = None
    logprobs: list[TokenLogprob] | None = None
    annotations: list[dict[str, Any]] | None = None
    """Citations, as OpenAI writes them."""
    finish_reason: FinishReason | None = None
    stop_sequence: str | None = None
    """Which of the request's `stop` ended the text, where the engine says so."""
