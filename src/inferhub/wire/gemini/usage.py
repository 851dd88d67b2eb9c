"""The `usageMetadata` of Gemini's answers."""

from __future__ import annotations

import msgspec

from inferhub.core.usage import Usage


class UsageMetadata(msgspec.Struct, rename="camel"):
    """Cumulative in a stream; figures that are zero are left out."""

    prompt_token_count: int | None = None
    """Includes what was cached."""
    cached_content_token_count: int | None = None
    candidates_token_count: int | None = None
    """Of all candidates, without their thoughts."""
    thoughts_token_count: int | None = None
    tool_use_prompt_token_count: int | None = None


def read_usage(metadata: UsageMetadata | None) -> Usage:
    """Absent counts become zero with `source="unknown"`: nobody may mistake them for a real zero."""
    if metadata is None or metadata.prompt_token_count is None:
        return Usage(source="unknown")
    thoughts = metadata.thoughts_token_count or 0
    return Usage(
        input_tokens=metadata.prompt_token_count + (metadata.tool_use_prompt_token_count or 0),
        output_tokens=(metadata.candidates_token_count or 0) + thoughts,
        cached_tokens=metadata.cached_content_token_count or 0,
        reasoning_tokens=thoughts,
    )
