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
    total_tokens: int | None = None
    prompt_tokens_details: UpstreamPromptDetails | None = None
    completion_tokens_details: UpstreamCompletionDetails | None = None
    prompt_cache_hit_tokens: int | None = None
    """DeepSeek's name of `cached_tokens`."""


def read_usage(usage: UpstreamUsage | None) -> Usage:
    """Absent counts become zero with `source="unknown"`: nobody may mistake them for a real zero."""
    if usage is None or usage.prompt_tokens is None:
        return Usage(source="unknown")
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    cached = (prompt.cached_tokens if prompt else None) or usage.prompt_cache_hit_tokens or 0
    reasoning = (completion.reasoning_tokens or 0) if completion else 0
    output = usage.completion_tokens or 0
    if reasoning and usage.total_tokens == usage.prompt_tokens + output + reasoning:
        # xAI and others count thought beside the answer; OpenAI, and so we, as a part of it.
        output += reasoning
    return Usage(usage.prompt_tokens, output, cached_tokens=cached, reasoning_tokens=reasoning)


def adds_up(usage: UpstreamUsage) -> bool:
    """Whether its totals are what a client expects: prompt and completion, thought within the latter."""
    parts = (usage.prompt_tokens or 0) + (usage.completion_tokens or 0)
    return usage.total_tokens == parts and usage.prompt_tokens is not None
