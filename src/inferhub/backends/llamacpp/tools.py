"""Tool calls: which tools the model sees, when it has to call one, and reading the call it wrote.

Left to itself (`auto`) a model calls in its template's own form, which the engine reads. A forced call
(`required`, or a named tool) is generated as JSON of one fixed shape instead, because the engine's own
`required` lets the model talk for as long as it likes first. Called by `chat`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inferhub.core.clock import new_id
from inferhub.modalities.chat import (
    AllowedTools,
    ChatDelta,
    ChatRequest,
    FunctionDelta,
    NamedTool,
    Tool,
    ToolCallDelta,
)


def with_tools(template: str) -> str | None:
    """The model's template made able to show tools; None when it is already."""
    if "tools" in template:
        return None
    return Path(__file__).with_name("tools.jinja").read_text() + template


def offered(request: ChatRequest) -> tuple[list[Tool], bool]:
    """The tools that the model may call now, and whether it must call one of them."""
    tools, choice = list(request.tools or ()), request.tool_choice
    match choice:
        case "none":
            return [], False
        case AllowedTools(allowed_tools=allowed):
            names = {str(tool.get("function", {}).get("name")) for tool in allowed.tools}
            return [tool for tool in tools if tool.function.name in names], allowed.mode == "required"
        case NamedTool(function=function):
            return [tool for tool in tools if tool.function.name == function.name], True
    return tools, choice == "required"


def as_json(tool: Tool) -> Mapping[str, Any]:
    """The engine refuses nulls, and its templates want parameters."""
    function: dict[str, Any] = {"name": tool.function.name, "parameters": parameters_of(tool)}
    if tool.function.description is not None:
        function["description"] = tool.function.description
    return {"type": "function", "function": function}


def parameters_of(tool: Tool) -> dict[str, Any]:
    return tool.function.parameters or {"type": "object", "properties": {}}


def call_schema(tools: Sequence[Tool]) -> dict[str, Any]:
    """The JSON of one call to any of the tools; `CallReader` relies on the order of its fields."""
    return {
        "anyOf": [
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool.function.name},
                    "arguments": parameters_of(tool),
                },
                "required": ["name", "arguments"],
            }
            for tool in tools
        ]
    }


_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"]*)"\s*,\s*"arguments"\s*:\s*')
_TAIL = re.compile(r"\s*\}?\s*\Z")


class CallReader:
    """Turns the text of a forced call, as it arrives, into the deltas of a tool call."""

    def __init__(self) -> None:
        self._pending = ""
        self._is_open = False

    def read(self, text: str) -> list[ChatDelta]:
        self._pending += text
        deltas: list[ChatDelta] = []
        if not self._is_open:
            head = _HEAD.match(self._pending)
            if head is None:
                return []
            self._is_open = True
            self._pending = self._pending[head.end() :]
            deltas.append(_delta(ToolCallDelta(0, new_id("call"), "function", FunctionDelta(head[1], ""))))
        # The last brace closes the call itself, so one is always held back.
        tail = _TAIL.search(self._pending)
        ready = tail.start() if tail else len(self._pending)
        return deltas + self._arguments(ready)

    def end(self, reason: str) -> list[ChatDelta]:
        """What is left to say once the engine has finished with `reason`."""
        if not self._is_open or reason == "length":
            cut = self._arguments(len(self._pending)) if self._is_open else []
            return [*cut, ChatDelta(finish_reason="length")]
        return [ChatDelta(finish_reason="tool_calls")]

    def _arguments(self, size: int) -> list[ChatDelta]:
        piece, self._pending = self._pending[:size], self._pending[size:]
        return [_delta(ToolCallDelta(0, function=FunctionDelta(arguments=piece)))] if piece else []


def _delta(call: ToolCallDelta) -> ChatDelta:
    return ChatDelta(tool_calls=[call])
