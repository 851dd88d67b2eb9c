"""What is asked of every vendor for the conformance matrix, and how an answer is judged.

A check is one request with values that can be found again: in the answer, or in what the upstream was sent.
Pure; `conformance` does the asking.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from inferhub.testing.client_dialects import Outcome

Json = dict[str, Any]
UNKNOWN = "made_up"
"""A parameter that nobody knows."""


class Verdict(StrEnum):
    """One cell of the matrix."""

    YES = "yes"
    TRANSLATED = "translated"
    """Said in the vendor's own dialect, which is another."""
    REFUSED = "400"
    """Refused with the parameter's name: the vendor cannot do it."""
    IGNORED = "ignored"
    """Left out, and named in `x-inferhub-ignored-params`."""
    PASSED_ON = "passed on"
    """Nobody here knows it, so the vendor is left to judge."""
    NOT_OFFERED = "–"
    """The vendor has no such endpoint."""
    NO = "no"
    """A hint that changes no answer, and that the vendor has no word for."""
    LOST = "LOST"
    """Silently left out. Never to be."""
    BROKEN = "BROKEN"
    """Anything else. Never to be."""


@dataclass(frozen=True, slots=True)
class Seen:
    """All that is known of one call."""

    outcome: Outcome
    sent: str | None
    """What the upstream was sent; None where none was asked."""
    spoken: str
    """The dialect in which it was sent."""
    violations: tuple[str, ...]
    is_streamed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    name: str
    endpoint: str
    """Which part of the page it belongs to."""
    body: Json
    """The request, without `model` and `stream`."""
    client: str = "chat"
    path: str = ""
    """Where it goes, if not to the client dialect's own address."""
    streams: bool = True
    sent: tuple[str, ...] = ()
    """The upstream must be sent one of these."""
    holds: Callable[[Seen], bool] = field(default=lambda _: True)
    """Whether the answer is what it should be, besides being one."""
    param: str = ""
    """The parameter that a vendor may refuse or ignore."""
    is_hint: bool = False
    """Whether an answer is as good without it."""
    is_vendors: bool = False
    """Whether the built-in model does not have it to offer."""
    in_streams: Json = field(default_factory=dict)
    """Fields that only a request for a stream has."""


class Judged(NamedTuple):
    verdict: Verdict
    why: str
    """Of a bad verdict."""


def judge(check: Check, seen: Seen) -> Judged:
    outcome = seen.outcome
    wrong = [*seen.violations]
    if outcome.error is None and not check.holds(seen):
        wrong.append(f"the answer does not hold: {str(outcome.events)[:500]}")
    if outcome.error is None and not (outcome.status == 200 and outcome.is_complete):
        wrong.append(f"status {outcome.status}, complete: {outcome.is_complete}")
    if wrong:
        return Judged(Verdict.BROKEN, "; ".join(wrong))
    verdict = _judge_refusal(check, outcome) if outcome.error else _judge_answer(check, seen)
    is_bad = verdict in {Verdict.BROKEN, Verdict.LOST}
    return Judged(verdict, f"{outcome.status} {outcome.error}, sent: {seen.sent}" if is_bad else "")


def _judge_answer(check: Check, seen: Seen) -> Verdict:
    if check.param in seen.outcome.headers.get("x-inferhub-ignored-params", "").replace(",", " ").split():
        return Verdict.IGNORED
    if check.sent and seen.sent is not None and not any(text in seen.sent for text in check.sent):
        return Verdict.NO if check.is_hint else Verdict.LOST
    if check.param == UNKNOWN:
        return Verdict.PASSED_ON
    own = {"chat": "openai", "completion": "openai", "anthropic_messages": "anthropic"}
    own["openai_responses"] = "responses"
    is_own = seen.sent is None or seen.spoken == own[check.client]
    return Verdict.YES if is_own else Verdict.TRANSLATED


def _judge_refusal(check: Check, outcome: Outcome) -> Verdict:
    error = outcome.error or {}
    if outcome.status not in {400, 404}:
        return Verdict.BROKEN
    named = re.split(r"[.\[\]]", error.get("param") or "")
    # Anthropic's errors name no parameter.
    if named[0] == "model" or "does not answer" in error.get("message", ""):
        return Verdict.NOT_OFFERED
    return Verdict.REFUSED if check.param in named and check.param else Verdict.BROKEN


