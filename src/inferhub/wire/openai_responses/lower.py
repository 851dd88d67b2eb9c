"""A Responses request as a chat request: items become messages, flat tools nested ones.

Called by the dialect. What chat cannot say is not refused here but named in `Lowered.needs`: a backend that
speaks Responses itself gets the client's own body and honours it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from inferhub.core.errors import Invalid
from inferhub.modalities.chat import ChatRequest
from inferhub.modalities.schemas import check_json_schema
from inferhub.wire.openai_responses.conversation import Conversation
from inferhub.wire.openai_responses.items import read_as
from inferhub.wire.openai_responses.request import (
    AllowedToolsChoice,
    AnyJsonFormat,
    FunctionTool,
    JsonSchemaFormat,
    ResponsesRequest,
    TextConfig,
)

NATIVE = "responses_native"
"""The feature of a backend that speaks Responses itself."""

_VENDOR_TOOLS = frozenset(
    {
        "apply_patch",
        "code_interpreter",
        "computer",
        "computer_use_preview",
        "custom",
        "file_search",
        "image_generation",
        "local_shell",
        "mcp",
        "namespace",
        "programmatic_tool_calling",
        "shell",
        "tool_search",
        "web_search",
        "web_search_2025_08_26",
        "web_search_preview",
        "web_search_preview_2025_03_11",
    }
)
_SAME = (
    "stream",
    "temperature",
    "top_p",
    "parallel_tool_calls",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
)
"""Parameters that chat has under the same name and with the same meaning."""


@dataclass(frozen=True, slots=True)
class Lowered:
    request: ChatRequest
    body: bytes
    needs: Mapping[str, str]
    """Feature that the chat request does not show → the parameter that asks for it."""


def lower(request: ResponsesRequest) -> Lowered:
    """Raises `Invalid` with the path of what is wrong in the words of Responses."""
    needs: list[str] = []
    conversation = Conversation(request.instructions)
    conversation.read(request.input or [])
    needs += conversation.vendor_params
    tree: dict[str, Any] = {"model": request.model, "messages": conversation.messages}
    tree |= {name: value for name in _SAME if (value := getattr(request, name)) is not None}
    if request.max_output_tokens is not None:
        tree["max_completion_tokens"] = request.max_output_tokens
    if request.reasoning is not None and request.reasoning.effort is not None:
        tree["reasoning_effort"] = request.reasoning.effort
    if request.service_tier is not None:
        tree["service_tier"] = request.service_tier
    if request.text is not None:
        tree |= _text(request.text)
    tree |= _logprobs(request)
    tree |= _tools(request, needs)
    for name in ("context_management", "moderation"):
        if getattr(request, name) is not None:
            needs.append(name)
    if request.truncation == "auto":
        needs.append("truncation")
    try:
        chat = msgspec.convert(tree, ChatRequest)
    except msgspec.ValidationError as error:
        raise Invalid(f"The request cannot be asked of a chat model: {error}.") from error
    return Lowered(chat, msgspec.json.encode(tree), {NATIVE: needs[0]} if needs else {})


def _text(text: TextConfig) -> dict[str, Any]:
    tree: dict[str, Any] = {} if text.verbosity is None else {"verbosity": text.verbosity}
    if isinstance(text.format, AnyJsonFormat):
        tree["response_format"] = {"type": "json_object"}
    elif isinstance(text.format, JsonSchemaFormat):
        check_json_schema(text.format.schema, "text.format.schema")
        spec = msgspec.to_builtins(text.format)
        del spec["type"]
        tree["response_format"] = {
            "type": "json_schema",
            "json_schema": {name: value for name, value in spec.items() if value is not None},
        }
    return tree


def _logprobs(request: ResponsesRequest) -> dict[str, Any]:
    if not request.top_logprobs and "message.output_text.logprobs" not in (request.include or ()):
        return {}
    return {"logprobs": True, "top_logprobs": request.top_logprobs or 0}


def _tools(request: ResponsesRequest, needs: list[str]) -> dict[str, Any]:
    tools: list[dict[str, Any]] = []
    for position, tool in enumerate(request.tools or ()):
        where = f"tools[{position}]"
        kind = str(tool.get("type"))
        if kind == "function":
            function = read_as(tool, FunctionTool, where)
            check_json_schema(function.parameters or {}, f"{where}.parameters")
            spec = msgspec.to_builtins(function)
            tools.append(
                {"type": "function", "function": {name: v for name, v in spec.items() if v is not None}}
            )
        elif kind in _VENDOR_TOOLS:
            needs.append(where)
        else:
            raise Invalid(
                f"Invalid value for '{where}.type': {kind[:40]!r}. Supported values are: 'function', "
                f"and where the model's vendor runs tools: {', '.join(sorted(_VENDOR_TOOLS))}.",
                param=f"{where}.type",
            )
    names = [tool["function"]["name"] for tool in tools]
    tree: dict[str, Any] = {"tools": tools} if tools else {}
    choice = _tool_choice(request, names, needs)
    return tree if choice is None or not tools else {**tree, "tool_choice": choice}


def _tool_choice(request: ResponsesRequest, names: list[str], needs: list[str]) -> Any:
    choice = request.tool_choice
    if choice is None or isinstance(choice, str):
        if choice == "required" and not request.tools:
            raise Invalid("'tool_choice' needs 'tools'.", param="tool_choice")
        return choice
    kind = str(choice.get("type"))
    if kind == "function":
        _check_name(choice.get("name"), names, "tool_choice.name")
        return {"type": "function", "function": {"name": choice["name"]}}
    if kind == "allowed_tools":
        allowed = read_as(choice, AllowedToolsChoice, "tool_choice")
        if any(tool.get("type") != "function" for tool in allowed.tools):
            needs.append("tool_choice.tools")
            return None
        for position, tool in enumerate(allowed.tools):
            _check_name(tool.get("name"), names, f"tool_choice.tools[{position}].name")
        functions = [{"type": "function", "function": {"name": tool["name"]}} for tool in allowed.tools]
        return {"type": "allowed_tools", "allowed_tools": {"mode": allowed.mode, "tools": functions}}
    if kind in _VENDOR_TOOLS:
        needs.append("tool_choice")
        return None
    raise Invalid(
        f"Invalid value for 'tool_choice.type': {kind[:40]!r}. Supported values are: 'function', "
        "'allowed_tools'.",
        param="tool_choice.type",
    )


def _check_name(name: Any, names: list[str], param: str) -> None:
    if name not in names:
        raise Invalid(f"'{param}' is {str(name)[:64]!r}; 'tools' has {names}.", param=param)
