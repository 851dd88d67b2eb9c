"""The reference backend: answers with what it was told, word by word, and keeps every promise.

Read it to learn how a backend is written. Its options make it slow or flaky on purpose, so that
failure is something a test or a demonstration can ask for.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import math
import re
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing

import msgspec

from inferhub.backends.base import Backend, check_options
from inferhub.backends.echo_media import FEATURES, VOICES, EchoMedia
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.errors import ContextOverflow, Unsupported, UpstreamFailed
from inferhub.core.models import Capability, ModelSpec
from inferhub.core.usage import Usage
from inferhub.modalities.chat import (
    ChatDelta,
    ChatRequest,
    FilePart,
    FunctionDelta,
    ImagePart,
    JsonFormat,
    Message,
    NamedTool,
    Part,
    TextPart,
    TokenLogprob,
    ToolCallDelta,
)
from inferhub.modalities.completion import CompletionDelta, CompletionRequest, prompts
from inferhub.modalities.embedding import EmbeddingDelta, EmbeddingRequest, inputs
from inferhub.modalities.moderation import (
    CATEGORIES,
    ModerationDelta,
    ModerationPart,
    ModerationRequest,
    ModerationText,
)
from inferhub.modalities.moderation import inputs as judged_inputs
from inferhub.modalities.rerank import RerankDelta, RerankRequest, texts
from inferhub.modalities.token_count import TokenCount


class EchoOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How the echo misbehaves, and what it can see; all off by default."""

    first_token_s: float = 0.0
    gap_s: float = 0.0
    """Between tokens, after the first."""
    fail_every: int = 0
    """Every k-th call fails; 1 means always, 0 never."""
    fail_at: int = 0
    """How many tokens a failing call delivers first."""
    context_tokens: int = 4096
    dimensions: int = 8
    pictures: bool = False
    """Takes pictures and files, and names their type and size in its answer."""


