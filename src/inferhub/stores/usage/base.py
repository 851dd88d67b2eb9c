"""What can be asked of the usage store: take events once, and answer who used how much for how much.

Written by `stores/spool`'s drain, read by the admin API and the CLI. Never on the path of a request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, Protocol

from inferhub.core.usage import UsageEvent

Dimension = Literal["tenant", "project", "key", "modality", "model", "day", "status", "source"]

Step = Literal["minute", "hour", "day"]

MAX_PAGE = 1000
MAX_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class UsageFilter:
    """Which events. Times are Unix milliseconds, `from_ms` included and `until_ms` not."""

    from_ms: int
    until_ms: int
    tenant_id: str | None = None
    project_id: str | None = None
    key_id: str | None = None
    model: str | None = None
    modality: str | None = None


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Sums over one group. `keys` are in the order of the dimensions asked for; days are `YYYY-MM-DD`.

    Percentiles are of calls that ended `ok`, by nearest rank; None where there is none.
    """

    keys: tuple[str, ...]
    calls: int
    errors: int
    """Neither `ok` nor `cancelled`."""
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    audio_ms: int
    characters: int
    images: int
    pixels: int
    cost_usd: Decimal
    latency_ms_p50: float | None = None
    latency_ms_p95: float | None = None
    first_token_ms_p50: float | None = None
    first_token_ms_p95: float | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Rows in the order of their keys. `next_after` starts the next page; None on the last."""

    rows: tuple[UsageRow, ...]
    next_after: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Interval:
    """How calls went that began in one minute, hour or day."""

    at_ms: int
    """Its beginning."""
    calls: int
    errors: int
    latency_ms_p50: float | None
    latency_ms_p95: float | None
    first_token_ms_p50: float | None
    first_token_ms_p95: float | None


class UsageStore(Protocol):
    """Every method raises `StoreFailed` (or `SetupError` at opening) and nothing foreign.

    A question that no store can answer, such as five dimensions, is `Invalid`. Texts longer than
    `rows.MAX_TEXT`, numbers beyond `rows.MAX_COUNT` and costs beyond 18 decimals are cut to fit: one odd
    event must not keep all later ones out.
    """

    async def write(self, events: Sequence[UsageEvent], *, token: str = "") -> None:
        """Take each event once: an id that is known changes nothing. All of them or none.

        An id always comes with the same tenant and `at_ms`. `token` names the batch where the caller
        has a name for it; a batch that is tried again keeps its name.
        """

    async def summary(
        self,
        where: UsageFilter,
        by: Sequence[Dimension],
        *,
        after: tuple[str, ...] | None = None,
        limit: int = 100,
    ) -> Page:
        """Sums by up to four dimensions, exact to the last decimal of the cost."""

    async def events(
        self, where: UsageFilter, *, after: tuple[int, str] | None = None, limit: int = 100
    ) -> tuple[UsageEvent, ...]:
        """Single calls, oldest first, by (`at_ms`, `id`) after the given pair."""

    async def timeline(
        self, where: UsageFilter, step: Step, *, after_ms: int | None = None, limit: int = 100
    ) -> tuple[Interval, ...]:
        """How calls went over time, oldest first; intervals without a call are left out."""

    async def ping(self) -> None:
        """Raise `StoreFailed` unless the store answers now."""

    async def close(self) -> None: ...
