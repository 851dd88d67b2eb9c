"""What Google publishes about requests to the Gemini API, as checks: its SDK's own types, and its documents.

`upstream_dialects.gemini` calls it for a strict upstream. It knows nothing of InferHub.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

_Json = Mapping[str, Any]
_DATA = ("text", "inlineData", "functionCall", "functionResponse", "fileData")
_MAX_STOPS = 5


@cache
def _shapes() -> dict[str, type[BaseModel]]:
    """The request of each method out of the SDK's types, which forbid what they do not know."""
    from google.genai import types

    strict = ConfigDict(extra="forbid")
    # The documents have it there; the SDK puts it there without a type.
    config = create_model(
        "GenerationConfig", __base__=types.GenerationConfig, imageConfig=(types.ImageConfig | None, None)
    )
    generate = {
        "contents": (list[types.Content], ...),
        "systemInstruction": (types.Content | None, None),
        "tools": (list[types.Tool] | None, None),
        "toolConfig": (types.ToolConfig | None, None),
        "generationConfig": (config | None, None),
        "safetySettings": (list[types.SafetySetting] | None, None),
        "cachedContent": (str | None, None),
    }
    embed = {
        "model": (str, ...),
        "content": (types.Content, ...),
        "taskType": (str | None, None),
        "title": (str | None, None),
        "outputDimensionality": (int | None, None),
    }
    whole = create_model("GenerateContentRequest", __config__=strict, **generate)  # type: ignore[call-overload]
    inner = create_model("Counted", __config__=strict, model=(str, ...), **generate)  # type: ignore[call-overload]
    one = create_model("EmbedContentRequest", __config__=strict, **embed)  # type: ignore[call-overload]
    count = create_model(
        "CountTokensRequest",
        __config__=strict,
        contents=(list[types.Content] | None, None),
        generateContentRequest=(inner | None, None),
    )
    imagen = create_model("Instance", __config__=strict, prompt=(str, ...))
    # The SDK sends other names than its own type has.
    parameters = create_model(
        "Parameters", __config__=strict, sampleCount=(int, ...), aspectRatio=(str | None, None)
    )
    predict = create_model(
        "PredictRequest",
        __config__=strict,
        instances=(list[imagen], ...),  # type: ignore[valid-type]
        parameters=(parameters, ...),
    )
    batch = create_model("BatchEmbedContentsRequest", __config__=strict, requests=(list[one], ...))  # type: ignore[valid-type]
    return {
        "generateContent": whole,
        "streamGenerateContent": whole,
        "countTokens": count,
        "embedContent": one,
        "batchEmbedContents": batch,
        "predict": predict,
    }


def violations_of(method: str, path: str, headers: Mapping[str, str], body: bytes) -> list[str]:
    """Where the request breaks the rules; empty for one that Google would take."""
    found = [*_head(headers)]
    try:
        with warnings.catch_warnings(record=True) as warned:
            # The SDK lets words pass that its enumerations do not have, and warns of them.
            warnings.simplefilter("always")
            _shapes()[method].model_validate_json(body)
        found += [str(warning.message) for warning in warned]
    except ValidationError as error:
        return found + [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    request = msgspec.json.decode(body)
    asked = request.get("generateContentRequest") or request
    if "contents" in asked:
        found += [*_conversation(asked["contents"], path), *_configuration(asked)]
    return found


def _head(headers: Mapping[str, str]) -> Iterator[str]:
    if not headers.get("content-type", "").startswith("application/json"):
        yield f"content-type is {headers.get('content-type')!r}"
    if not headers.get("x-goog-api-key"):
        yield "no x-goog-api-key"


def _conversation(contents: Sequence[_Json], path: str) -> Iterator[str]:
    if not contents:
        yield "contents is not specified"
    open_calls = 0
    for place, content in enumerate(contents):
        parts = content.get("parts") or ()
        if content.get("role", "user") not in ("user", "model"):
            yield f"contents[{place}].role: {content['role']!r}"
        if not parts:
            yield f"contents[{place}].parts must not be empty"
        for part in parts:
            if sum(name in part for name in _DATA) != 1:
                yield f"contents[{place}]: a part needs exactly one kind of data"
        calls = [part for part in parts if "functionCall" in part]
        results = sum("functionResponse" in part for part in parts)
        if results != open_calls:
            # Google's wording: as many function responses as function calls, in the turn right after.
            yield f"contents[{place}]: {results} function responses for {open_calls} function calls"
        if calls and content.get("role") != "model":
            yield f"contents[{place}]: a function call of the user"
        if calls and "/gemini-3" in path and not calls[0].get("thoughtSignature"):
            yield f"contents[{place}]: the first function call is missing a thought_signature"
        open_calls = len(calls)


def _configuration(request: _Json) -> Iterator[str]:
    config = request.get("generationConfig") or {}
    thinking = config.get("thinkingConfig") or {}
    if "thinkingLevel" in thinking and "thinkingBudget" in thinking:
        yield "thinkingLevel and thinkingBudget at once"
    if len(config.get("stopSequences") or ()) > _MAX_STOPS:
        yield f"more than {_MAX_STOPS} stopSequences"
    if "logprobs" in config and not config.get("responseLogprobs"):
        yield "logprobs without responseLogprobs"
    if "responseJsonSchema" in config and config.get("responseMimeType") != "application/json":
        yield "responseJsonSchema without responseMimeType"
    if not 1 <= config.get("candidateCount", 1) <= 8:
        yield "candidateCount is not within 1 to 8"
    calling = (request.get("toolConfig") or {}).get("functionCallingConfig") or {}
    if "allowedFunctionNames" in calling and calling.get("mode") not in ("ANY", "VALIDATED"):
        yield "allowedFunctionNames in a mode that takes none"
