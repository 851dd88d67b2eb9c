"""The `usage` object of OpenAI-style answers, as upstreams and engines really send it."""

from __future__ import annotations

import msgspec

from inferhub.core.usage import Usage


class UpstreamPromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class UpstreamCompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class UpstreamUsage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: UpstreamPromptDetails | None = None
    completion_tokens_details: UpstreamCompletionDetails | None = None


def read_usage(usage: UpstreamUsage | None) -> Usage:
    """Absent counts become zero with `source="unknown"`: nobody may mistake them for a real zero."""
    if usage is None or usage.prompt_tokens is None:
        return Usage(source="unknown")
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    return Usage(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens or 0,
        cached_tokens=(prompt.cached_tokens or 0) if prompt else 0,
        reasoning_tokens=(completion.reasoning_tokens or 0) if completion else 0,
    )
