"""The dialects that clients speak, raw: one question, and how to read what came back of it.

For matrix tests, which ask the same of every dialect. It reads the wire by the vendors' rules and shares
nothing with the code under test.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inferhub.testing.raw_http import Answer
from inferhub.testing.raw_http import Event as WireEvent
from inferhub.testing.talk import Talk

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientDialect:
    """How one kind of client asks and reads."""

    name: str
    """As `Dialect.name` has it."""
    path: str
    ask: Callable[[str, str], Json]
    """(model, what is said) → a request without `stream`."""
    whole_text: Callable[[Json], str]
    """What a whole answer says."""
    text: Callable[[Json], str]
    """What one event of a stream adds."""
    error: Callable[[Json], Json | None]
    """The error in an event or a body, if it is one."""
    is_end: Callable[[str], bool]
    """Whether the data of an event says that the answer is complete."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a client learns of one call."""

    status: int
    text: str
    """All that was delivered."""
    error: Json | None
    """`error` of the body or of the event that ended the stream."""
    is_complete: bool
    """Whether the answer says of itself that it is whole."""
    request_id: str
    headers: Mapping[str, str]
    events: tuple[Json, ...] = ()

    @property
    def code(self) -> str | None:
        """The error's code, or its type where the dialect has no code."""
        if self.error is None:
            return None
        return self.error.get("code") or self.error.get("type")


async def put(
    dialect: ClientDialect, talk: Talk, body: Mapping[str, Any], *, stream: bool, path: str = ""
) -> Outcome:
    """Ask, at the dialect's own address or at `path`, and read to the end. Comments are dropped."""
    asked = {**body, **({"stream": True} if stream else {})}
    headers = {"anthropic_version": "2023-06-01", "x_inferhub_cache": "off"}
    async with talk.opened(path or dialect.path, asked, **headers) as call:
        head = await call.head()
        fields = dict(head.fields)
        if not (head["content-type"] or "").startswith("text/event-stream"):
            answer = Answer(head, await call.connection.body(head))
            return _whole(dialect, answer, call.request_id, fields)
        found = [event async for event in call.connection.events(head)]
    return _streamed(dialect, head.status, [data_of(event) for event in found], call.request_id, fields)


def data_of(event: WireEvent) -> str | None:
    """The data of an event with or without an `event:` line; None for a comment."""
    lines = [line[6:] for line in event.text.splitlines() if line.startswith("data: ")]
    return "\n".join(lines) if lines else None


def _whole(dialect: ClientDialect, answer: Answer, request_id: str, headers: Mapping[str, str]) -> Outcome:
    body = answer.json
    error = dialect.error(body)
    is_conversation = any(key in body for key in ("choices", "content", "output"))
    text = dialect.whole_text(body) if is_conversation and not error else ""
    return Outcome(answer.status, text, error, error is None, request_id, headers, (body,))


def _streamed(
    dialect: ClientDialect,
    status: int,
    data: Sequence[str | None],
    request_id: str,
    headers: Mapping[str, str],
) -> Outcome:
    said = [item for item in data if item is not None]
    is_complete = bool(said) and dialect.is_end(said[-1])
    events = tuple(json.loads(item) for item in said if item != "[DONE]")
    errors = [error for event in events if (error := dialect.error(event))]
    assert len(errors) <= 1, errors
    # Nothing follows an error, and nobody who failed says that it is whole.
    assert not errors or (dialect.error(events[-1]) and not is_complete), events[-3:]
    text = "".join(dialect.text(event) for event in events)
    return Outcome(status, text, errors[0] if errors else None, is_complete, request_id, headers, events)


def _error(event: Json) -> Json | None:
    error = event.get("error")
    return error if isinstance(error, dict) else None


def _messages(model: str, said: str) -> Json:
    return {"model": model, "messages": [{"role": "user", "content": said}]}


def _choices(event: Json) -> list[Json]:
    choices: list[Json] = event.get("choices", [])
    return choices


CHAT = ClientDialect(
    name="chat",
    path="/v1/chat/completions",
    ask=_messages,
    whole_text=lambda body: body["choices"][0]["message"]["content"] or "",
    text=lambda event: "".join(c["delta"].get("content") or "" for c in _choices(event)),
    error=_error,
    is_end=lambda data: data == "[DONE]",
)
COMPLETION = ClientDialect(
    name="completion",
    path="/v1/completions",
    ask=lambda model, said: {"model": model, "prompt": said, "max_tokens": 100},
    whole_text=lambda body: body["choices"][0]["text"],
    text=lambda event: "".join(c["text"] for c in _choices(event)),
    error=_error,
    is_end=lambda data: data == "[DONE]",
)


def _blocks_text(body: Json) -> str:
    return "".join(block["text"] for block in body["content"] if block["type"] == "text")


def _block_delta(event: Json) -> str:
    delta = event.get("delta") or {}
    return str(delta.get("text", "")) if event.get("type") == "content_block_delta" else ""


ANTHROPIC = ClientDialect(
    name="anthropic_messages",
    path="/v1/messages",
    ask=lambda model, said: {**_messages(model, said), "max_tokens": 100},
    whole_text=_blocks_text,
    text=_block_delta,
    error=_error,
    is_end=lambda data: '"message_stop"' in data,
)


def _items_text(body: Json) -> str:
    messages = [item for item in body["output"] if item["type"] == "message"]
    parts = [part for message in messages for part in message["content"]]
    return "".join(part["text"] for part in parts if part["type"] == "output_text")


def _response_error(event: Json) -> Json | None:
    if event.get("type") == "response.failed":
        error: Json = event["response"]["error"]
        return error
    return _error(event)


RESPONSES = ClientDialect(
    name="openai_responses",
    path="/v1/responses",
    ask=lambda model, said: {"model": model, "input": said},
    whole_text=_items_text,
    text=lambda event: event["delta"] if event.get("type") == "response.output_text.delta" else "",
    error=_response_error,
    is_end=lambda data: any(f'"response.{end}"' in data for end in ("completed", "incomplete")),
)
CLIENTS = {dialect.name: dialect for dialect in (CHAT, COMPLETION, ANTHROPIC, RESPONSES)}
