"""What `POST /v1/responses` answers: the response object and its items, with every key of the document.

Made by `output` and `writer`. A field is left out only where the document does not allow null for it.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from inferhub.core.clock import unix_s
from inferhub.core.usage import Usage
from inferhub.modalities.base import Envelope, Problem
from inferhub.wire.openai_responses.request import ResponsesRequest

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class TextOut(msgspec.Struct, tag_field="type", tag="output_text"):
    text: str
    annotations: list[dict[str, Any]]
    logprobs: list[dict[str, Any]]


class RefusalOut(msgspec.Struct, tag_field="type", tag="refusal"):
    refusal: str


class SummaryPart(msgspec.Struct, tag_field="type", tag="summary_text"):
    text: str


class ThoughtPart(msgspec.Struct, tag_field="type", tag="reasoning_text"):
    text: str


class MessageOut(msgspec.Struct, tag_field="type", tag="message"):
    id: str
    status: Status
    content: list[TextOut | RefusalOut]
    role: Literal["assistant"] = "assistant"


class CallOut(msgspec.Struct, tag_field="type", tag="function_call"):
    id: str
    status: Status
    call_id: str
    name: str
    arguments: str
    extra_content: dict[str, Any] | UnsetType = UNSET
    """What a vendor wants back with the call; not OpenAI's, and only there where it matters."""


class ReasoningOut(msgspec.Struct, tag_field="type", tag="reasoning"):
    id: str
    status: Status
    summary: list[SummaryPart]
    content: list[ThoughtPart] | UnsetType = UNSET
    encrypted_content: str | None = None


OutputItem = MessageOut | CallOut | ReasoningOut


class InputDetails(msgspec.Struct):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseResource(msgspec.Struct, kw_only=True):
    """The answer, finished or not."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Status
    background: bool = False
    error: dict[str, Any] | None = None
    incomplete_details: dict[str, str] | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, str | None]
    service_tier: str
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    truncation: str
    usage: ResponseUsage | UnsetType = UNSET
    user: str | UnsetType = UNSET
    safety_identifier: str | None
    prompt_cache_key: str | None
    metadata: dict[str, str]


def begin(request: ResponsesRequest, envelope: Envelope) -> ResponseResource:
    """The response before anything was answered; what the client left out has OpenAI's defaults."""
    reasoning = request.reasoning
    return ResponseResource(
        id=envelope.id,
        created_at=envelope.created,
        status="in_progress",
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        max_tool_calls=request.max_tool_calls,
        model=envelope.model,
        output=[],
        parallel_tool_calls=request.parallel_tool_calls is not False,
        previous_response_id=request.previous_response_id,
        reasoning={
            "effort": reasoning.effort if reasoning else None,
            "summary": reasoning.wanted_summary if reasoning else None,
        },
        service_tier=request.service_tier or "auto",
        store=request.is_kept,
        temperature=1.0 if request.temperature is None else request.temperature,
        text=_text(request),
        tool_choice=request.tool_choice or "auto",
        tools=[_tool(tool) for tool in request.tools or ()],
        top_logprobs=request.top_logprobs or 0,
        top_p=1.0 if request.top_p is None else request.top_p,
        truncation=request.truncation or "disabled",
        user=request.user or UNSET,
        safety_identifier=request.safety_identifier,
        prompt_cache_key=request.prompt_cache_key,
        metadata=request.metadata or {},
    )


def finish(resource: ResponseResource, reason: str | None, usage: Usage) -> None:
    """`reason` is chat's `finish_reason`."""
    resource.usage = ResponseUsage(
        usage.input_tokens,
        InputDetails(usage.cached_tokens),
        usage.output_tokens,
        OutputDetails(usage.reasoning_tokens),
        usage.total_tokens,
    )
    why = _INCOMPLETE.get(reason or "")
    if why is None:
        resource.status, resource.completed_at = "completed", unix_s()
    else:
        resource.status, resource.incomplete_details = "incomplete", {"reason": why}


_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def error_of(problem: Problem) -> dict[str, Any]:
    """The `error` of a failed response; OpenAI knows few codes for it, and `type` says more."""
    is_rate = problem.code in ("rate_limit_exceeded", "upstream_rate_limited")
    code = "rate_limit_exceeded" if is_rate else "server_error"
    return {"code": code, "message": problem.message, "type": problem.type, "param": problem.param}


def _text(request: ResponsesRequest) -> dict[str, Any]:
    text = request.text
    return {
        "format": msgspec.to_builtins(text.format) if text and text.format else {"type": "text"},
        "verbosity": (text.verbosity if text else None) or "medium",
    }


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        return tool
    return {"description": None, "parameters": None, "strict": None, **tool}
