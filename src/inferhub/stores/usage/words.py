"""What people say when they ask for usage: a day or a time, and what to sum up by. Pure.

Used by the admin API and the CLI, so that both understand the same.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import get_args

from inferhub.core.errors import Invalid
from inferhub.stores.usage.base import MAX_DIMENSIONS, Dimension

DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)


def dimensions_of(text: str) -> tuple[Dimension, ...]:
    """`tenant,day` → both. Raises `Invalid`."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    found = tuple(known for name in names for known in DIMENSIONS if known == name)
    if len(found) != len(names) or not 1 <= len(names) <= MAX_DIMENSIONS or len(set(names)) != len(names):
        raise Invalid(
            f"'by' is one to four different ones of {', '.join(DIMENSIONS)}, separated by commas; "
            f"got {text[:100]!r}.",
            param="by",
        )
    return found


def moment_of(text: str, param: str) -> datetime:
    """`2027-01-31` (its first moment in UTC) or a time. Raises `Invalid`."""
    try:
        if len(text) == 10:
            return datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC)
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise Invalid(
            f"'{param}' is a day such as 2027-01-31 or a time such as 2027-01-31T12:00:00Z; "
            f"got {text[:40]!r}.",
            param=param,
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def period_ms(start: str | None, until: str | None) -> tuple[int, int]:
    """Unix milliseconds of a period's first moment and of its end: this month until now, unless said.

    Raises `Invalid`.
    """
    now = datetime.now(UTC)
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    begin = moment_of(start, "from") if start else month
    # What was used this minute belongs to "until now", also by a clock that goes a little fast.
    end = moment_of(until, "until") if until else now + timedelta(minutes=1)
    if begin >= end:
        raise Invalid("'from' must be before 'until'.", param="from")
    return int(begin.timestamp() * 1000), int(end.timestamp() * 1000)
