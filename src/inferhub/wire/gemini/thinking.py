"""How much a Gemini model is told to think: chat's `reasoning_effort` and `thinking` as a `thinkingConfig`.

Pure. Which of Google's two ways a model has follows from its name, unless its operator says it.
"""

from __future__ import annotations

from typing import Any, Literal

from inferhub.core.errors import Unsupported
from inferhub.modalities.chat import ChatRequest

Control = Literal["level", "budget", "none"]
"""Words from Gemini 3 on; tokens in 2.5; models before that, Gemma and tuned ones do not think on demand."""

_BUDGET_FAMILIES = ("gemini-2.5", "gemini-robotics-er-1")
_PLAIN_FAMILIES = ("gemini-1", "gemini-2", "gemini-embedding", "gemini-pro-vision")
_LEVELS = {"minimal": "MINIMAL", "low": "LOW", "medium": "MEDIUM", "high": "HIGH", "xhigh": "XHIGH"}
# What Google's own OpenAI-compatible address makes of the words for models with a budget.
_BUDGETS = {"minimal": 1024, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 24576}
_DYNAMIC = -1


def control_of(model: str) -> Control:
    """By the upstream's name of the model, with or without `models/`."""
    name = model.rpartition("/")[2].lower()
    if name.startswith(_BUDGET_FAMILIES):
        return "budget"
    if name.startswith("gemini-") and not name.startswith(_PLAIN_FAMILIES):
        return "level"
    return "none"


def thinking_config(request: ChatRequest, control: Control, model: str) -> dict[str, Any] | None:
    """None leaves the model to its own default. Raises `Unsupported` where a wish cannot be met."""
    thinking, effort = request.thinking, request.reasoning_effort
    if control == "none" or (thinking is None and effort is None):
        # What would need thought was refused before: such a model does not declare the feature.
        return None
    if thinking is not None and thinking.type == "disabled":
        return _off(control, "thinking")
    if effort == "none" and thinking is None:
        return _off(control, "reasoning_effort")
    config: dict[str, Any] = {"includeThoughts": thinking is None or thinking.display != "omitted"}
    if thinking is not None and thinking.budget_tokens is not None:
        # Also from Gemini 3 on, where it is kept for those who count; both at once are refused.
        config["thinkingBudget"] = thinking.budget_tokens
    elif effort is not None and effort != "none":
        config |= _effort(effort, control, model)
    elif control == "budget":
        config["thinkingBudget"] = _DYNAMIC
    return config


def _off(control: Control, param: str) -> dict[str, Any]:
    if control == "level":
        raise Unsupported(
            "This model cannot be told not to think; the least is 'reasoning_effort': 'minimal'.", param=param
        )
    # The Pro models refuse it by themselves, and say why.
    return {"thinkingBudget": 0}


def _effort(effort: str, control: Control, model: str) -> dict[str, Any]:
    if control == "budget":
        return {"thinkingBudget": _BUDGETS[effort]}
    if effort == "minimal" and "-pro" in model:
        # The Pro models have no such word; Google's own OpenAI-compatible address does the same.
        effort = "low"
    return {"thinkingLevel": _LEVELS[effort]}
