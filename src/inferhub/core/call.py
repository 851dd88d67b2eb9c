"""The architecture in one file: a frozen `Call` goes down, `Chunk`s come up through `emit`.

Pipeline rings, transports and the gRPC servicer all share the shape `Handler`.
Everyone imports this module; it imports only its sibling nouns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import IntEnum
from typing import Any, Literal

from inferhub.core.clock import new_id
from inferhub.core.quota import Reading, Reservation
from inferhub.core.tenancy import Principal
from inferhub.core.usage import Usage


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt that came to nothing."""

    endpoint: str
    """Empty where none was found."""
    code: str
    """Of the error."""
    after_s: float


@dataclass(frozen=True, slots=True)
class Started:
    """An endpoint took the call. Directly followed by the first `Delta` or by `Finished`; only where a call
    takes several models does one without an endpoint come first, while the others are at work."""

    model: str
    """The model that answers, after aliases and routes."""
    endpoint: str
    """Where it runs: a worker id, or the name of an upstream."""
    attempt: int = 1
    ignored_params: tuple[str, ...] = ()
    """Top-level parameters of the client that nobody here knows and that were not passed on."""
    cache: Literal["", "hit", "miss"] = ""
    """Whether the answer cache was asked, and had it."""
    readings: tuple[Reading, ...] = ()
    """How full the caller's limits are; the admit ring fills it in."""
    trail: tuple[Failed, ...] = ()
    """What was tried before, in order; the attempt ring fills it in."""
    described_by: str = ""
    """The model that looked at the pictures for one that cannot see; the describe ring fills it in."""


@dataclass(frozen=True, slots=True)
class Delta:
    """One piece of the answer; `payload` is the delta struct of the call's modality."""

    payload: Any
    raw: bytes | None = None
    """The same as the upstream wrote it, in the client's dialect: whole events, to be forwarded untouched.
    In one stream all pieces have it or none. May hold events without content that came before."""
    more: bool = False
    """The next piece is here already: who writes may wait for it and write both at once."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The clean end. Without it an answer is broken, however much of it arrived."""

    usage: Usage
    cost_usd: Decimal | None = None
    """What the call is billed; the meter ring fills it in. None for a model without a price."""
    raw: bytes | None = None
    """As the upstream wrote it: the events that end a stream whose deltas have `raw`, or all of an answer
    that is not streamed."""
    batch: int = 0
    """How many calls were computed together, this one included; 0: it was in no batch."""


Chunk = Started | Delta | Finished

Emit = Callable[[Chunk], Awaitable[None]]
"""Takes one chunk; awaiting it is the back-pressure."""

Handler = Callable[["Call", Emit], Awaitable[None]]
"""Answers a call by emitting chunks, or raises an `InferHubError`. Cancelled by `Task.cancel()` only."""

Ring = Callable[["Call", Emit, Handler], Awaitable[None]]
"""Behaviour around a handler: may change the call, wrap `emit`, refuse, or retry."""


class Criticality(IntEnum):
    """Who waits and who is refused first when there is more work than room; lower goes first."""

    REALTIME = 0
    """Somebody listens: live speech."""
    INTERACTIVE = 1
    BATCH = 2
    """May come later; the first to be refused."""


@dataclass(frozen=True, slots=True)
class Native:
    """A request in another dialect than its modality's own, as its client wrote it."""

    dialect: str
    """For example `anthropic_messages`. A backend that speaks it sends `body` on; every other one sends
    what the request was translated to, `Call.body`."""
    body: bytes
    needs: Mapping[str, str] = field(default_factory=dict)
    """Feature needed → the parameter that asks for it, where the translation does not show it."""


@dataclass(frozen=True, slots=True)
class Media:
    """A file that came with a request, as its client sent it: nothing in it is trusted."""

    field: str
    """Of the form it came in: `file`, `image`, `mask`."""
    data: bytes = dataclasses.field(repr=False)  # its neighbour has the short name
    kind: str = ""
    """Media type, found out from the bytes, such as `audio/wav`."""
    name: str = ""
    """The client's name for the file, made harmless; for upstreams that go by it."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What a client says while it is answered already: live sound, or a word about it."""

    data: bytes = field(default=b"", repr=False)
    event: str = ""
    """Empty for sound. Else a name from the modality, such as `commit`."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request on its way down. Derive a changed one with `dataclasses.replace`; never mutate."""

    id: str
    """The `x-request-id`. A client may choose it, so it names nothing that matters."""
    modality: str
    """Name of a `Modality`, for example `chat`."""
    model: str
    """What the client asked for; dispatch replaces it with what the endpoint calls it."""
    request: Any
    """The modality's request struct, already checked."""
    body: bytes
    """JSON of `request`: exactly as it came, so that fields unknown to us are not lost, or translated."""
    principal: Principal
    deadline_s: float
    """End of the call on the `time.monotonic()` clock of this process; a transport carries what remains."""
    stream: bool = False
    traceparent: str | None = None
    unknown_params: tuple[str, ...] = ()
    """Top-level names in `body` that the request struct does not have."""
    attempt: int = 1
    endpoint: str = ""
    """Chosen by the attempt ring; empty lets dispatch choose."""
    media: tuple[Media, ...] = ()
    """Files that belong to `request`."""
    incoming: AsyncIterator[Frame] | None = field(default=None, repr=False)
    """Set where the client goes on talking. Read once, by one endpoint: such a call is never tried again."""
    native: Native | None = None
    """Set where the client speaks another dialect than the modality's own."""
    session: str = ""
    """Calls with the same one are better answered by the same endpoint."""
    resume: str = ""
    """What the client has of the answer already: the rest of it is asked for, and nothing of it again."""
    criticality: Criticality = Criticality.INTERACTIVE
    cost: float = 0.0
    """Cost units of the work (`Modality.cost`), the same for gateway and worker; 0: not counted yet."""
    prefixes: tuple[int, ...] = ()
    """Hashes of ever longer beginnings of the prompt, the shortest first; empty where nobody needs them."""
    reservation: Reservation | None = None
    """What admission reserved of the caller's limits."""
    cache: Literal["auto", "on", "off", "semantic"] = "auto"
    """The client's wish: `on` also answers from the cache what is not deterministic, `semantic` also what
    was asked in other words."""
    key: str = field(default_factory=lambda: new_id("call"))
    """Names the call in the ledger and, over all attempts, to upstreams that do nothing twice."""
