"""Google's Gemini API: answers, events, token counts and embeddings in its form.

Read by the scripted upstream. Without a script's `tools` it does what a request asks, as far as that can be
seen from outside: limits, stop texts, candidates, forced functions, JSON. Requests are checked by
`testing.strict_gemini`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from inferhub.testing.upstream_dialects.base import BadRequest, Event, Kind, Request, UpstreamDialect
from inferhub.testing.upstream_gemini_media import is_made, made, predictions
from inferhub.testing.upstream_script import PROMPT_TOKENS, Script, pieces, thoughts, tool_calls

SIGNATURE = base64.b64encode(b"signed thought").decode()
"""On the first function call of an answer, and on the last of its thoughts."""

_ADDRESS = re.compile(
    r"/models/(?P<model>[^/:]+):"
    r"(?P<method>generateContent|streamGenerateContent|countTokens|embedContent|batchEmbedContents|predict)$"
)
_FINISH = {"stop": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY", "tool_calls": "STOP"}
_BLOCKED = "blocked"
"""A script's `finish` for a prompt that Google does not answer at all."""
_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_encode = msgspec.json.encode
_Json = dict[str, Any]


def _answers(path: str) -> bool:
    return _ADDRESS.search(path) is not None


def _method(path: str) -> str:
    found = _ADDRESS.search(path)
    return found["method"] if found else ""


def _streams(request: Request, path: str) -> bool:
    return _method(path) == "streamGenerateContent"


# --- what is said --------------------------------------------------------------------------------


def _texts(request: Request) -> Iterator[tuple[str, str]]:
    """(role, text) of every part that is text."""
    for content in request.get("contents") or ():
        for part in content.get("parts") or ():
            if "text" in part:
                yield content.get("role", "user"), part["text"]


def _said(request: Request) -> str:
    return next((text for role, text in reversed([*_texts(request)]) if role == "user"), "")


def _prompt(request: Request) -> list[str]:
    """Every text of it."""
    instruction = (request.get("systemInstruction") or {}).get("parts") or ()
    return [*(part["text"] for part in instruction), *(text for _, text in _texts(request))]


def _config(request: Request) -> Mapping[str, Any]:
    found = request.get("generationConfig") or {}
    assert isinstance(found, dict)
    return found


def _forced(request: Request) -> str | None:
    """The function that has to be called."""
    calling = (request.get("toolConfig") or {}).get("functionCallingConfig") or {}
    if calling.get("mode") != "ANY":
        return None
    declared = [f["name"] for tool in request.get("tools") or () for f in tool["functionDeclarations"]]
    return str((calling.get("allowedFunctionNames") or declared)[0])


def _calls(script: Script, request: Request) -> list[_Json]:
    """One part for each function called."""
    forced = _forced(request)
    called = tool_calls(script)
    if not called and forced:
        called = [("call_0", forced, {"text": "sea"})]
    parts: list[_Json] = []
    for place, (call_id, name, args) in enumerate(called):
        call: _Json = {"name": name, "args": args}
        if script.bad_tools != "no_id":
            call["id"] = "call_0" if script.bad_tools == "same_id" else call_id
        part: _Json = {"functionCall": call}
        if place == 0:
            part["thoughtSignature"] = SIGNATURE
        parts.append(part)
    return parts


def _spoken(script: Script, request: Request) -> tuple[list[_Json], str]:
    """(the parts of the answer one by one, why it ended)."""
    thought: list[_Json] = [{"text": text, "thought": True} for text in thoughts(script)]
    if thought:
        thought[-1]["thoughtSignature"] = SIGNATURE
    calls = _calls(script, request)
    if calls:
        return [*thought, *calls], "STOP"
    config, said = _config(request), pieces(script, _said(request))
    if config.get("responseMimeType") == "application/json" and script.echo:
        said = list(_encode({"echo": _said(request)}).decode())
    said, reason = _cut(said, config)
    return [*thought, *({"text": text} for text in said)], reason


