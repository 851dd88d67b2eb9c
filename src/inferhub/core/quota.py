"""What may be used: quotas, the claims a call makes on them, and how full they are. Pure nouns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

NANO_USD = 1_000_000_000
"""Budgets are counted in billionths of a US dollar, so that counters stay whole numbers."""


MAX_LIMIT = 2**53 - 1
"""The largest limit, and the most that is ever counted: a store may hold its numbers as doubles."""


class Unit(StrEnum):
    """What is counted."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENT = "concurrent"
    AUDIO_SECONDS = "audio_seconds"
    CHARACTERS = "tts_characters"
    IMAGES = "images"
    PIXELS = "pixels"
    USD = "usd"


class Window(StrEnum):
    """Over what time. A minute slides; a day and a month are the calendar's, in UTC."""

    NOW = "now"
    MINUTE = "minute"
    DAY = "day"
    MONTH = "month"


WINDOWS: dict[Unit, tuple[Window, ...]] = {
    Unit.CONCURRENT: (Window.NOW,),
    Unit.USD: (Window.DAY, Window.MONTH),
    **{
        unit: (Window.MINUTE, Window.DAY, Window.MONTH)
        for unit in Unit
        if unit not in (Unit.CONCURRENT, Unit.USD)
    },
}
"""Which windows a unit may be limited over."""

Level = Literal["tenant", "project", "key"]


@dataclass(frozen=True, slots=True)
class Quota:
    """One limit, as an admin set it."""

    id: str
    """`quo_…`"""
    tenant_id: str
    level: Level
    subject_id: str
    """The tenant, project or key that it binds."""
    unit: Unit
    window: Window
    limit: int
    """In whole units; nano-dollars for `usd`."""
    mode: Literal["auto", "exact", "lease"] = "auto"
    """How gateways share it: one store operation a call, or blocks leased in bulk. `auto` goes by size."""
    created_at: int = 0


@dataclass(frozen=True, slots=True)
class Meter:
    """One counter that a call is held against."""

    key: str
    """`LEVEL:SUBJECT:UNIT:WINDOW`; names the counter in every store."""
    unit: Unit
    window: Window
    limit: int
    mode: Literal["auto", "exact", "lease"] = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.limit <= MAX_LIMIT:
            raise ValueError(f"the limit of {self.key} is {self.limit}, not 0 to {MAX_LIMIT}")


@dataclass(frozen=True, slots=True)
class Claim:
    """So much of a meter is asked for. 1 for requests and concurrency, an estimate for the rest."""

    meter: Meter
    amount: int


@dataclass(frozen=True, slots=True)
class Reading:
    """How full a meter is, this call's own reservation included."""

    meter: Meter
    used: int
    reset_s: float
    """Until it would be empty if nothing more came."""

    @property
    def remaining(self) -> int:
        return max(0, self.meter.limit - self.used)


@dataclass(frozen=True, slots=True)
class Reservation:
    """Claims that were granted together. Settled once; forgotten by the store when its lease runs out."""

    id: str
    claims: tuple[Claim, ...]
    readings: tuple[Reading, ...]
    reserved_at_s: float
    """Unix time, on the store's clock: settling changes the buckets of that moment."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The claim without room that has to wait longest. Nothing was reserved."""

    claim: Claim
    readings: tuple[Reading, ...]
    retry_after_s: float | None
    """None where waiting does not help: the claim alone is larger than the limit."""
