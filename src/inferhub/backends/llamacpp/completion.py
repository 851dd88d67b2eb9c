"""Text completion: our request to the engine's JSON, its chunks to our deltas. Called by `backend`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from inferhub.backends.llamacpp.answers import MAX_CHOICES, sampling, total
from inferhub.backends.llamacpp.engine import Request, failure_of
from inferhub.core.errors import Invalid, UpstreamFailed
from inferhub.core.usage import Usage
from inferhub.modalities.chat import TokenLogprob
from inferhub.modalities.completion import CompletionDelta, CompletionLogprobs, CompletionRequest, prompts
from inferhub.wire.openai_usage import UpstreamUsage, read_usage

FEATURES = frozenset({
    "stream", "logprobs", "n", "many_prompts", "token_prompts", "seed", "logit_bias", "prefill",
})  # fmt: skip

_DEFAULT_MAX_TOKENS = 16
"""OpenAI's; the engine's own default is to go on for ever."""


class _Logprobs(msgspec.Struct):
    """The engine writes chat's shape here too."""

    content: list[TokenLogprob] = []


class _Choice(msgspec.Struct):
    text: str = ""
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: UpstreamUsage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


class CompletionAnswer:
    """Prompts × `n` answers, each an engine request of its own; choice = prompt * n + answer."""

    def __init__(self, request: CompletionRequest, vocabulary: int, resume: str = "") -> None:
        """`resume` is what the only prompt's only answer has said already."""
        self._per_prompt = request.n or 1
        given = prompts(request)
        if len(given) * self._per_prompt > MAX_CHOICES:
            raise Invalid(
                f"'prompt' has {len(given)} prompts and 'n' is {self._per_prompt}; "
                f"at most {MAX_CHOICES} answers are made in one call.",
                param="prompt",
            )
        self.requests: list[Request] = []
        for position, prompt in enumerate(given):
            where = f"prompt[{position}]" if len(given) > 1 else "prompt"
            _check_tokens(prompt, where, vocabulary)
            for _ in range(self._per_prompt):
                body = sampling(request, len(self.requests), vocabulary) | _own(request)
                encoded = msgspec.json.encode({"prompt": _continued(prompt, resume), **body})
                self.requests.append(Request("completion", encoded, where))
        self._is_silent = request.max_tokens == 0
        self._top_logprobs = request.logprobs
        self._offsets = [0] * len(self.requests)
        self._finished: set[int] = set()
        self._usages: dict[int, Usage] = {}

    def read(self, index: int, data: bytes) -> Sequence[CompletionDelta]:
        try:
            chunk = _decode(data)
        except msgspec.DecodeError as error:
            raise UpstreamFailed("The engine sent an event that is not a text completion.") from error
        if chunk.error is not None:
            raise failure_of(chunk.error, self.requests[index])
        if chunk.usage is not None:
            self._usages[index] = read_usage(chunk.usage)
        return [delta for choice in chunk.choices for delta in self._read_choice(index, choice)]

    def end(self, index: int) -> None:
        if index not in self._finished:
            raise UpstreamFailed("The engine's answer ended before it was finished.")

    def usage(self) -> Usage:
        usage = total(self._usages, self._per_prompt)
        return Usage(usage.input_tokens, 0, usage.cached_tokens) if self._is_silent else usage

    def _read_choice(self, index: int, choice: _Choice) -> list[CompletionDelta]:
        deltas = []
        if choice.text and not self._is_silent:
            deltas.append(CompletionDelta(index, choice.text, self._logprobs(index, choice)))
        if choice.finish_reason and index not in self._finished:
            self._finished.add(index)
            deltas.append(CompletionDelta(index, finish_reason=_finish_reason(choice)))
        return deltas

    def _logprobs(self, index: int, choice: _Choice) -> CompletionLogprobs | None:
        if self._top_logprobs is None or choice.logprobs is None:
            return None
        logprobs = CompletionLogprobs(top_logprobs=[] if self._top_logprobs else None)
        for token in choice.logprobs.content:
            logprobs.tokens.append(token.token)
            logprobs.token_logprobs.append(token.logprob)
            logprobs.text_offset.append(self._offsets[index])
            self._offsets[index] += len(token.token)
            if logprobs.top_logprobs is not None:
                tops = token.top_logprobs[: self._top_logprobs]
                logprobs.top_logprobs.append({top.token: top.logprob for top in tops})
        return logprobs


def _finish_reason(choice: _Choice) -> Any:
    return "length" if choice.finish_reason == "length" else "stop"


def _own(request: CompletionRequest) -> dict[str, Any]:
    limit = _DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    # The engine cannot make an answer of no tokens; one is made and not shown.
    body: dict[str, Any] = {"max_tokens": max(limit, 1)}
    if request.logprobs is not None:
        body["logprobs"] = max(request.logprobs, 1)
    return body


def _continued(prompt: str | list[int], resume: str) -> str | Sequence[int | str]:
    if not resume:
        return prompt
    return prompt + resume if isinstance(prompt, str) else [*prompt, resume]


def _check_tokens(prompt: str | list[int], where: str, vocabulary: int) -> None:
    if isinstance(prompt, str):
        return
    wrong = next((token for token in prompt if not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise Invalid(
            f"'{where}' has the token {wrong}; this model has the tokens 0 to {vocabulary - 1}.",
            param="prompt",
        )
