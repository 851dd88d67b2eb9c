"""Text completions: a raw prompt in, text out. The older sibling of chat, still used by many tools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from inferhub.core.errors import Invalid
from inferhub.core.usage import Usage
from inferhub.modalities.base import Envelope, Modality, Problem
from inferhub.modalities.tokens import (
    DEFAULT_OUTPUT_TOKENS,
    MAX_COUNT,
    ChunkFrame,
    Seed,
    StreamOptions,
    TextOrTokens,
    TokenUsage,
    input_tokens,
    split,
    token_usage,
    with_field,
)

_Penalty = Annotated[float, Meta(ge=-2, le=2)]


class CompletionRequest(msgspec.Struct, kw_only=True):
    """Body of `POST /v1/completions`."""

    model: str
    prompt: TextOrTokens = "<|endoftext|>"
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=0, le=MAX_COUNT)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: str | Annotated[list[str], Meta(max_length=4)] | None = None
    seed: Seed | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: Annotated[int, Meta(ge=0, le=20)] | None = None
    user: str | None = None

    @property
    def max_output_tokens(self) -> int | None:
        """As chat calls it."""
        return self.max_tokens


class CompletionLogprobs(msgspec.Struct):
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float]] | None = None
    text_offset: list[int] = []


class CompletionDelta(msgspec.Struct, omit_defaults=True):
    """One piece of one choice. A backend sends exactly one with `finish_reason` per choice, last."""

    index: int = 0
    text: str = ""
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length", "content_filter"] | None = None


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


class CompletionResponse(msgspec.Struct):
    """Answer of `POST /v1/completions` without `stream`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: TokenUsage


def prompts(request: CompletionRequest) -> list[str | list[int]]:
    return split(request.prompt, "prompt")


def _check(request: CompletionRequest) -> None:
    if request.prompt == [] or any(p == [] for p in prompts(request)):
        raise Invalid("'prompt' is empty.", param="prompt", code="empty_array")
    if request.stream_options is not None and not request.stream:
        raise Invalid("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    if request.best_of is not None and request.best_of < (request.n or 1):
        raise Invalid(f"'best_of' is {request.best_of}; it must be at least 'n'.", param="best_of")


def _requires(request: CompletionRequest) -> Mapping[str, str]:
    asked: dict[str, bool] = {
        "stream": bool(request.stream),
        "logprobs": request.logprobs is not None,
        "n": (request.n or 1) > 1,
        "many_prompts": len(prompts(request)) > 1,
        "token_prompts": not isinstance(prompts(request)[0], str),
        "seed": request.seed is not None,
        "logit_bias": bool(request.logit_bias),
        "echo": bool(request.echo),
        "suffix": bool(request.suffix),
        "best_of": (request.best_of or 1) > (request.n or 1),
    }
    param = {"many_prompts": "prompt", "token_prompts": "prompt"}
    return {feature: param.get(feature, feature) for feature, is_asked in asked.items() if is_asked}


def _prefix(request: CompletionRequest) -> Iterator[bytes]:
    """Of several prompts the first: they go to one endpoint together."""
    first = prompts(request)[0]
    yield first.encode("utf-8", "surrogatepass") if isinstance(first, str) else _encode(first)


def _estimate(request: CompletionRequest, _body_bytes: int) -> Usage:
    choices = max(request.n or 1, request.best_of or 1) * len(prompts(request))
    each = DEFAULT_OUTPUT_TOKENS if request.max_tokens is None else request.max_tokens
    prompt = input_tokens(request.prompt) + (input_tokens(request.suffix) if request.suffix else 0)
    return Usage(prompt, choices * each, source="estimated")


def _cap(request: CompletionRequest, body: bytes) -> tuple[CompletionRequest, bytes]:
    if request.max_tokens is not None:
        return request, body
    capped = msgspec.structs.replace(request, max_tokens=DEFAULT_OUTPUT_TOKENS)
    return capped, with_field(body, "max_tokens", DEFAULT_OUTPUT_TOKENS)


_encode = msgspec.json.Encoder().encode


class _Writer:
    def __init__(self, request: CompletionRequest, envelope: Envelope) -> None:
        self._frame = ChunkFrame("text_completion", envelope, request.stream_options)

    def delta(self, payload: CompletionDelta) -> bytes:
        return self._frame.event(
            CompletionChoice(payload.index, payload.text, payload.logprobs, payload.finish_reason)
        )

    def end(self, usage: Usage) -> bytes:
        return self._frame.end(usage)

    def passed(self, raw: bytes) -> None:
        """Every event stands for itself."""

    def fail(self, problem: Problem) -> bytes:
        return self._frame.fail(problem)


def _fold(
    request: CompletionRequest, envelope: Envelope, deltas: Sequence[CompletionDelta], usage: Usage
) -> bytes:
    by_choice: dict[int, list[CompletionDelta]] = {}
    for delta in deltas:
        by_choice.setdefault(delta.index, []).append(delta)
    return _encode(
        CompletionResponse(
            id=envelope.id,
            object="text_completion",
            created=envelope.created,
            model=envelope.model,
            choices=[_fold_choice(index, pieces) for index, pieces in sorted(by_choice.items())],
            usage=token_usage(usage),
        )
    )


def _fold_choice(index: int, pieces: Sequence[CompletionDelta]) -> CompletionChoice:
    merged: CompletionLogprobs | None = None
    for logprobs in (p.logprobs for p in pieces if p.logprobs):
        merged = merged or CompletionLogprobs(top_logprobs=None)
        merged.tokens = merged.tokens + logprobs.tokens
        merged.token_logprobs = merged.token_logprobs + logprobs.token_logprobs
        merged.text_offset = merged.text_offset + logprobs.text_offset
        if logprobs.top_logprobs is not None:
            merged.top_logprobs = (merged.top_logprobs or []) + logprobs.top_logprobs
    finish = next((p.finish_reason for p in pieces if p.finish_reason), "stop")
    return CompletionChoice(index, "".join(p.text for p in pieces), merged, finish)


MODALITY = Modality(
    name="completion",
    path="/v1/completions",
    summary="Continue a text",
    request=CompletionRequest,
    delta=CompletionDelta,
    response=CompletionResponse,
    check=_check,
    requires=_requires,
    estimate=_estimate,
    cap=_cap,
    fold=_fold,
    writer=_Writer,
    features=(
        "stream",
        "logprobs",
        "n",
        "many_prompts",
        "token_prompts",
        "seed",
        "logit_bias",
        "echo",
        "suffix",
        "best_of",
        "prefill",
    ),
    example={"prompt": "Once upon a time", "max_tokens": 16},
    prefix=_prefix,
)