# --- what answers look like --------------------------------------------------------------------------


def _says(seen: Seen) -> bool:
    """What the scripted upstream says; a real model may say what it likes, also nothing."""
    return seen.sent is None or seen.outcome.text == "word0 word1 "


def _choices(seen: Seen) -> list[Json]:
    return [choice for event in seen.outcome.events for choice in event.get("choices", ())]


def _calls(seen: Seen) -> dict[str, str]:
    """Tool → its arguments, as a client of OpenAI's puts them together."""
    found: dict[int, list[str]] = {}
    for choice in _choices(seen):
        message = choice.get("delta") or choice.get("message") or {}
        for place, call in enumerate(message.get("tool_calls") or ()):
            said = found.setdefault(call.get("index", place), ["", ""])
            function = call.get("function") or {}
            said[0] += function.get("name") or ""
            said[1] += function.get("arguments") or ""
    return dict(found.values())


def _calls_tools(count: int) -> Callable[[Seen], bool]:
    expected = {f"tool{number}": {"x": number} for number in range(count)}

    def holds(seen: Seen) -> bool:
        if seen.sent is None:
            return True
        return {name: json.loads(text) for name, text in _calls(seen).items()} == expected

    return holds


def _has_tool_use(seen: Seen) -> bool:
    said = json.dumps(seen.outcome.events)
    return seen.sent is None or '"tool0"' in said


def _has_usage(seen: Seen) -> bool:
    usages = [event["usage"] for event in seen.outcome.events if event.get("usage")]
    if len(usages) != 1:
        return False
    counted = (usages[0]["prompt_tokens"], usages[0]["completion_tokens"])
    return counted == (7, 2) if seen.sent is not None else counted[0] > 0


def _has_thoughts(seen: Seen) -> bool:
    messages = [choice.get("delta") or choice.get("message") or {} for choice in _choices(seen)]
    thought = "".join(message.get("reasoning_content") or "" for message in messages)
    return thought.strip() == "thought0 thought1"


def _has_choices(count: int) -> Callable[[Seen], bool]:
    return lambda seen: {choice["index"] for choice in _choices(seen)} == set(range(count))


def _has_logprobs(seen: Seen) -> bool:
    return any((choice.get("logprobs") or {}).get("content") for choice in _choices(seen))


def _first(seen: Seen) -> Json:
    return seen.outcome.events[0]


# --- the questions -----------------------------------------------------------------------------------

_SCRIPT = "script:n=2\nSay it."
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SOUND = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA="
_PARAMETERS: Json = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
_TOOLS = [
    {
        "type": "function",
        "function": {"name": f"tool{n}", "description": "A tool.", "parameters": _PARAMETERS},
    }
    for n in range(2)
]
_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "s",
        "strict": True,
        "schema": {**_PARAMETERS, "additionalProperties": False},
    },
}


def _chat(name: str, said: Any = _SCRIPT, **more: Any) -> Check:
    ours = {
        key: more.pop(key)
        for key in ("sent", "holds", "param", "in_streams", "is_hint", "is_vendors")
        if key in more
    }
    ours.setdefault("holds", _says)
    body = {"messages": [{"role": "user", "content": said}], "max_tokens": 12, **more}
    return Check(name=name, endpoint="chat", body=body, **ours)


def _part(part: Json) -> list[Json]:
    return [{"type": "text", "text": _SCRIPT}, part]


def _value(name: str, value: Any, *sent: str, **more: Any) -> Check:
    """A parameter that only has to arrive."""
    return _chat(name, **{name: value}, param=name, sent=sent, **more)


