"""What a modality is: its request, its deltas, how they fold, and its HTTP surface, as one record.

The gateway, the codec, the OpenAPI page and the contract suite read this record; none of them
knows a modality by name. Called at the door (check, requires) and by `gateway/answer` (fold, writer).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec

from inferhub.core.call import Media
from inferhub.core.usage import Usage


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every part of one answer repeats."""

    id: str
    created: int
    """Unix seconds."""
    model: str
    """The name the client asked for; the resolved one is in the `x-inferhub-model` header."""
    base_url: str = ""
    """How the client reaches this server, as far as it said so: put before addresses without a host."""


class Problem(msgspec.Struct, frozen=True):
    """An error as clients may read it: cleaned, and with OpenAI's four keys."""

    message: str
    type: str
    param: str | None
    code: str | None


class StreamWriter(Protocol):
    """Turns one call's deltas into complete server-sent events; holds what the stream has said so far."""

    def delta(self, payload: Any) -> bytes: ...

    def passed(self, raw: bytes) -> None:
        """Told of events that were forwarded as the upstream wrote them, instead of `delta`."""

    def end(self, usage: Usage) -> bytes: ...

    def fail(self, problem: Problem) -> bytes | None:
        """The event that ends a stream which broke after it had begun. Nothing follows it.

        None where the stream has no words for it: then the connection is cut, so that half an answer
        is not taken for a whole one."""


EVENT_STREAM = "text/event-stream; charset=utf-8"
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class FileField:
    """A field of a form that holds files, under this name or with `[]` behind it."""

    holds: Literal["audio", "image"]
    required: bool = True
    most: int = 1
    """Files of this name in one request."""


@dataclass(frozen=True, slots=True)
class Modality:
    """One kind of inference. Exposed as `MODALITY` by each module of this package."""

    name: str
    path: str
    """`POST` address on the gateway."""
    summary: str
    request: type[msgspec.Struct]
    delta: type[msgspec.Struct]
    response: type[msgspec.Struct]
    check: Callable[[Any], None]
    """Raises `Invalid` for what types alone cannot say."""
    requires: Callable[[Any], Mapping[str, str]]
    """Feature needed → the parameter that asks for it."""
    estimate: Callable[[Any, int], Usage]
    """(request, bytes of its body) → what the call will use at most, cheaply. More than zero for every unit
    that it may use: limits reserve this before the call, and settle what was really used after it."""
    cap: Callable[[Any, bytes], tuple[Any, bytes]] | None
    """(request, body) → both with the answer limited to what `estimate` counts on, where the client set no
    limit; None where an answer's length is not for anybody to choose."""
    fold: Callable[[Any, Envelope, Sequence[Any], Usage], bytes]
    """(request, envelope, deltas, usage) → the whole answer as JSON."""
    writer: Callable[[Any, Envelope], StreamWriter] | None
    """(request, envelope) → the writer of a stream; None where the modality does not stream."""
    features: tuple[str, ...]
    """Every feature a backend may declare for this modality."""
    example: Mapping[str, Any]
    """A request that works on the reference backend, without `model`."""
    aliases: tuple[str, ...] = ()
    """Further addresses that mean the same."""
    is_free: bool = False
    """Whether nothing is ever billed for it, not even what a model's price says of each request."""
    estimate_media: Callable[[Sequence[Media]], Usage] | None = None
    """What a call with these files uses at most, cheaply. Without files, and where it is None: `estimate`."""
    files: Mapping[str, FileField] = field(default_factory=dict)
    """With some, a request may come as a form: its files become `Call.media`, the rest the request."""
    media_type: Callable[[Any, bool], str] | None = None
    """(request, whether it is streamed) → what the answer is; None: JSON, or server-sent events."""
    howto: str = ""
    """Page that says how to add a model, for whoever asks while there is none."""
    prefix: Callable[[Any], Iterable[bytes]] | None = None
    """(request) → the pieces of what the model reads, in its order, where engines keep the state of how a
    prompt begins; None where they keep none."""
    wishes: Callable[[Any], Mapping[str, frozenset[str]]] | None = None
    """(request) → parameters that are left out, and reported as ignored, where the model has none of the
    features named with them."""

    def cost(self, request: Any, media: Sequence[Media], body_bytes: int) -> float:
        """How much work a call is, in this modality's unit: tokens, seconds of sound, characters, megapixels.

        The same on gateway and worker, and never 0. Seconds per unit are measured: only proportions matter.
        """
        if media and self.estimate_media is not None:
            return cost_of(self.estimate_media(media))
        return cost_of(self.estimate(request, body_bytes))


def cost_of(usage: Usage) -> float:
    """Cost units of an estimate, of the first kind of work that it names."""
    if usage.input_tokens or usage.output_tokens:
        return max(1.0, usage.input_tokens + usage.output_tokens)
    if usage.characters:
        return float(usage.characters)
    if usage.audio_ms:
        return max(0.1, usage.audio_ms / 1000)
    return max(1.0, usage.pixels / 1e6)


def wants_stream(request: Any) -> bool:
    return bool(getattr(request, "stream", False))
