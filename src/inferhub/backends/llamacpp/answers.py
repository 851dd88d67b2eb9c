"""What `chat` and `completion` have in common: an answer is a list of engine requests and their readers.

`backend.run` starts the requests, gives each event to the answer and yields the deltas it gets back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from inferhub.backends.llamacpp.engine import Request
from inferhub.core.errors import Invalid, Unsupported
from inferhub.core.usage import Usage
from inferhub.modalities.chat import ChatRequest, TextFormat
from inferhub.modalities.completion import CompletionRequest, prompts

MAX_CHOICES = 128
"""Prompts times `n`, as many as OpenAI allows for `n`."""

_UINT32 = 2**32
# This seed means "random" to the engine.
_RANDOM_SEED = _UINT32 - 1


class Answer(Protocol):
    """One call's answer in the making."""

    requests: list[Request]

    def read(self, index: int, data: bytes) -> Sequence[Any]:
        """The deltas in one event of request `index`. Raises the error that the event reports."""

    def end(self, index: int) -> None:
        """Request `index` is over. Raises `UpstreamFailed` when it had not finished."""

    def usage(self) -> Usage: ...


def check_resumable(request: ChatRequest | CompletionRequest) -> None:
    """Raises `Unsupported` for several answers, and for one that is held to a form from its beginning.

    A resumed answer goes on with the token that would have come, but for rounding: where two tokens are
    nearly equally likely, a text that is read at once may lead to the other one.
    """
    if (request.n or 1) > 1:
        raise Unsupported("Only a single answer can be resumed, and 'n' asks for several.", param="n")
    if isinstance(request, CompletionRequest):
        if len(prompts(request)) > 1:
            raise Unsupported("Only the answer to a single prompt can be resumed.", param="prompt")
    elif not isinstance(request.response_format, TextFormat | None):
        raise Unsupported(
            "This engine cannot resume an answer that is held to a format.", param="response_format"
        )
    elif request.tools and request.tool_choice not in (None, "auto", "none"):
        raise Unsupported("This engine cannot resume an answer that must be a tool call.", param="tools")


def sampling(request: Any, position: int, vocabulary: int) -> dict[str, Any]:
    """The parameters that both request types share, for the answer at `position`; nothing else gets in."""
    body: dict[str, Any] = {
        # Always streamed, and with progress: the engine listens to a cancel only between events.
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,
    }
    for name in ("temperature", "top_p", "stop", "presence_penalty", "frequency_penalty"):
        if getattr(request, name) is not None:
            body[name] = getattr(request, name)
    if request.seed is not None:
        seed = (request.seed + position) % _UINT32
        body["seed"] = seed if seed != _RANDOM_SEED else 0
        # A reused prompt is computed in other batches and rounds differently: not repeatable.
        body["cache_prompt"] = False
    if request.logit_bias:
        body["logit_bias"] = _logit_bias(request.logit_bias, vocabulary)
    return body


def _logit_bias(given: Mapping[str, float], vocabulary: int) -> list[tuple[int, float]]:
    biases = []
    for token, bias in given.items():
        if not (token.isascii() and token.isdigit() and int(token) < vocabulary):
            raise Invalid(
                f"'logit_bias' names the token {token!r}; tokens are the numbers 0 to {vocabulary - 1}.",
                param="logit_bias",
            )
        biases.append((int(token), bias))
    return biases


def total(usages: Mapping[int, Usage], choices_per_prompt: int) -> Usage:
    """A prompt counts once however many answers it got; every answer counts."""
    prompts = [usage for index, usage in usages.items() if index % choices_per_prompt == 0]
    return Usage(
        input_tokens=sum(usage.input_tokens for usage in prompts),
        output_tokens=sum(usage.output_tokens for usage in usages.values()),
        cached_tokens=sum(usage.cached_tokens for usage in prompts),
        source="reported" if all(u.source == "reported" for u in usages.values()) else "unknown",
    )