class Echo(Backend):
    """One token is one word with the white space before it.

    Chat and completion say what they were told, and go on with an answer that was cut off. Moderation flags
    a text for every category that it names. Reranking scores a document by the share of the query's words
    that it has. Token counts are those that chat would have as its input. What it does with sounds and
    pictures is in `echo_media`.
    """

    Options = EchoOptions

    capabilities: tuple[Capability, ...] = ()

    async def load(self) -> None:
        self._options = msgspec.convert(
            check_options(type(self), self.spec), EchoOptions, from_attributes=True
        )
        self._calls = 0
        self._media = EchoMedia()
        self.capabilities = self.offers(self.spec)

    async def unload(self) -> None:
        await self._media.close()

    @classmethod
    def offers(cls, spec: ModelSpec) -> tuple[Capability, ...]:
        options = msgspec.convert(check_options(cls, spec), EchoOptions, from_attributes=True)
        context = options.context_tokens
        seen = {"vision", "file_input"} if options.pictures else set[str]()
        return (
            Capability("chat", _CHAT | seen, context),
            Capability("completion", _COMPLETION, context),
            Capability("embedding", frozenset({"dimensions"}), context, options.dimensions),
            Capability("moderation", frozenset(), context),
            Capability("rerank", frozenset(), context),
            Capability("token_count", frozenset({"tools"} | seen), context),
            *(
                Capability(name, features, voices=VOICES if name == "speech" else ())
                for name, features in FEATURES.items()
            ),
        )

    async def run(self, call: Call) -> AsyncIterator[Delta | Finished]:
        self._calls += 1
        is_failing = bool(self._options.fail_every) and self._calls % self._options.fail_every == 0
        position = 0
        async with aclosing(self._media.answers(call) or self._said(call)) as chunks:
            async for chunk in chunks:
                if isinstance(chunk, Delta):
                    if is_failing and position == self._options.fail_at:
                        raise UpstreamFailed("This echo fails on purpose.")
                    await asyncio.sleep(self._options.gap_s if position else self._options.first_token_s)
                    position += 1
                yield chunk

    async def _said(self, call: Call) -> AsyncGenerator[Delta | Finished]:
        deltas, usage = self._answer(call)
        for delta in deltas:
            yield Delta(delta)
        yield Finished(usage)

    def _answer(self, call: Call) -> tuple[Sequence[object], Usage]:
        match call.request:
            case ChatRequest() as request if call.modality == "token_count":
                return [TokenCount(_spoken_tokens(request))], Usage()
            case ChatRequest() as request:
                return self._chat(request, call.resume)
            case CompletionRequest() as request:
                return self._complete(request, call.resume)
            case EmbeddingRequest() as request:
                return self._embed(request)
            case ModerationRequest() as request:
                return self._moderate(request)
            case RerankRequest() as request:
                return self._rerank(request)
        raise Unsupported(f"The echo cannot answer a {type(call.request).__name__}.")

    def _chat(self, request: ChatRequest, resume: str) -> tuple[list[ChatDelta], Usage]:
        input_tokens = self._fitting(_spoken_tokens(request) + len(tokens_of(resume)), "messages")
        answer = text_of(request.messages[-1])
        if request.tools and request.tool_choice != "none" and request.messages[-1].role != "tool":
            choice = request.tool_choice
            tool = choice.function.name if isinstance(choice, NamedTool) else request.tools[0].function.name
            deltas = list(_tool_call(tool, answer))
            return deltas, Usage(input_tokens, 1)
        if isinstance(request.response_format, JsonFormat):
            answer = msgspec.json.encode({"echo": answer}).decode()
        deltas, output_tokens = [], 0
        for index in range(request.n or 1):
            tokens, reason = cut(rest_of(answer, resume), request.max_output_tokens, request.stop)
            output_tokens += len(tokens)
            deltas += [
                ChatDelta(
                    index=index,
                    content=token,
                    logprobs=[TokenLogprob(token, 0.0, list(token.encode()))] if request.logprobs else None,
                )
                for token in tokens
            ]
            deltas.append(ChatDelta(index=index, finish_reason=reason))  # type: ignore[arg-type]
        return deltas, Usage(input_tokens, output_tokens)

    def _complete(self, request: CompletionRequest, resume: str) -> tuple[list[CompletionDelta], Usage]:
        texts = [prompt for prompt in prompts(request) if isinstance(prompt, str)]
        input_tokens = self._fitting(sum(len(tokens_of(text)) for text in [*texts, resume]), "prompt")
        deltas: list[CompletionDelta] = []
        output_tokens = 0
        limit = 16 if request.max_tokens is None else request.max_tokens
        for index, text in enumerate(text for text in texts for _ in range(request.n or 1)):
            tokens, reason = cut(rest_of(text, resume), limit, request.stop)
            output_tokens += len(tokens)
            deltas += [CompletionDelta(index, token) for token in tokens]
            deltas.append(CompletionDelta(index, finish_reason=reason))  # type: ignore[arg-type]
        return deltas, Usage(input_tokens, output_tokens)

    def _embed(self, request: EmbeddingRequest) -> tuple[list[EmbeddingDelta], Usage]:
        size = self._options.dimensions
        if request.dimensions not in (None, size):
            raise Unsupported(
                f"'dimensions' is {request.dimensions}; this model only makes {size}.", param="dimensions"
            )
        texts = [text for text in inputs(request) if isinstance(text, str)]
        counts = [self._fitting(len(tokens_of(text)), "input") for text in texts]
        return [EmbeddingDelta(i, unit_vector(text, size)) for i, text in enumerate(texts)], Usage(
            sum(counts)
        )

    def _moderate(self, request: ModerationRequest) -> tuple[list[ModerationDelta], Usage]:
        given = [_judged_text(item) for item in judged_inputs(request)]
        counts = [self._fitting(len(tokens_of(text)), "input") for text in given]
        return [verdict(index, text) for index, text in enumerate(given)], Usage(sum(counts))

    def _rerank(self, request: RerankRequest) -> tuple[list[RerankDelta], Usage]:
        documents = texts(request)
        query_tokens = self._fitting(len(tokens_of(request.query)), "query")
        counts = [self._fitting(len(tokens_of(text)), "documents") for text in documents]
        return [
            RerankDelta(index, words_shared(request.query, text)) for index, text in enumerate(documents)
        ], Usage(query_tokens + sum(counts))

    def _fitting(self, tokens: int, param: str) -> int:
        limit = self._options.context_tokens
        if tokens > limit:
            raise ContextOverflow(
                f"'{param}' has {tokens} tokens; the context of this model is {limit} tokens.", param=param
            )
        return tokens