def _cut(said: Sequence[str], config: Mapping[str, Any]) -> tuple[list[str], str]:
    text, reason, ends = "".join(said), "STOP", list[int]()
    for stop in config.get("stopSequences") or ():
        if stop in text:
            ends.append(text.index(stop))
    kept: list[str] = []
    left = min(ends, default=len(text))
    for piece in said:
        if left <= 0:
            break
        kept.append(piece[:left])
        left -= len(piece)
    limit = config.get("maxOutputTokens") or len(kept)
    if len(kept) > limit:
        kept, reason = kept[:limit], "MAX_TOKENS"
    return kept, reason


def _reason(script: Script, reason: str) -> str:
    return _FINISH.get(script.finish, script.finish) if script.finish else reason


def _prompt_tokens(script: Script, texts: Sequence[str]) -> int:
    """The echo counts words, so that prompts can be told apart by their length."""
    return PROMPT_TOKENS + (sum(len(text.split()) for text in texts) if script.echo else 0)


def _usage(script: Script, request: Request, candidates: int, thought: int) -> _Json:
    if script.mode == "usage_missing":
        return {}
    prompt = _prompt_tokens(script, _prompt(request))
    counts = {
        "promptTokenCount": prompt,
        "candidatesTokenCount": candidates,
        "thoughtsTokenCount": thought,
        "cachedContentTokenCount": script.cached,
        "totalTokenCount": prompt + candidates + thought,
    }
    return {"usageMetadata": {name: count for name, count in counts.items() if count}}


def _logprobs(request: Request, parts: Sequence[_Json]) -> _Json:
    config = _config(request)
    tokens = [part["text"] for part in parts if part.get("text") and not part.get("thought")]
    if not config.get("responseLogprobs") or not tokens:
        return {}
    chosen = [{"token": token, "tokenId": 7, "logProbability": -0.5} for token in tokens]
    result: _Json = {"chosenCandidates": chosen, "logProbabilitySum": -0.5 * len(tokens)}
    if config.get("logprobs"):
        result["topCandidates"] = [{"candidates": [token]} for token in chosen]
    return {"logprobsResult": result}


def _choices(request: Request) -> int:
    return int(_config(request).get("candidateCount") or 1)


def _candidate(index: int, parts: Sequence[_Json], reason: str, more: _Json) -> _Json:
    candidate: _Json = {"content": {"parts": list(parts), "role": "model"}, **more}
    if reason:
        candidate["finishReason"] = reason
    # Protobuf's JSON leaves a zero out.
    return {**candidate, "index": index} if index else candidate


def _response(candidates: Sequence[_Json], usage: _Json) -> _Json:
    head = {"modelVersion": "scripted", "responseId": "up-1"}
    return {"candidates": list(candidates), **usage, **head} if candidates else {**usage, **head}


def _blocked(script: Script, request: Request) -> _Json:
    feedback = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}
    return _response((), _usage(script, request, 0, 0)) | feedback


# --- whole answers -------------------------------------------------------------------------------


def _answer(script: Script, request: Request, path: str) -> bytes:
    match _method(path):
        case "countTokens":
            return _encode({"totalTokens": _counted(script, request)})
        case "embedContent":
            vectors, used = _vectors(script, [request])
            return _encode({"embedding": vectors[0], **used})
        case "batchEmbedContents":
            vectors, used = _vectors(script, request.get("requests") or ())
            return _encode({"embeddings": vectors, **used})
        case "predict":
            return _encode(predictions(script, request))
    if is_made(request) and script.finish != _BLOCKED:
        return _encode(made(script, request))
    if script.finish == _BLOCKED:
        return _encode(_blocked(script, request))
    parts, reason = _spoken(script, request)
    choices = _choices(request)
    whole = [
        _candidate(index, _joined(parts), _reason(script, reason), _logprobs(request, parts))
        for index in range(choices)
    ]
    return _encode(_response(whole, _used(script, request, parts, choices)))


def _joined(parts: Sequence[_Json]) -> list[_Json]:
    """Neighbouring texts as one part, as a whole answer has them; at least one part."""
    joined: list[_Json] = []
    for part in parts:
        last = joined[-1] if joined else {}
        if "text" in part and "text" in last and part.get("thought") == last.get("thought"):
            joined[-1] = {**last, **part, "text": last["text"] + part["text"]}
        else:
            joined.append(part)
    return joined or [{"text": ""}]


