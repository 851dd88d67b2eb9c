"""Which pieces of an answer say something. Asked for every piece by the attempt and the meter, so no loops.

A piece that only names a role, or nothing at all, is a sign of life and no content: it ends no wait for the
first token, resets no limit, and is nobody's to pay for.
"""

from __future__ import annotations

from typing import Any

from inferhub.modalities.chat import ChatDelta
from inferhub.modalities.completion import CompletionDelta


def has_content(payload: Any) -> bool:
    """Whether it is a part of the answer, beside the reason why the answer ends."""
    kind = type(payload)
    if kind is ChatDelta:
        return bool(
            payload.content
            or payload.reasoning_content
            or payload.tool_calls
            or payload.refusal
            or payload.reasoning_details
            or payload.annotations
            or payload.logprobs
        )
    if kind is CompletionDelta:
        return bool(payload.text or payload.logprobs)
    return True


def finish_of(payload: Any) -> str | None:
    """Why its choice ends, where it is the last piece of one."""
    return getattr(payload, "finish_reason", None)