_CHAT = frozenset({"stream", "tools", "tool_choice_named", "json_object", "logprobs", "n", "seed", "prefill"})
_COMPLETION = frozenset({"stream", "n", "many_prompts", "seed", "prefill"})


def text_of(message: Message) -> str:
    if isinstance(message.content, list):
        return "".join(_part_text(part) for part in message.content)
    return message.content or ""


def _part_text(part: Part) -> str:
    match part:
        case TextPart(text=text):
            return text
        case ImagePart(image_url=image):
            return _named(image.url)
        case FilePart(file=file) if file.file_data:
            return _named(file.file_data)
    return ""


def _named(url: str) -> str:
    """`data:image/png;base64,…` as ` [image/png, 68 bytes]`: three tokens."""
    head, _, data = url.partition(",")
    if not head.startswith("data:"):
        return f" [{head}]"
    return f" [{head.removeprefix('data:').partition(';')[0]}, {len(base64.b64decode(data))} bytes]"


def _spoken_tokens(request: ChatRequest) -> int:
    return sum(len(tokens_of(text_of(message))) for message in request.messages)


def _judged_text(item: str | list[ModerationPart]) -> str:
    if isinstance(item, str):
        return item
    return "".join(part.text for part in item if isinstance(part, ModerationText))


def verdict(index: int, text: str) -> ModerationDelta:
    named = {name: name in text.casefold() for name in CATEGORIES}
    scores = {name: float(is_named) for name, is_named in named.items()}
    return ModerationDelta(index, any(named.values()), named, scores)


def words_shared(query: str, text: str) -> float:
    """The share of the query's words that the text has too."""
    wanted = set(re.findall(r"\w+", query.casefold()))
    return len(wanted & set(re.findall(r"\w+", text.casefold()))) / len(wanted) if wanted else 0.0


def tokens_of(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+$", text)


def cut(text: str, limit: int | None, stop: str | Sequence[str] | None) -> tuple[list[str], str]:
    """The tokens up to the first stop text or the limit, and the finish reason."""
    for ending in [stop] if isinstance(stop, str) else stop or ():
        text = text.split(ending, maxsplit=1)[0] if ending else text
    tokens = tokens_of(text)
    if limit is not None and len(tokens) > limit:
        return tokens[:limit], "length"
    return tokens, "stop"


def rest_of(answer: str, resume: str) -> str:
    """What is left to say after `resume`; of an answer that began otherwise, nothing."""
    return answer[len(resume) :] if answer.startswith(resume) else ""


def unit_vector(text: str, dimensions: int) -> bytes:
    """A pseudo-random vector of length 1 that depends on nothing but the text."""
    seed = hashlib.shake_256(text.encode()).digest(dimensions * 2)
    raw = [value - 32767.5 for value in struct.unpack(f"<{dimensions}H", seed)]
    length = math.hypot(*raw)
    return struct.pack(f"<{dimensions}f", *(value / length for value in raw))


def _tool_call(name: str, text: str) -> Iterator[ChatDelta]:
    arguments = msgspec.json.encode({"text": text}).decode()
    first = ToolCallDelta(0, "call_echo", "function", FunctionDelta(name, ""))
    yield ChatDelta(tool_calls=[first])
    yield ChatDelta(tool_calls=[ToolCallDelta(0, function=FunctionDelta(arguments=arguments))])
    yield ChatDelta(finish_reason="tool_calls")


BACKEND = Echo