def _used(script: Script, request: Request, parts: Sequence[_Json], choices: int) -> _Json:
    thought = sum(1 for part in parts if part.get("thought"))
    return _usage(script, request, (len(parts) - thought) * choices, script.reasoning or thought)


def _counted(script: Script, request: Request) -> int:
    texts = _prompt(request.get("generateContentRequest") or request)
    return PROMPT_TOKENS + sum(len(text.split()) for text in texts)


def _vectors(script: Script, requests: Sequence[Mapping[str, Any]]) -> tuple[list[_Json], _Json]:
    """Component k of input i is (i + 1) / (k + 1): never of length 1, as Google's shortened ones are not."""
    texts = ["".join(part["text"] for part in item["content"]["parts"]) for item in requests]
    sizes = {item.get("outputDimensionality") or script.dim for item in requests}
    if sizes - {script.dim}:
        raise BadRequest(f"This model makes vectors of {script.dim} dimensions, not of {max(sizes)}.")
    vectors = [
        {"values": [(index + 1) / (k + 1) for k in range(script.dim)]}
        for index in range(len(texts) - (script.mode == "short"))
    ]
    if script.mode == "usage_missing":
        return vectors, {}
    tokens = sum(_prompt_tokens(script, [text]) for text in texts)
    return vectors, {"usageMetadata": {"promptTokenCount": tokens, "totalTokenCount": tokens}}


# --- streams -------------------------------------------------------------------------------------


def _events(script: Script, request: Request, path: str) -> Iterator[Event]:
    if script.finish == _BLOCKED:
        yield Event(_encode(_blocked(script, request)), Kind.TERMINAL)
        return
    parts, reason = _spoken(script, request)
    choices = range(_choices(request))
    for position, part in enumerate(parts, 1):
        # Every event says what was used so far.
        used = _used(script, request, parts[:position], len(choices))
        for index in choices:
            said = _candidate(index, [part], "", _logprobs(request, [part]))
            yield Event(_encode(_response([said], used)))
    ends = [_candidate(index, [{"text": ""}], _reason(script, reason), {}) for index in choices]
    # Gemini has no event of its own for the end: the one with the reason is the last.
    yield Event(_encode(_response(ends, _used(script, request, parts, len(choices)))), Kind.TERMINAL)


def _idle(script: Script, request: Request, path: str) -> Event:
    return Event(_encode(_response([_candidate(0, [{"text": ""}], "", {})], {})), Kind.OPENING)


def _padded(script: Script, request: Request, path: str, size: int) -> Event:
    return Event(_encode(_response([_candidate(0, [{"text": "x" * size}], "", {})], {})))


# --- errors and rules ----------------------------------------------------------------------------


def _problem(status: int, message: str, script: Script) -> bytes:
    """`code` is the reason, the id of a quota for 429, or `context_length_exceeded`."""
    details: list[_Json] = []
    if script.code == "context_length_exceeded":
        message = "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."
    elif script.code and status == 429:
        violation = {"quotaId": script.code, "quotaMetric": "requests"}
        details.append({"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]})
    elif script.code:
        info = {"reason": script.code, "domain": "googleapis.com"}
        details.append({"@type": "type.googleapis.com/google.rpc.ErrorInfo", **info})
    if script.retry_after_s:
        delay = {"retryDelay": f"{script.retry_after_s}s"}
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", **delay})
    error: _Json = {"code": status, "message": message, "status": _STATUS.get(status, "UNKNOWN")}
    return _encode({"error": {**error, "details": details} if details else error})


def _broke(script: Script) -> Event:
    return Event(_problem(500, "It broke.", script), Kind.TERMINAL)


def _violations(path: str, headers: Mapping[str, str], body: bytes) -> list[str]:
    from inferhub.testing.strict_gemini import violations_of

    return violations_of(_method(path), path, headers, body)


DIALECT = UpstreamDialect(
    name="gemini",
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
