"""OpenAI's Responses dialect of the scripted upstream. Requests are checked against the published document.

Keeps nothing: a `previous_response_id` is refused, so that a gateway which relies on one is found out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from inferhub.testing.upstream_bad_tools import tool_calls_of
from inferhub.testing.upstream_dialects.base import BadRequest, Event, Kind, Request, UpstreamDialect
from inferhub.testing.upstream_script import CREATED, PROMPT_TOKENS, Script, pieces, thoughts

_PATH = re.compile(r"(?:/openai|/api)?(?:/v\d)?/responses")
_REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}
_encode = msgspec.json.encode


def _answers(path: str) -> bool:
    return _PATH.fullmatch(path) is not None


def _streams(request: Request, path: str) -> bool:
    return bool(request.get("stream"))


# --- what is said --------------------------------------------------------------------------------


def _said(request: Request) -> str:
    """The last thing the user said."""
    given = request.get("input", "")
    if isinstance(given, str):
        return given
    content = next((i.get("content") for i in reversed(given) if i.get("role") == "user"), "")
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content)
    return str(content)


def _items(script: Script, request: Request) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    if script.think:
        content = [{"type": "reasoning_text", "text": "".join(thoughts(script))}]
        items.append({"id": "rs_up", "type": "reasoning", "summary": [], "content": content})
    if script.tools:
        for place, call in enumerate(tool_calls_of(script)):
            named = {"id": f"fc_up{place}", "call_id": call["id"], **call["function"]}
            items.append({"type": "function_call", "status": "completed", **named})
        return items
    text = {"type": "output_text", "text": "".join(pieces(script, _said(request))), "annotations": []}
    message = {"id": "msg_up", "type": "message", "role": "assistant", "status": "completed"}
    return [*items, {**message, "content": [{**text, "logprobs": []}]}]


def _response(script: Script, request: Request, *, is_done: bool) -> dict[str, Any]:
    if request.get("previous_response_id"):
        raise BadRequest("previous_response_id: nothing is kept here")
    response = {
        "id": "resp_up-1",
        "object": "response",
        "created_at": CREATED,
        "model": request.get("model", "scripted"),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": request.get("instructions"),
        "metadata": request.get("metadata") or {},
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "temperature": 1.0,
        "tool_choice": request.get("tool_choice") or "auto",
        "tools": request.get("tools") or [],
        "top_p": 1.0,
        # A field that nobody has heard of yet.
        "of_the_future": 1.50,
    }
    if not is_done:
        return response
    reason = _REASONS.get(script.finish)
    response |= {"status": "completed", "output": _items(script, request)}
    if reason:
        response |= {"status": "incomplete", "incomplete_details": {"reason": reason}}
    if script.mode != "usage_missing":
        tokens = len(pieces(script, _said(request)))
        response["usage"] = {
            "input_tokens": PROMPT_TOKENS,
            "input_tokens_details": {"cached_tokens": script.cached, "cache_write_tokens": 0},
            "output_tokens": tokens,
            "output_tokens_details": {"reasoning_tokens": script.reasoning},
            "total_tokens": PROMPT_TOKENS + tokens,
        }
    return response


def _answer(script: Script, request: Request, path: str) -> bytes:
    return _encode(_response(script, request, is_done=True))


# --- streams -------------------------------------------------------------------------------------


class _Numbered:
    """Makes events; each has the number after the one before it."""

    def __init__(self) -> None:
        self._next = 0

    def __call__(self, name: str, kind: Kind = Kind.OPENING, /, **fields: Any) -> Event:
        body = {"type": f"response.{name}", **fields, "sequence_number": self._next}
        self._next += 1
        return Event(_encode(body), kind, f"response.{name}")


def _events(script: Script, request: Request, path: str) -> Iterator[Event]:
    event = _Numbered()
    begun = _response(script, request, is_done=False)
    yield event("created", response=begun)
    yield event("in_progress", response=begun)
    for place, item in enumerate(_items(script, request)):
        yield from _item_events(event, place, item, script, request)
    done = _response(script, request, is_done=True)
    name = "completed" if done["status"] == "completed" else "incomplete"
    yield event(name, Kind.TERMINAL, response=done)


def _item_events(
    event: _Numbered, place: int, item: dict[str, Any], script: Script, request: Request
) -> Iterator[Event]:
    where = {"item_id": item["id"], "output_index": place}
    kind = item["type"]
    empty: dict[str, Any] = {"content": []} if kind != "function_call" else {"arguments": ""}
    yield event("output_item.added", output_index=place, item={**item, **empty, "status": "in_progress"})
    if kind == "function_call":
        for piece in item["arguments"]:
            yield event("function_call_arguments.delta", Kind.CONTENT, **where, delta=piece)
        whole = {"name": item["name"], "arguments": item["arguments"]}
        yield event("function_call_arguments.done", **where, **whole)
    elif kind == "reasoning":
        where["content_index"] = 0
        for piece in thoughts(script):
            yield event("reasoning_text.delta", Kind.CONTENT, **where, delta=piece)
        yield event("reasoning_text.done", **where, text=item["content"][0]["text"])
    else:
        part = item["content"][0]
        where["content_index"] = 0
        yield event("content_part.added", **where, part={**part, "text": ""})
        for piece in pieces(script, _said(request)):
            yield event("output_text.delta", Kind.CONTENT, **where, delta=piece, logprobs=[])
        yield event("output_text.done", **where, text=part["text"], logprobs=[])
        yield event("content_part.done", **where, part=part)
    yield event("output_item.done", output_index=place, item=item)


def _idle(script: Script, request: Request, path: str) -> Event:
    begun = _response(script, request, is_done=False)
    body = {"type": "response.in_progress", "response": begun, "sequence_number": 1}
    return Event(_encode(body), Kind.OPENING, body["type"])  # type: ignore[arg-type]


def _padded(script: Script, request: Request, path: str, size: int) -> Event:
    where = {"item_id": "msg_up", "output_index": 0, "content_index": 0, "sequence_number": 4}
    name = "response.output_text.delta"
    return Event(_encode({"type": name, **where, "delta": "x" * size, "logprobs": []}), Kind.CONTENT, name)


# --- errors and rules ----------------------------------------------------------------------------


def _broke(script: Script) -> Event:
    body = {"type": "error", "code": script.code or "server_error", "message": "It broke.", "param": None}
    return Event(_encode({**body, "sequence_number": 99}), Kind.TERMINAL, "error")


def _problem(status: int, message: str, script: Script) -> bytes:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": script.param or None, "code": script.code or None}
    return _encode({"error": error})


def _violations(path: str, headers: Mapping[str, str], body: bytes) -> list[str]:
    from inferhub.testing.strict import validate_request

    found = []
    if not headers.get("content-type", "").startswith("application/json"):
        found.append(f"content-type is {headers.get('content-type')!r}")
    return found + validate_request("CreateResponse", body)


DIALECT = UpstreamDialect(
    name="responses",
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
