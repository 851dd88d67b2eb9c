"""From usage to bills: the invoice of a month, and how the ledger compares with a provider's own report.

Asked by the admin API and the CLI. Exact decimals all the way; reads the store page by page.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal

from inferhub.core.errors import Invalid
from inferhub.stores.usage.base import MAX_PAGE, Dimension, UsageFilter, UsageRow, UsageStore

_MONTH = re.compile(r"(20[0-9]{2})-(0[1-9]|1[0-2])")
_CENT = Decimal("0.01")


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """What one project used of one model in the month."""

    project_id: str
    model: str
    calls: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    audio_seconds: Decimal
    characters: int
    images: int
    cost_usd: Decimal
    """Exact; only the total is rounded."""


@dataclass(frozen=True, slots=True)
class Invoice:
    tenant_id: str
    month: str
    is_final: bool
    """False while the month still runs."""
    lines: tuple[InvoiceLine, ...]
    cost_usd: Decimal
    """The exact sum of the lines."""
    total_usd: Decimal
    """Rounded half up to cents."""
    uncounted_calls: int
    """Calls whose usage nobody reported and nobody could estimate; they are billed at nothing."""


@dataclass(frozen=True, slots=True)
class Reported:
    """One day of one model, as the provider counted it."""

    day: str
    model: str
    input_tokens: int
    output_tokens: int
    calls: int | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """Both sides of one day of one model. A side that does not know the pair counts zero."""

    day: str
    model: str
    ledger_input_tokens: int
    provider_input_tokens: int
    ledger_output_tokens: int
    provider_output_tokens: int
    ledger_calls: int
    provider_calls: int | None
    is_beyond: bool
    """Whether any count differs by more than the tolerance."""


def whole_month(text: str) -> tuple[int, int]:
    """Unix milliseconds of the first moment of `YYYY-MM` (UTC) and of the next month's."""
    match = _MONTH.fullmatch(text)
    if not match:
        raise Invalid(f"A month is written YYYY-MM; got {text[:40]!r}.", param="month")
    first = datetime(int(match[1]), int(match[2]), 1, tzinfo=UTC)
    following = (first + timedelta(days=32)).replace(day=1)
    return int(first.timestamp() * 1000), int(following.timestamp() * 1000)


async def all_rows(store: UsageStore, where: UsageFilter, by: Sequence[Dimension]) -> AsyncIterator[UsageRow]:
    """Every row of a summary, however many pages it has."""
    after: tuple[str, ...] | None = None
    while True:
        page = await store.summary(where, by, after=after, limit=MAX_PAGE)
        for row in page.rows:
            yield row
        if page.next_after is None:
            return
        after = page.next_after


async def invoice(store: UsageStore, tenant_id: str, month: str) -> Invoice:
    """Raises `Invalid` for what is no month."""
    from_ms, until_ms = whole_month(month)
    where = UsageFilter(from_ms, until_ms, tenant_id)
    lines = tuple([_line(row) async for row in all_rows(store, where, ("project", "model"))])
    cost = sum((line.cost_usd for line in lines), Decimal(0))
    uncounted = [row async for row in all_rows(store, where, ("source",)) if row.keys == ("unknown",)]
    return Invoice(
        tenant_id,
        month,
        datetime.now(UTC).timestamp() * 1000 >= until_ms,
        lines,
        cost,
        cost.quantize(_CENT, ROUND_HALF_UP),
        sum(row.calls for row in uncounted),
    )


def _line(row: UsageRow) -> InvoiceLine:
    project_id, model = row.keys
    return InvoiceLine(
        project_id=project_id,
        model=model,
        calls=row.calls,
        input_tokens=row.input_tokens,
        cached_tokens=row.cached_tokens,
        output_tokens=row.output_tokens,
        reasoning_tokens=row.reasoning_tokens,
        audio_seconds=Decimal(row.audio_ms) / 1000,
        characters=row.characters,
        images=row.images,
        cost_usd=row.cost_usd,
    )


async def reconcile(
    store: UsageStore, reported: Iterable[Reported], tolerance: float
) -> tuple[Difference, ...]:
    """Every (day, model) that either side knows, between the first and the last day of the report.

    Only models that the report names are compared: the others have other providers. Rows of one day and
    model add up. Raises `Invalid` for what is no day.
    """
    theirs: dict[tuple[str, str], Reported] = {}
    for row in reported:
        known = theirs.get((row.day, row.model))
        theirs[row.day, row.model] = _sum(known, row) if known else row
    if not theirs:
        return ()
    begins = [_day_ms(day) for day, _ in theirs]
    models = {model for _, model in theirs}
    where = UsageFilter(min(begins), max(begins) + 24 * 3600 * 1000)
    ours = {
        (row.keys[0], row.keys[1]): row
        async for row in all_rows(store, where, ("day", "model"))
        if row.keys[1] in models
    }
    return tuple(
        _difference(pair, ours.get(pair), theirs.get(pair), tolerance) for pair in sorted({*ours, *theirs})
    )


def _sum(one: Reported, other: Reported) -> Reported:
    is_counted = one.calls is not None and other.calls is not None
    return Reported(
        one.day,
        one.model,
        one.input_tokens + other.input_tokens,
        one.output_tokens + other.output_tokens,
        (one.calls or 0) + (other.calls or 0) if is_counted else None,
    )


def _day_ms(day: str) -> int:
    try:
        if len(day) != len("2027-01-31"):
            raise ValueError(day)
        return int(datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC).timestamp() * 1000)
    except ValueError as error:
        raise Invalid(f"A day is written YYYY-MM-DD; got {day[:40]!r}.", param="rows.day") from error


def _difference(
    pair: tuple[str, str], ours: UsageRow | None, theirs: Reported | None, tolerance: float
) -> Difference:
    ledger_input = ours.input_tokens + ours.cached_tokens if ours else 0
    ledger_output = ours.output_tokens + ours.reasoning_tokens if ours else 0
    provider_input = theirs.input_tokens if theirs else 0
    provider_output = theirs.output_tokens if theirs else 0
    calls = theirs.calls if theirs else 0
    return Difference(
        *pair,
        ledger_input,
        provider_input,
        ledger_output,
        provider_output,
        ours.calls if ours else 0,
        calls,
        _differs(ledger_input, provider_input, tolerance)
        or _differs(ledger_output, provider_output, tolerance)
        or (calls is not None and _differs(ours.calls if ours else 0, calls, tolerance)),
    )


def _differs(one: int, other: int, tolerance: float) -> bool:
    return abs(one - other) > tolerance * max(one, other)
