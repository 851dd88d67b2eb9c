"""A chat request lifted to Gemini's `GenerateContentRequest`.

The gemini backend calls it for generating and for counting. Pure; what the format cannot say and no feature
covers is refused by name (`Unsupported`), never dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inferhub.core.errors import Invalid, Unsupported
from inferhub.modalities.chat import (
    AllowedTools,
    ChatRequest,
    ImagePart,
    JsonFormat,
    NamedTool,
    SchemaFormat,
    Tool,
)
from inferhub.wire.gemini.contents import Json, lift_messages
from inferhub.wire.gemini.thinking import Control, thinking_config

MAX_CANDIDATES = 8
_INT32 = range(-(2**31), 2**31)


@dataclass(frozen=True, slots=True)
class Target:
    """What a request is lifted for."""

    model: str
    """As the upstream calls it."""
    thinking: Control
    safety: Mapping[str, str] = field(default_factory=dict)
    """Category → threshold."""


def lift(request: ChatRequest, target: Target) -> Json:
    """The body of `generateContent` and `streamGenerateContent`."""
    # From Gemini 3 on, calls without a signature are refused.
    system, contents = lift_messages(request.messages, needs_signatures=target.thinking == "level")
    lifted: Json = {"contents": contents}
    if system:
        lifted["systemInstruction"] = {"parts": system}
    lifted |= _tools(request)
    config = _generation(request, target)
    if config:
        lifted["generationConfig"] = config
    if target.safety:
        lifted["safetySettings"] = [
            {"category": category, "threshold": threshold} for category, threshold in target.safety.items()
        ]
    return lifted


def lift_count(request: ChatRequest, target: Target) -> Json:
    """The body of `countTokens`: instructions and tools are counted too, hence not `contents` alone."""
    system, contents = lift_messages(request.messages, needs_signatures=target.thinking == "level")
    counted: Json = {"model": target.model, "contents": contents}
    if system:
        counted["systemInstruction"] = {"parts": system}
    return {"generateContentRequest": counted | _tools(request)}


def _generation(request: ChatRequest, target: Target) -> Json:
    _check_ranges(request)
    config: Json = {
        "maxOutputTokens": request.max_output_tokens,
        "temperature": request.temperature,
        "topP": request.top_p,
        "topK": request.top_k,
        "seed": request.seed,
        "presencePenalty": request.presence_penalty,
        "frequencyPenalty": request.frequency_penalty,
        "candidateCount": request.n if (request.n or 1) > 1 else None,
        "stopSequences": [request.stop] if isinstance(request.stop, str) else request.stop or None,
        "responseLogprobs": request.logprobs or None,
        "logprobs": request.top_logprobs or None,
        "mediaResolution": _resolution(request),
        "thinkingConfig": thinking_config(request, target.thinking, target.model),
        **_format(request),
    }
    return {name: value for name, value in config.items() if value is not None}


def _check_ranges(request: ChatRequest) -> None:
    if (request.n or 1) > MAX_CANDIDATES:
        raise Unsupported(f"This model answers at most {MAX_CANDIDATES} times ('n').", param="n")
    if request.seed is not None and request.seed not in _INT32:
        raise Unsupported("This model takes a 'seed' of 32 bits only.", param="seed")


def _format(request: ChatRequest) -> Json:
    match request.response_format:
        case JsonFormat():
            return {"responseMimeType": "application/json"}
        case SchemaFormat(json_schema=spec):
            return {"responseMimeType": "application/json", "responseJsonSchema": spec.schema}
    return {}


def _resolution(request: ChatRequest) -> str | None:
    """One for the whole request: the finest that any picture asks for."""
    asked = {
        part.image_url.detail
        for message in request.messages
        if isinstance(message.content, list)
        for part in message.content
        if isinstance(part, ImagePart)
    }
    if "high" in asked:
        return "MEDIA_RESOLUTION_HIGH"
    return "MEDIA_RESOLUTION_LOW" if asked == {"low"} else None


# --- tools -------------------------------------------------------------------------------------


def _tools(request: ChatRequest) -> Json:
    if not request.tools:
        return {}
    if request.parallel_tool_calls is False:
        raise Unsupported(
            "This model cannot be kept from calling several tools at once.", param="parallel_tool_calls"
        )
    lifted: Json = {"tools": [{"functionDeclarations": [_declaration(tool) for tool in request.tools]}]}
    calling = _calling(request, request.tools)
    if calling:
        lifted["toolConfig"] = {"functionCallingConfig": calling}
    return lifted


def _declaration(tool: Tool) -> Json:
    function = tool.function
    declaration: Json = {"name": function.name}
    if function.description:
        declaration["description"] = function.description
    if function.parameters:
        declaration["parametersJsonSchema"] = function.parameters
    return declaration


def _calling(request: ChatRequest, tools: Sequence[Tool]) -> Json | None:
    match request.tool_choice:
        case "none":
            return {"mode": "NONE"}
        case "required":
            return {"mode": "ANY"}
        case NamedTool(function=function):
            return {"mode": "ANY", "allowedFunctionNames": [function.name]}
        case AllowedTools(allowed_tools=allowed):
            # VALIDATED is the AUTO that takes a list of names.
            mode = "ANY" if allowed.mode == "required" else "VALIDATED"
            return {"mode": mode, "allowedFunctionNames": _names(allowed.tools, tools)}
    if any(tool.function.strict for tool in tools):
        return {"mode": "VALIDATED"}
    return {"mode": "AUTO"} if request.tool_choice == "auto" else None


def _names(allowed: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> list[str]:
    known = {tool.function.name for tool in tools}
    names: list[str] = []
    for position, tool in enumerate(allowed):
        function = tool.get("function")
        name = function.get("name") if isinstance(function, Mapping) else tool.get("name")
        if name not in known:
            where = f"tool_choice.allowed_tools.tools[{position}]"
            raise Invalid(f"'{where}' names {name!r}, which is not in 'tools'.", param=where)
        names.append(str(name))
    return names
