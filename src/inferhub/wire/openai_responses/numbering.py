"""Input items as they are kept: each with an id and the fields that OpenAI's clients expect to read back.

Called by the gateway before it stores a request's input.
"""

from __future__ import annotations

from typing import Any

_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def numbered(given: str | list[dict[str, Any]], response_id: str) -> list[dict[str, Any]]:
    """What has an id already keeps it."""
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    seed = response_id.removeprefix("resp_")
    return [_whole(item, f"{seed}i{position}") for position, item in enumerate(items)]


def _whole(item: dict[str, Any], name: str) -> dict[str, Any]:
    kind = item.get("type") or "message"
    whole = {**item, "type": kind}
    if not isinstance(item.get("id"), str):
        whole["id"] = f"{_PREFIXES.get(kind, 'item')}_{name}"
    if kind == "message":
        whole["content"] = _content(item.get("content"), is_output=item.get("role") == "assistant")
        whole.setdefault("status", "completed")
    elif kind in ("function_call", "function_call_output"):
        whole["status"] = item.get("status") or "completed"
    elif kind == "reasoning":
        whole.setdefault("summary", [])
    return whole


def _content(content: Any, *, is_output: bool) -> Any:
    if isinstance(content, str):
        kind = "output_text" if is_output else "input_text"
        content = [{"type": kind, "text": content}]
    if not isinstance(content, list):
        return content
    return [_DEFAULTS.get(part["type"], {}) | part for part in content]


_DEFAULTS: dict[str, dict[str, Any]] = {
    "output_text": {"annotations": [], "logprobs": []},
    "input_image": {"detail": "auto"},
}
