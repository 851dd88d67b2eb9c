"""What the text modalities share, as OpenAI writes it: usage, event streams, texts or token ids as input."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from inferhub.core.errors import Invalid
from inferhub.core.usage import Usage
from inferhub.modalities.base import Envelope, Problem

TextOrTokens = str | list[str | int | list[int]]
"""One text, many texts, one list of token ids, or many. The decoder cannot say "all alike"; `split` does."""


MAX_COUNT = 2**31 - 1
"""Of tokens and other things that a request counts. Engines hold them in 32 bits."""
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


def with_field(body: bytes, name: str, value: int) -> bytes:
    """A JSON object with one field more, everything else as it was written."""
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    fields[name] = msgspec.Raw(str(value).encode())
    return msgspec.json.encode(fields)


def split(given: TextOrTokens, param: str) -> list[str | list[int]]:
    """The inputs one by one, whichever of the four shapes the client used. Raises `Invalid`."""
    if isinstance(given, str):
        return [given]
    kinds = {type(item) for item in given}
    if len(kinds) > 1:
        raise Invalid(
            f"'{param}' mixes {' and '.join(sorted(_KIND[kind] for kind in kinds))}; send only one kind.",
            param=param,
            code="invalid_type",
        )
    if kinds == {int}:
        return [given]  # type: ignore[list-item]
    return list(given)  # type: ignore[arg-type]


DEFAULT_OUTPUT_TOKENS = 1024
"""The most that a choice may have where the client sets no limit and the caller has one."""

BYTES_PER_TOKEN = 3
# Beginning and end of a text, and what a template puts around it.
_FRAME_TOKENS = 4


def text_tokens(text: str) -> int:
    """More than nearly every tokenizer makes of it: a token has 4 bytes in English, 3 in code and CJK."""
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return size // BYTES_PER_TOKEN + _FRAME_TOKENS


def bytes_tokens(size: int) -> int:
    """The same for text of which only the length in bytes is known."""
    return size // BYTES_PER_TOKEN + _FRAME_TOKENS


def input_tokens(given: TextOrTokens) -> int:
    """An estimate for texts, exact for token ids."""
    if isinstance(given, str):
        return text_tokens(given)
    return sum(
        text_tokens(item) if isinstance(item, str) else 1 if isinstance(item, int) else len(item)
        for item in given
    )


_KIND: dict[type, str] = {str: "strings", int: "token ids", list: "lists of token ids"}


class PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class TokenUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails = PromptDetails()
    completion_tokens_details: CompletionDetails = CompletionDetails()


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


def token_usage(usage: Usage) -> TokenUsage:
    return TokenUsage(
        prompt_tokens=usage.input_tokens,
        completion_tokens=usage.output_tokens,
        total_tokens=usage.input_tokens + usage.output_tokens,
        prompt_tokens_details=PromptDetails(cached_tokens=usage.cached_tokens),
        completion_tokens_details=CompletionDetails(reasoning_tokens=usage.reasoning_tokens),
    )


class ChunkFrame:
    """What every event of one stream repeats, encoded once; choices are put inside."""

    def __init__(self, kind: str, envelope: Envelope, options: StreamOptions | None) -> None:
        head = {"id": envelope.id, "object": kind, "created": envelope.created, "model": envelope.model}
        self._head = b"data: " + msgspec.json.encode(head)[:-1] + b',"choices":['
        self._wants_usage = bool(options and options.include_usage)
        self._tail = b'],"usage":null}\n\n' if self._wants_usage else b"]}\n\n"

    def event(self, choice: msgspec.Struct) -> bytes:
        return self._head + _encode(choice) + self._tail

    def end(self, usage: Usage) -> bytes:
        """Usage where the client asked for it, then the mark of a clean end."""
        events = b""
        if self._wants_usage:
            events = self._head + b'],"usage":' + _encode(token_usage(usage)) + b"}\n\n"
        return events + b"data: [DONE]\n\n"

    @staticmethod
    def fail(problem: Problem) -> bytes:
        return b'data: {"error":' + _encode(problem) + b"}\n\n"


_encode = msgspec.json.Encoder().encode
