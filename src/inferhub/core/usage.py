"""What a call consumed and what it cost. Backends report it, the gateway shows it, the ledger bills it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

Source = Literal["reported", "estimated", "unknown"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of one call. `cached` is part of `input`, `reasoning` is part of `output`."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    source: Source = "reported"
    """Who counted: whoever did the work (or nobody did any), InferHub, or nobody."""
    audio_ms: int = 0
    """Milliseconds of sound taken in or given out."""
    characters: int = 0
    """Characters spoken."""
    images: int = 0
    pixels: int = 0

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def checked(self) -> Usage:
        """Itself, or its nearest possible form, as an estimate, where the figures contradict each other."""
        if (
            0 <= self.cached_tokens <= self.input_tokens <= MOST
            and 0 <= self.reasoning_tokens <= self.output_tokens <= MOST
            and min(self.audio_ms, self.characters, self.images, self.pixels) >= 0
            and max(self.audio_ms, self.characters, self.images, self.pixels) <= MOST
        ):
            return self
        input_tokens, output_tokens = _within(self.input_tokens), _within(self.output_tokens)
        return Usage(
            input_tokens,
            output_tokens,
            min(_within(self.cached_tokens), input_tokens),
            min(_within(self.reasoning_tokens), output_tokens),
            "unknown" if self.source == "unknown" else "estimated",
            _within(self.audio_ms),
            _within(self.characters),
            _within(self.images),
            _within(self.pixels),
        )


MOST = 2**40
"""Of any unit in one call; a larger figure is an error of whoever reported it, and fits no column."""


def _within(count: int) -> int:
    return min(max(count, 0), MOST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """Written before a call is dispatched. One without a `UsageEvent` is a call that a crash cut off."""

    id: str
    """`call_…`, made here; a client can choose its request id, so that cannot name a bill."""
    request_id: str
    at_ms: int
    """Unix milliseconds."""
    tenant_id: str
    project_id: str
    key_id: str
    modality: str
    model: str
    """As the client asked for it."""
    is_stream: bool = False
    input_tokens: int = 0
    """Estimated."""
    meters: tuple[str, ...] = ()
    """Budgets that a crash leaves to be charged; keys of `core.quota.Meter`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageEvent:
    """One call on the bill. The four token classes are disjoint; their sum is `total_tokens`."""

    id: str
    """Same as its `Begin`; every sink takes it once only."""
    request_id: str
    at_ms: int
    """When the call began, Unix milliseconds."""
    tenant_id: str
    project_id: str
    key_id: str
    modality: str
    model: str
    """The model that answered; the one asked for where none did."""
    requested_model: str
    endpoint: str = ""
    status: str = "ok"
    """`ok`, `cancelled`, `lost` (the process died), or an error code."""
    attempts: int = 1
    is_stream: bool = False
    cache: str = ""
    """`hit` where nothing was computed, else empty or `miss`."""
    source: Source = "unknown"
    input_tokens: int = 0
    """Not read from a prompt cache."""
    cached_tokens: int = 0
    output_tokens: int = 0
    """Not spent on reasoning."""
    reasoning_tokens: int = 0
    total_tokens: int = 0
    audio_ms: int = 0
    characters: int = 0
    images: int = 0
    pixels: int = 0
    latency_ms: float = 0.0
    first_token_ms: float | None = None
    cost_usd: Decimal = Decimal(0)
    price_version: str = ""
    """Which price row; empty for a model without a price."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LostEvent(UsageEvent):
    """The event of a call that a crash cut off, as the next start of the spool wrote it."""

    meters: tuple[str, ...] = ()
    """Budgets that still have to be charged its cost, once per `id`."""


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for one unit each, valid from a moment on. Exact decimals."""

    model: str
    version: str
    """Changes with every change of a number or date; stored with each event."""
    valid_from: int
    """Unix seconds."""
    input_token: Decimal = Decimal(0)
    cached_token: Decimal = Decimal(0)
    output_token: Decimal = Decimal(0)
    reasoning_token: Decimal = Decimal(0)
    audio_minute: Decimal = Decimal(0)
    """Not a second: a price per minute has no exact sixtieth."""
    character: Decimal = Decimal(0)
    image: Decimal = Decimal(0)
    pixel: Decimal = Decimal(0)
    request: Decimal = Decimal(0)
