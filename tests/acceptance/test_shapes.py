"""Every answer is exactly what the official client's own models say: strict types, and no key they do not know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openai.pagination import AsyncPage
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from inferhub.testing.talk import CHAT, COMPLETIONS, EMBEDDINGS, Talk, chat_body

TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}},
}
NAMED = {"type": "function", "function": {"name": "get_weather"}}

# What we add on purpose, and what the whole field adds.
OURS = {"inferhub", "reasoning_content"}


def extras(value: Any) -> Iterator[str]:
    """Keys, at any depth, that the client's models do not declare."""
    if isinstance(value, BaseModel):
        yield from value.model_extra or ()
        for name in value.model_fields_set:
            yield from extras(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            yield from extras(item)


def check(kind: type[BaseModel], text: str | bytes) -> Any:
    parsed = kind.model_validate_json(text, strict=True)
    assert set(extras(parsed)) <= OURS
    return parsed


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("echo", {"n": 2, "logprobs": True}),
        ("echo", {"tools": [TOOL]}),
        ("smollm2-135m", {"max_tokens": 4, "logprobs": True, "top_logprobs": 2}),
        ("smollm2-135m", {"max_tokens": 40, "tools": [TOOL], "tool_choice": NAMED}),
        ("remote", {"user": "script:tools=2"}),
        ("remote", {}),
    ],
)
async def test_chat(talk: Talk, model: str, more: dict[str, Any]) -> None:
    whole = check(ChatCompletion, (await talk.post(CHAT, chat_body(model, **more))).body)
    assert whole.usage is not None
    # An answer that passes through keeps its sender's name.
    assert whole.id.startswith("up-" if model == "remote" else "chatcmpl-")
    for choice in whole.choices:
        assert {"logprobs", "finish_reason"} <= choice.model_fields_set, "required by OpenAI's document"
        assert {"role", "content", "refusal"} <= choice.message.model_fields_set
    options = {"stream_options": {"include_usage": True}}
    for event in await talk.stream(model, **more, **options):
        if event.data not in (None, "[DONE]"):
            chunk = check(ChatCompletionChunk, event.data)
            assert all(
                {"delta", "finish_reason", "index"} <= choice.model_fields_set for choice in chunk.choices
            )


@pytest.mark.parametrize("model", ["echo", "smollm2-135m", "remote"])
async def test_completions(talk: Talk, model: str) -> None:
    body = {"model": model, "prompt": "Once upon a time", "max_tokens": 4}
    whole = check(Completion, (await talk.post(COMPLETIONS, body)).body)
    assert whole.id.startswith("up-" if model == "remote" else "cmpl-")
    required = {"text", "index", "logprobs", "finish_reason"}
    assert all(required <= choice.model_fields_set for choice in whole.choices)
    pieces = []
    for event in await talk.stream_of(COMPLETIONS, {**body, "stream": True}):
        if event.data not in (None, "[DONE]"):
            # The document gives chunks the type of whole answers, whose finish_reason is never null.
            text = event.data.replace('"finish_reason":null', '"finish_reason":"stop"')
            pieces += [choice.text for choice in check(Completion, text).choices]
    assert pieces


@pytest.mark.parametrize("model", ["echo", "minilm-l6-v2", "remote"])
async def test_embeddings(talk: Talk, model: str) -> None:
    body = {"model": model, "input": ["a", "b"], "encoding_format": "float"}
    check(CreateEmbeddingResponse, (await talk.post(EMBEDDINGS, body)).body)


async def test_models(talk: Talk) -> None:
    check(AsyncPage[Model], (await talk.get("/v1/models")).body)
    check(Model, (await talk.get("/v1/models/smollm2-135m")).body)