_DATA_URL = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
_CHAT = (
    _chat("text"),
    _chat("tools", "script:tools=1", tools=_TOOLS[:1], holds=_calls_tools(1), param="tools", sent=("tool0",)),
    _chat(
        "parallel tools",
        "script:tools=2",
        tools=_TOOLS,
        holds=_calls_tools(2),
        param="tools",
        sent=("tool1",),
    ),
    _chat(
        "tool_choice",
        "script:tools=1",
        tools=_TOOLS[:1],
        tool_choice={"type": "function", "function": {"name": "tool0"}},
        holds=_calls_tools(1),
        param="tool_choice",
    ),
    _chat(
        "json_schema", response_format=_FORMAT, param="response_format", sent=("additionalProperties", '"x"')
    ),
    _chat("image", _part(_DATA_URL), param="messages", sent=(PIXEL,)),
    _chat(
        "audio",
        _part({"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}}),
        param="messages",
        sent=(SOUND,),
    ),
    _value("reasoning_effort", "low", "low", "thinking"),
    _chat("thoughts", "script:n=2,think=2\nSay it.", holds=_has_thoughts, is_vendors=True),
    _chat(
        "cache_control",
        [{"type": "text", "text": _SCRIPT, "cache_control": {"type": "ephemeral"}}],
        param="cache_control",
        sent=("ephemeral",),
        is_hint=True,
    ),
    _chat(
        "usage",
        "script:n=2,unasked=1\nSay it.",
        holds=_has_usage,
        in_streams={"stream_options": {"include_usage": True}},
    ),
    _value("stop", ["STOPHERE"], "STOPHERE"),
    _value("seed", 987654, "987654"),
    _chat("n", n=2, holds=_has_choices(2), param="n"),
    _chat("logprobs", logprobs=True, top_logprobs=1, holds=_has_logprobs, param="logprobs"),
    _value("logit_bias", {"1234": -7}, "1234"),
    _value("temperature", 0.625, "0.625"),
    _value("top_p", 0.875, "0.875"),
    _value("top_k", 37, "37"),
    _value("frequency_penalty", 0.375, "0.375"),
    _value("presence_penalty", 0.375, "0.375"),
    _value(UNKNOWN, "nobody knows it", "nobody knows it"),
)
_CLAUDE_TOOL = {"name": "tool0", "input_schema": _PARAMETERS}
_RESPONSES_TOOL = {"type": "function", "name": "tool0", "parameters": _PARAMETERS, "strict": False}
_COUNT = [{"role": "user", "content": "How long is this?"}]
_OTHERS = (
    Check(
        name="completions",
        endpoint="completions",
        client="completion",
        body={"prompt": _SCRIPT, "max_tokens": 12},
        holds=_says,
    ),
    Check(
        name="responses",
        endpoint="responses",
        client="openai_responses",
        body={"input": _SCRIPT, "max_output_tokens": 16, "store": False},
        holds=_says,
    ),
    Check(
        name="responses, tools",
        endpoint="responses",
        client="openai_responses",
        body={"input": "script:tools=1", "tools": [_RESPONSES_TOOL], "store": False, "max_output_tokens": 16},
        holds=_has_tool_use,
    ),
    Check(
        name="messages",
        endpoint="messages",
        client="anthropic_messages",
        body={"messages": [{"role": "user", "content": _SCRIPT}], "max_tokens": 12},
        holds=_says,
    ),
    Check(
        name="messages, tools",
        endpoint="messages",
        client="anthropic_messages",
        body={
            "messages": [{"role": "user", "content": "script:tools=1"}],
            "tools": [_CLAUDE_TOOL],
            "max_tokens": 12,
        },
        holds=_has_tool_use,
    ),
    Check(
        name="count tokens",
        endpoint="count tokens",
        client="anthropic_messages",
        path="/v1/messages/count_tokens",
        body={"messages": _COUNT},
        streams=False,
        holds=lambda seen: _first(seen)["input_tokens"] > 0,
    ),
    Check(
        name="embeddings",
        endpoint="embeddings",
        path="/v1/embeddings",
        body={"input": ["one", "two"]},
        streams=False,
        holds=lambda seen: [item["index"] for item in _first(seen)["data"]] == [0, 1],
    ),
    Check(
        name="moderations",
        endpoint="moderations",
        path="/v1/moderations",
        body={"input": ["fine", "a hit"]},
        streams=False,
        holds=lambda seen: [result["flagged"] for result in _first(seen)["results"]] == [False, True],
    ),
    Check(
        name="rerank",
        endpoint="rerank",
        path="/v1/rerank",
        body={"query": "which?", "documents": ["this", "that"]},
        streams=False,
        holds=lambda seen: [result["index"] for result in _first(seen)["results"]] == [1, 0],
    ),
)
CHECKS: tuple[Check, ...] = (*_CHAT, *_OTHERS)
