"""Anthropic's dialect: messages, whole and in events, and token counts.

Read by the scripted upstream. Requests are checked by the types of Anthropic's SDK, closed against unknown
fields, and by the rules that its servers are known to enforce; never by InferHub's types.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_args, get_type_hints

import msgspec

from inferhub.testing.upstream_dialects.base import Event, Kind, Request, UpstreamDialect
from inferhub.testing.upstream_script import PROMPT_TOKENS, Script, pieces, thoughts, tool_calls

_PATH = re.compile(r"/v1/messages(/count_tokens)?")
_FINISH = {"": "", "stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
SIGNATURE = "c2lnbmVk"
"""Of every thought."""
CREATED_CACHE_TOKENS = 2
"""Tokens of every prompt that are reported as written to a cache, beside those read and those not cached."""
_encode = msgspec.json.encode


def _answers(path: str) -> bool:
    return _PATH.fullmatch(path) is not None


def _is_count(path: str) -> bool:
    return path.endswith("/count_tokens")


def _streams(request: Request, path: str) -> bool:
    return bool(request.get("stream")) and not _is_count(path)


# --- what is said --------------------------------------------------------------------------------


def _said(request: Request) -> str:
    """The last thing the user said."""
    messages = request.get("messages") or []
    content = next((m.get("content") for m in reversed(messages) if m.get("role") == "user"), "")
    if isinstance(content, list):
        content = "".join(block.get("text", "") for block in content)
    return str(content)


def _usage(script: Script, tokens: int) -> dict[str, Any]:
    usage: dict[str, Any] = {
        "input_tokens": PROMPT_TOKENS - script.cached - CREATED_CACHE_TOKENS,
        "cache_creation_input_tokens": CREATED_CACHE_TOKENS,
        "cache_read_input_tokens": script.cached,
        "output_tokens": tokens,
    }
    if script.reasoning:
        usage["output_tokens_details"] = {"thinking_tokens": script.reasoning}
    return usage


def _head(request: Request) -> dict[str, Any]:
    return {
        "id": "msg_up1",
        "type": "message",
        "role": "assistant",
        "model": request.get("model", "scripted"),
    }


def _stop_reason(script: Script) -> str:
    known = _FINISH.get(script.finish, script.finish)
    return known or ("tool_use" if script.tools else "end_turn")


def _ending(script: Script, request: Request) -> dict[str, Any]:
    reason = _stop_reason(script)
    stops = request.get("stop_sequences") or [None]
    return {"stop_reason": reason, "stop_sequence": stops[0] if reason == "stop_sequence" else None}


def _blocks(script: Script, request: Request) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """(the block as it begins, its deltas) one after the other."""
    thought = thoughts(script)
    if thought:
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in thought]
        signed = {"type": "signature_delta", "signature": SIGNATURE}
        yield {"type": "thinking", "thinking": "", "signature": ""}, [*deltas, signed]
    calls = tool_calls(script)
    for identity, name, arguments in calls:
        text = "" if script.bad_tools == "no_arguments" else _encode(arguments).decode()
        cut = len(text) // 2
        parts = [part for part in (text[:cut], text[cut:]) if part]
        deltas = [{"type": "input_json_delta", "partial_json": part} for part in parts]
        yield {"type": "tool_use", "id": identity, "name": name, "input": {}}, deltas
    if not calls:
        texts = pieces(script, _said(request))
        yield {"type": "text", "text": ""}, [{"type": "text_delta", "text": piece} for piece in texts]


def _whole(start: dict[str, Any], deltas: list[dict[str, Any]]) -> dict[str, Any]:
    joined: dict[str, str] = {}
    for delta in deltas:
        for name, value in delta.items():
            if name != "type":
                joined[name] = joined.get(name, "") + value
    if start["type"] == "tool_use":
        return {**start, "input": msgspec.json.decode(joined.get("partial_json") or "{}")}
    return {**start, **joined}


def _tokens(script: Script, request: Request) -> int:
    return sum(len(deltas) for _, deltas in _blocks(script, request))


def _answer(script: Script, request: Request, path: str) -> bytes:
    if _is_count(path):
        return _encode({"input_tokens": PROMPT_TOKENS})
    content = [_whole(start, deltas) for start, deltas in _blocks(script, request)]
    answer = {**_head(request), "content": content, **_ending(script, request)}
    if script.mode != "usage_missing":
        answer["usage"] = _usage(script, _tokens(script, request))
    return _encode(answer)


# --- streams -------------------------------------------------------------------------------------


def _event(name: str, kind: Kind, **fields: Any) -> Event:
    return Event(_encode({"type": name, **fields}), kind, name)


def _events(script: Script, request: Request, _path: str) -> Iterator[Event]:
    has_usage = script.mode != "usage_missing"
    begin = {"usage": _usage(script, 1)} if has_usage else {}
    empty: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
    yield _event("message_start", Kind.OPENING, message={**_head(request), **empty, **begin})
    yield _event("ping", Kind.OPENING)
    for index, (start, deltas) in enumerate(_blocks(script, request)):
        yield _event("content_block_start", Kind.OPENING, index=index, content_block=start)
        for delta in deltas:
            yield _event("content_block_delta", Kind.CONTENT, index=index, delta=delta)
        yield _event("content_block_stop", Kind.OPENING, index=index)
    end = {"usage": _usage(script, _tokens(script, request))} if has_usage else {}
    yield _event("message_delta", Kind.CLOSING, delta=_ending(script, request), **end)
    yield _event("message_stop", Kind.TERMINAL)


def _idle(_script: Script, _request: Request, _path: str) -> Event:
    return _event("ping", Kind.OPENING)


def _padded(_script: Script, _request: Request, _path: str, size: int) -> Event:
    delta = {"type": "text_delta", "text": "x" * size}
    return _event("content_block_delta", Kind.CONTENT, index=0, delta=delta)


# --- errors --------------------------------------------------------------------------------------


def _broke(script: Script) -> Event:
    kind = script.code or "api_error"
    return _event("error", Kind.TERMINAL, error={"type": kind, "message": "It broke."}, request_id="req_up1")


def _problem(status: int, message: str, script: Script) -> bytes:
    if script.code == "context_length_exceeded":
        message = "prompt is too long: 250000 tokens > 200000 maximum"
    if script.param:
        message = f"{script.param}: {message}"
    known = script.code if script.code in _TYPES.values() else None
    kind = known or _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return _encode({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_up1"})


# --- rules ---------------------------------------------------------------------------------------

# Gone from the SDK's types with Claude Opus 4.7; older models still take them.
_SAMPLING = {"temperature": (0, 1), "top_p": (0, 1), "top_k": (0, 1_000_000)}


def _violations(path: str, headers: Mapping[str, str], body: bytes) -> list[str]:
    from anthropic.types import message_count_tokens_params, message_create_params

    from inferhub.testing.strict import validate_type

    found = [f"no {name}" for name in ("x-api-key", "anthropic-version") if not headers.get(name)]
    if not headers.get("content-type", "").startswith("application/json"):
        found.append(f"content-type is {headers.get('content-type')!r}")
    request = msgspec.json.decode(body)
    if _is_count(path):
        kind: Any = message_count_tokens_params.MessageCountTokensParams
    else:
        is_stream = request.get("stream")
        kind = message_create_params.MessageCreateParamsStreaming if is_stream else _unstreamed()
        for name, (least, most) in _SAMPLING.items():
            value = request.pop(name, least)
            if not isinstance(value, int | float) or not least <= value <= most:
                found.append(f"{name} is {value!r}")
    found += [f"unknown field {name!r}" for name in sorted(request.keys() - set(_fields(kind)))]
    found += validate_type(kind, request)
    return found + list(_broken_rules(request))


def _unstreamed() -> Any:
    from anthropic.types import message_create_params

    return message_create_params.MessageCreateParamsNonStreaming


@cache
def _fields(kind: Any) -> tuple[str, ...]:
    return tuple(kind.__annotations__)


@cache
def _block_fields() -> Mapping[str, tuple[str, ...]]:
    """Type of a content block → the fields it may have."""
    from anthropic.types import content_block_param

    kinds = get_args(content_block_param.ContentBlockParam)
    return {get_args(get_type_hints(kind)["type"])[0]: _fields(kind) for kind in kinds}


def _broken_rules(request: Mapping[str, Any]) -> Iterator[str]:
    """What no type says and the servers refuse all the same."""
    asked: set[str] = set()
    messages = request.get("messages") or []
    if not messages:
        yield "messages: at least one message is required"
    for turn, message in enumerate(messages):
        content = message.get("content")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())
        answered = {block.get("tool_use_id") for block in blocks if block.get("type") == "tool_result"}
        if asked - answered:
            yield f"messages.{turn}: tool_use without tool_result: {sorted(asked - answered)}"
        if answered - asked:
            yield f"messages.{turn}: tool_result without tool_use in the turn before"
        asked = {block["id"] for block in blocks if block.get("type") == "tool_use"}
        yield from _broken_blocks(blocks, f"messages.{turn}.content")
    thinking = request.get("thinking") or {}
    if thinking.get("budget_tokens", 0) >= request.get("max_tokens", 1 << 60):
        yield "max_tokens must be greater than thinking.budget_tokens"
    last = messages[-1] if messages else {}
    end = last.get("content")
    if last.get("role") == "assistant" and isinstance(end, str) and end != end.rstrip():
        yield "messages: final assistant content cannot end with trailing whitespace"


def _broken_blocks(blocks: list[dict[str, Any]], where: str) -> Iterator[str]:
    """Unknown fields, empty texts, and answers of tools that do not come first."""
    is_late = False
    for place, block in enumerate(blocks):
        kind = block.get("type", "")
        unknown = sorted(block.keys() - set(_block_fields().get(kind, block)))
        if unknown:
            yield f"{where}.{place}: unknown fields {unknown}"
        if kind == "text" and not block.get("text"):
            yield f"{where}.{place}: text content blocks must be non-empty"
        if kind == "tool_result" and is_late:
            yield f"{where}.{place}: tool_result blocks must come first"
        is_late = is_late or kind != "tool_result"


DIALECT = UpstreamDialect(
    name="anthropic",
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
