"""OpenAI's dialect, which many vendors share: chat, completions, embeddings, moderations, rerank, counting.

Read by the scripted upstream. Responses have a file of their own; rerank is the shape that Cohere and Jina
made common. Requests are checked against OpenAI's published document, never against InferHub's types.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import msgspec

from inferhub.testing.upstream_bad_tools import tool_calls_of, tool_deltas
from inferhub.testing.upstream_dialects.base import Event, Kind, Request, UpstreamDialect
from inferhub.testing.upstream_script import CREATED, PROMPT_TOKENS, Script, pieces, thoughts

_SCHEMAS = {
    "chat/completions": "CreateChatCompletionRequest",
    "completions": "CreateCompletionRequest",
    "embeddings": "CreateEmbeddingRequest",
    "moderations": "CreateModerationRequest",
}
_ADDRESSES = (*_SCHEMAS, "rerank", "tokenize", "chat/completions/input_tokens")
_PATH = re.compile(rf"(?:/openai|/api)?(?:/v\d|/deployments/[^/]+)?/({'|'.join(_ADDRESSES)})")
_CATEGORIES = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent"),
    *("self-harm", "self-harm/intent", "self-harm/instructions", "sexual", "sexual/minors"),
    *("violence", "violence/graphic"),
)
_encode = msgspec.json.encode


@lru_cache(maxsize=256)
def _address(path: str) -> str | None:
    """Which of ours a path ends with; vendors differ in what comes before it."""
    found = _PATH.fullmatch(path)
    return found[1] if found else None


def _answers(path: str) -> bool:
    return _address(path) is not None


def _streams(request: Request, path: str) -> bool:
    return bool(request.get("stream")) and (_address(path) or "").endswith("completions")


def _answer(script: Script, request: Request, path: str) -> bytes:
    match _address(path):
        case "chat/completions":
            return _chat(script, request)
        case "completions":
            return _completion(script, request)
        case "embeddings":
            return _embedding(script, request)
        case "moderations":
            return _moderation(request)
        case "rerank":
            return _rerank(request)
        case _:
            # vLLM's `/tokenize` and InferHub's own address: each reads the field that it knows.
            return _encode({"count": PROMPT_TOKENS, "input_tokens": PROMPT_TOKENS, "max_model_len": 4096})


def _events(script: Script, request: Request, path: str) -> Iterator[Event]:
    if _address(path) == "chat/completions":
        return _chat_events(script, request)
    return _completion_events(script, request)


# --- what is said --------------------------------------------------------------------------------


def _said(request: Request) -> str:
    """The last thing the user said, or the prompt."""
    messages = request.get("messages") or []
    content = next((m.get("content") for m in reversed(messages) if m.get("role") == "user"), None)
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content)
    return content if isinstance(content, str) else str(request.get("prompt", ""))


def _choices(request: Request) -> int:
    prompt = request.get("prompt")
    is_many = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
    return (len(prompt) if is_many and prompt else 1) * (request.get("n") or 1)


def _usage(tokens: int, script: Script) -> dict[str, Any]:
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": tokens,
        "total_tokens": PROMPT_TOKENS + tokens,
        "prompt_tokens_details": {"cached_tokens": script.cached},
        "completion_tokens_details": {"reasoning_tokens": script.reasoning},
    }


def _logprobs(request: Request, text: str | None) -> dict[str, Any] | None:
    if not request.get("logprobs") or text is None:
        return None
    seen = {"token": text, "logprob": -0.5, "bytes": list(text.encode())}
    tops = [seen] * min(request.get("top_logprobs") or 0, 1)
    return {"content": [{**seen, "top_logprobs": tops}], "refusal": None}


def _head(request: Request, kind: str) -> dict[str, Any]:
    return {"id": "up-1", "object": kind, "created": CREATED, "model": request.get("model", "scripted")}


def _finish(script: Script) -> str:
    return script.finish or ("tool_calls" if script.tools else "stop")


# --- whole answers -------------------------------------------------------------------------------


def _chat(script: Script, request: Request) -> bytes:
    text = None if script.tools else "".join(pieces(script, _said(request)))
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if script.think:
        message["reasoning_content"] = "".join(thoughts(script))
    if script.tools:
        message["tool_calls"] = tool_calls_of(script)
    end = {"logprobs": _logprobs(request, text), "finish_reason": _finish(script)}
    choices = [{"index": index, "message": message, **end} for index in range(_choices(request))]
    return _with_usage("chat.completion", choices, script, request)


def _completion(script: Script, request: Request) -> bytes:
    text = "".join(pieces(script, _said(request)))
    end = {"text": text, "logprobs": None, "finish_reason": _finish(script)}
    choices = [{"index": index, **end} for index in range(_choices(request))]
    return _with_usage("text_completion", choices, script, request)


def _with_usage(kind: str, choices: list[dict[str, Any]], script: Script, request: Request) -> bytes:
    answer = {**_head(request, kind), "choices": choices}
    if script.mode != "usage_missing":
        answer["usage"] = _usage(len(pieces(script, _said(request))) * len(choices), script)
    return _encode(answer)


def _embedding(script: Script, request: Request) -> bytes:
    """Component k of input i is (i + 1) / (k + 1), which base64 carries as little-endian float32."""
    given = request.get("input", "")
    is_one = isinstance(given, str) or (given and isinstance(given[0], int))
    count = 1 if is_one else len(given)
    dimensions = request.get("dimensions") or script.dim
    is_base64 = request.get("encoding_format") == "base64" and script.mode != "floats"
    data = []
    for index in range(count - (script.mode == "short")):
        vector = [(index + 1) / (k + 1) for k in range(dimensions)]
        packed = base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": packed if is_base64 else vector})
    tokens = {"prompt_tokens": PROMPT_TOKENS * count, "total_tokens": PROMPT_TOKENS * count}
    # Highest index first: nobody may rely on the order.
    answer = {"object": "list", "model": request.get("model", "scripted"), "data": data[::-1]}
    return _encode({**answer, "usage": tokens})


def _moderation(request: Request) -> bytes:
    """Whoever says `hit` is flagged as violent."""
    given = request.get("input", "")
    is_many = isinstance(given, list) and bool(given) and isinstance(given[0], str)
    results = []
    for text in given if is_many else [str(given)]:
        flags = {name: name == "violence" and "hit" in text for name in _CATEGORIES}
        results.append(
            {
                "flagged": any(flags.values()),
                "categories": flags,
                "category_scores": {name: 0.9 if flag else 0.01 for name, flag in flags.items()},
                "category_applied_input_types": {name: ["text"] for name in _CATEGORIES},
            }
        )
    return _encode({"id": "modr-1", "model": request.get("model", "scripted"), "results": results})


def _rerank(request: Request) -> bytes:
    """The document that comes last is the most relevant."""
    documents = request.get("documents", [])
    wanted = min(request.get("top_n") or len(documents), len(documents))
    best_first = range(len(documents) - 1, len(documents) - 1 - wanted, -1)
    results: list[dict[str, Any]] = []
    for index in best_first:
        result: dict[str, Any] = {"index": index, "relevance_score": (index + 1) / (len(documents) + 1)}
        if request.get("return_documents"):
            document = documents[index]
            result["document"] = {"text": document} if isinstance(document, str) else document
        results.append(result)
    usage = {"total_tokens": PROMPT_TOKENS * len(documents), "prompt_tokens": PROMPT_TOKENS * len(documents)}
    meta = {"billed_units": {"search_units": 1}}
    answer = {"id": "rr-1", "model": request.get("model", "scripted"), "results": results}
    return _encode({**answer, "usage": usage, "meta": meta})


# --- streams -------------------------------------------------------------------------------------


def _chat_events(script: Script, request: Request) -> Iterator[Event]:
    head = _stream_head(script, request, "chat.completion.chunk")
    deltas: list[dict[str, Any]] = [{"reasoning_content": thought} for thought in thoughts(script)]
    if script.tools:
        deltas += tool_deltas(script)
    else:
        deltas += [{"content": piece} for piece in pieces(script, _said(request))]
    indices = range(_choices(request))
    for position, delta in enumerate(deltas):
        said = {"role": "assistant", **delta} if position == 0 else delta
        logprobs = _logprobs(request, delta.get("content"))
        more = {"logprobs": logprobs} if logprobs else {}
        for index in indices:
            yield _chunk(head, {"index": index, "delta": said, **more, "finish_reason": None})
    for index in indices:
        yield _chunk(head, {"index": index, "delta": {}, "finish_reason": _finish(script)}, Kind.CLOSING)
    yield from _last_events(head, script, request, len(deltas) * len(indices))


def _completion_events(script: Script, request: Request) -> Iterator[Event]:
    head = _stream_head(script, request, "text_completion")
    said = pieces(script, _said(request))
    indices = range(_choices(request))
    more = {"logprobs": None}
    for piece in said:
        for index in indices:
            yield _chunk(head, {"index": index, "text": piece, **more, "finish_reason": None})
    for index in indices:
        end = {"index": index, "text": "", **more, "finish_reason": _finish(script)}
        yield _chunk(head, end, Kind.CLOSING)
    yield from _last_events(head, script, request, len(said) * len(indices))


def _chunk(head: Mapping[str, Any], choice: dict[str, Any], kind: Kind = Kind.CONTENT) -> Event:
    return Event(_encode({**head, "choices": [choice]}), kind)


def _stream_head(script: Script, request: Request, kind: str) -> dict[str, Any]:
    """What all chunks repeat; with usage asked for, a null stands in each but the one that tells it."""
    head = _head(request, kind)
    return {**head, "usage": None} if _tells_usage(script, request) and not script.unasked else head


def _tells_usage(script: Script, request: Request) -> bool:
    options = request.get("stream_options") or {}
    return bool(script.unasked or options.get("include_usage")) and script.mode != "usage_missing"


def _last_events(head: dict[str, Any], script: Script, request: Request, tokens: int) -> Iterator[Event]:
    if _tells_usage(script, request):
        yield Event(_encode({**head, "choices": [], "usage": _usage(tokens, script)}), Kind.USAGE)
    yield Event(b"[DONE]", Kind.TERMINAL)


def _idle(script: Script, request: Request, path: str) -> Event:
    if _address(path) == "completions":
        choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": None}
        return _chunk(_head(request, "text_completion"), choice, Kind.OPENING)
    head = _head(request, "chat.completion.chunk")
    delta = {"role": "assistant", "content": ""}
    return _chunk(head, {"index": 0, "delta": delta, "finish_reason": None}, Kind.OPENING)


def _padded(script: Script, request: Request, path: str, size: int) -> Event:
    text = "x" * size
    if _address(path) == "completions":
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": None}
        return _chunk(_head(request, "text_completion"), choice)
    head = _head(request, "chat.completion.chunk")
    return _chunk(head, {"index": 0, "delta": {"content": text}, "finish_reason": None})


# --- errors and rules ----------------------------------------------------------------------------


def _broke(script: Script) -> Event:
    return Event(_problem(500, "It broke.", script), Kind.TERMINAL)


def _problem(status: int, message: str, script: Script) -> bytes:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": script.param or None, "code": script.code or None}
    return _encode({"error": error})


def _violations(path: str, headers: Mapping[str, str], body: bytes) -> list[str]:
    from inferhub.testing.strict import validate_request

    found = []
    if not headers.get("content-type", "").startswith("application/json"):
        found.append(f"content-type is {headers.get('content-type')!r}")
    schema = _SCHEMAS.get(_address(path) or "")
    return found + (validate_request(schema, body) if schema else [])


DIALECT = UpstreamDialect(
    name="openai",
    answers=_answers,
    streams=_streams,
    answer=_answer,
    events=_events,
    idle=_idle,
    broke=_broke,
    problem=_problem,
    violations=_violations,
    padded=_padded,
)
