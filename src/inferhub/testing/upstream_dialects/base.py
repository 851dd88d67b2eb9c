"""What a vendor's dialect is to the scripted upstream: addresses, words and rules, as one record.

One file of this package is one vendor; it exposes `DIALECT` and is found by listing the folder. A dialect
only says what goes over the wire; every fault of the wire itself is played by `testing.upstream_player`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, NamedTuple

from inferhub.testing.upstream_script import Script

Request = Mapping[str, Any]
"""A request's body, decoded."""


class Kind(Enum):
    """What an event is to the one who waits for it; scripts strike by it."""

    OPENING = auto()
    """Comes before the content or frames it (a role, `message_start`, `content_block_start`): not counted."""
    CONTENT = auto()
    """Something the user reads, or a piece of a tool call."""
    CLOSING = auto()
    """Says why the answer ended (`finish_reason`, `message_delta`)."""
    USAGE = auto()
    """Says only what it cost."""
    TERMINAL = auto()
    """The stream is complete (`[DONE]`, `message_stop`). Without it the answer is broken."""


class Event(NamedTuple):
    """One event of a stream before it is framed."""

    data: bytes
    """JSON, or `[DONE]`."""
    kind: Kind = Kind.CONTENT
    name: str = ""
    """Of its `event:` line, where the dialect has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamDialect:
    """One vendor's dialect. Exposed as `DIALECT` by each module of this package."""

    name: str
    """`openai`, `anthropic`, … What a test matrix calls it."""
    answers: Callable[[str], bool]
    """Whether a POST to this path is for this dialect."""
    streams: Callable[[Request, str], bool]
    """(request, path) → whether it asks for a stream, and the address has one."""
    answer: Callable[[Script, Request, str], bytes]
    """(script, request, path) → the whole answer as JSON. Raises `BadRequest`."""
    events: Callable[[Script, Request, str], Iterator[Event]]
    """(script, request, path) → every event of the stream, in order. It leaves out usage for `usage_missing`;
    what else `mode` says is done by the player."""
    idle: Callable[[Script, Request, str], Event]
    """(script, request, path) → an event that says nothing, as often as one likes: a role, a `ping`."""
    broke: Callable[[Script], Event]
    """The event that says in mid-stream that the answer broke; its code is the script's `code`."""
    problem: Callable[[int, str, Script], bytes]
    """(status, message, script) → the body of an error, with the script's `code` and `param`."""
    violations: Callable[[str, Mapping[str, str], bytes], list[str]]
    """(path, headers, body) → where the request breaks what the vendor publishes. May import its SDK."""
    padded: Callable[[Script, Request, str, int], Event]
    """(script, request, path, size) → one legal piece of content whose text has this many bytes."""
    content_type: Callable[[Request, str], str] | None = None
    """(request, path) → of the answer; None: JSON, or events."""
    sends_bytes: Callable[[Request, str], bool] = lambda request, path: False
    """(request, path) → whether the pieces of a stream go out as they are, without the frame of an event."""


class BadRequest(Exception):
    """The request is not one this dialect could answer."""


def load_dialects() -> tuple[UpstreamDialect, ...]:
    """Every dialect of this package, by name."""
    package = __name__.rpartition(".")[0]
    folder = importlib.import_module(package).__path__
    names = sorted(module.name for module in pkgutil.iter_modules(folder) if module.name != "base")
    return tuple(importlib.import_module(f"{package}.{name}").DIALECT for name in names)
