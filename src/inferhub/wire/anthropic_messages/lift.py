"""From a chat request to a Messages request: what the `anthropic` backend sends. Pure.

What Anthropic has no words for is refused with the chat parameter's name; capabilities have already kept
away what it never has (several choices, probabilities, seeds).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from inferhub.core.errors import Unsupported
from inferhub.modalities.chat import (
    AllowedTools,
    ChatRequest,
    NamedTool,
    SchemaFormat,
    Thinking,
)
from inferhub.wire.anthropic_messages.lift_turns import Tree, lift_turns, marked

MIN_BUDGET_TOKENS = 1024
_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16384, "xhigh": 32768}
_EFFORTS = {"minimal": "low"}
_TIERS = {"auto": "auto", "default": "standard_only"}


@dataclass(frozen=True, slots=True)
class Rules:
    """What differs between Anthropic's models."""

    model: str
    """What the upstream calls it."""
    max_tokens: int
    """Of the answer, where the client sets no limit: Anthropic wants one in every request."""
    reasoning: Literal["effort", "budget"] = "effort"
    """How a `reasoning_effort` is said: as an effort (since Claude Opus 4.6) or as a budget (before)."""


def lift(request: ChatRequest, rules: Rules, resume: str = "") -> Tree:
    """The body of a Messages request. Raises `Unsupported` or `Invalid` naming chat's parameter."""
    tree = lift_prompt(request, rules)
    tree["max_tokens"] = request.max_output_tokens or rules.max_tokens
    _reason(request, rules, tree)
    _sample(request, tree)
    if request.stream:
        tree["stream"] = True
    user = request.user or request.safety_identifier
    if user:
        tree["metadata"] = {"user_id": user}
    if request.service_tier:
        tree["service_tier"] = _TIERS[request.service_tier]
    if resume:
        tree["messages"].append({"role": "assistant", "content": resume.rstrip()})
    return tree


def lift_prompt(request: ChatRequest, rules: Rules) -> Tree:
    """What of it is part of the prompt: the body of `count_tokens`."""
    turns = lift_turns(request.messages)
    tree: Tree = {"model": rules.model, "messages": turns.messages}
    if turns.system:
        tree["system"] = turns.system
    _arm(request, tree)
    if isinstance(request.response_format, SchemaFormat):
        schema = request.response_format.json_schema.schema or {"type": "object"}
        tree["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
    return tree


# --- tools ------------------------------------------------------------------------------------


def _arm(request: ChatRequest, tree: Tree) -> None:
    tools = list(_tools(request))
    if not tools:
        return
    tree["tools"] = tools
    choice: Tree = {"type": "auto"}
    match request.tool_choice:
        case "none":
            choice = {"type": "none"}
        case "required":
            choice = {"type": "any"}
        case NamedTool(function=function):
            choice = {"type": "tool", "name": function.name}
        case AllowedTools(allowed_tools=allowed) if allowed.mode == "required":
            choice = {"type": "any"}
    if request.parallel_tool_calls is False and choice["type"] != "none":
        choice["disable_parallel_tool_use"] = True
    if request.tool_choice is not None or len(choice) > 1:
        tree["tool_choice"] = choice


def _tools(request: ChatRequest) -> Iterator[Tree]:
    """Anthropic cannot be told to use only some of the tools: it is shown only those."""
    choice = request.tool_choice
    allowed = _names(choice.allowed_tools.tools) if isinstance(choice, AllowedTools) else None
    for tool in request.tools or ():
        function = tool.function
        if allowed is not None and function.name not in allowed:
            continue
        schema = function.parameters or {"type": "object", "properties": {}}
        lifted: Tree = {"name": function.name, "input_schema": schema}
        if function.description is not None:
            lifted["description"] = function.description
        if function.strict is not None:
            lifted["strict"] = function.strict
        yield marked(lifted, tool.cache_control)


def _names(tools: Sequence[dict[str, Any]]) -> set[Any]:
    return {tool.get("function", {}).get("name") for tool in tools}


# --- how to answer ----------------------------------------------------------------------------


def _reason(request: ChatRequest, rules: Rules, tree: Tree) -> None:
    effort, thinking = request.reasoning_effort, request.thinking
    if thinking is not None:
        tree["thinking"] = _thinking(thinking, request, rules, tree)
    elif effort == "none":
        tree["thinking"] = {"type": "disabled"}
    elif effort is not None:
        if rules.reasoning == "budget":
            tree["thinking"] = {"type": "enabled", "budget_tokens": _budget(effort, request, rules, tree)}
            return
        tree["thinking"] = {"type": "adaptive"}
    if effort not in (None, "none") and rules.reasoning == "effort":
        tree.setdefault("output_config", {})["effort"] = _EFFORTS.get(str(effort), effort)


def _thinking(thinking: Thinking, request: ChatRequest, rules: Rules, tree: Tree) -> Tree:
    lifted: Tree = {"type": thinking.type}
    if thinking.type == "enabled":
        budget = thinking.budget_tokens or MIN_BUDGET_TOKENS
        lifted["budget_tokens"] = budget
        if request.max_output_tokens is None:
            tree["max_tokens"] = rules.max_tokens + budget
    if thinking.display is not None and thinking.type != "disabled":
        lifted["display"] = thinking.display
    return lifted


def _budget(effort: str, request: ChatRequest, rules: Rules, tree: Tree) -> int:
    """The budget is a part of the answer's limit, which has to stay larger."""
    limit, budget = request.max_output_tokens, _BUDGETS[effort]
    if limit is None:
        tree["max_tokens"] = rules.max_tokens + budget
        return budget
    if limit <= MIN_BUDGET_TOKENS:
        raise Unsupported(
            f"'reasoning_effort' needs a limit of more than {MIN_BUDGET_TOKENS} tokens here; it is {limit}.",
            param="reasoning_effort",
        )
    return max(min(budget, limit // 2), MIN_BUDGET_TOKENS)


def _sample(request: ChatRequest, tree: Tree) -> None:
    if (request.temperature or 0) > 1:
        raise Unsupported(
            f"'temperature' is {request.temperature:g}; this model takes 0 to 1.", param="temperature"
        )
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(request, name):
            raise Unsupported(f"This model has no '{name}'.", param=name)
    if request.stop:
        tree["stop_sequences"] = [request.stop] if isinstance(request.stop, str) else request.stop
    for name in ("temperature", "top_p", "top_k"):
        value = getattr(request, name)
        if value is not None:
            tree[name] = value
