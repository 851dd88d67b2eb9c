"""Writes the SQL of the questions, in three dialects. Pure; used by the three stores.

Whatever a caller says travels as a bound parameter; names of columns come from the tables here alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inferhub.core.errors import Invalid
from inferhub.stores.usage.base import (
    MAX_DIMENSIONS,
    MAX_PAGE,
    Dimension,
    Interval,
    Page,
    Step,
    UsageFilter,
    UsageRow,
)
from inferhub.stores.usage.rows import plain

STEP_MS: Mapping[Step, int] = {"minute": 60_000, "hour": 3_600_000, "day": 86_400_000}

SUMS = (
    "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens",
    "audio_ms", "characters", "images", "pixels",
)  # fmt: skip

ERRORS = "SUM(CASE WHEN status IN ('ok', 'cancelled') THEN 0 ELSE 1 END)"

_PERCENTILES = ("latency_ms_p50", "latency_ms_p95", "first_token_ms_p50", "first_token_ms_p95")

_COLUMNS: Mapping[Dimension, str] = {
    "tenant": "tenant_id",
    "project": "project_id",
    "key": "key_id",
    "modality": "modality",
    "model": "model",
    "status": "status",
    "source": "source",
}
_EQUALS = ("tenant_id", "project_id", "key_id", "model", "modality")


@dataclass(frozen=True, slots=True)
class Dialect:
    """Where the databases differ."""

    placeholder: Callable[[int, Any], str]
    """Of the parameter with this number, from 1, and this value."""
    day: str
    """The UTC day of `at_ms` as text."""
    bucket: str
    """The beginning of the interval of `at_ms`; `{step}` is its length."""
    costs: tuple[str, ...]
    table: str = "usage_events"
    percentiles: tuple[str, ...] = ()
    """Latency and first token of a group; none where the database has no such function."""


@dataclass(slots=True)
class Query:
    """A statement under construction, and what is bound to it."""

    dialect: Dialect
    values: list[Any] = field(default_factory=list)

    def bind(self, value: Any) -> str:
        self.values.append(value)
        return self.dialect.placeholder(len(self.values), value)

    def where(self, where: UsageFilter, time: str = "at_ms") -> str:
        terms = [f"{time} >= {self.bind(where.from_ms)}", f"{time} < {self.bind(where.until_ms)}"]
        for column in _EQUALS:
            value = getattr(where, column)
            if value is not None:
                terms.append(f"{column} = {self.bind(value)}")
        return " AND ".join(terms)

    def compare(self, names: Sequence[str], operator: str, values: Sequence[Any]) -> str:
        """All of `names` against all of `values`, the first weighing most."""
        return f"({', '.join(names)}) {operator} ({', '.join(map(self.bind, values))})"

    def key(self, dimension: Dimension) -> str:
        return self.dialect.day if dimension == "day" else _COLUMNS[dimension]


def check_dimensions(by: Sequence[Dimension], after: Sequence[str] | None) -> None:
    """Raise `Invalid` for what cannot be asked."""
    unknown = [name for name in by if name != "day" and name not in _COLUMNS]
    if unknown or len(by) > MAX_DIMENSIONS or len(set(by)) != len(by):
        raise Invalid(
            f"Usage is summed by up to {MAX_DIMENSIONS} different ones of "
            f"{', '.join(sorted([*_COLUMNS, 'day']))}.",
            param="by",
        )
    if after is not None and len(after) != len(by):
        raise Invalid(f"A page goes on after {len(by)} keys, not {len(after)}.", param="after")


def check_limit(limit: int) -> None:
    if not 1 <= limit <= MAX_PAGE:
        raise Invalid(f"A page has 1 to {MAX_PAGE} rows.", param="limit")


def check_step(step: Step) -> None:
    if step not in STEP_MS:
        raise Invalid(f"A step is one of {', '.join(STEP_MS)}.", param="step")


def summary(
    query: Query, where: UsageFilter, by: Sequence[Dimension], after: Sequence[str] | None, limit: int
) -> str:
    """Keys, calls, errors, sums, costs, percentiles: one row more than `limit` where there is a next page."""
    keys = [query.key(dimension) for dimension in by]
    terms = query.where(where)
    if after:
        terms += f" AND {query.compare(keys, '>', after)}"
    sums = [f"SUM({name})" for name in SUMS]
    columns = [*keys, "COUNT(*)", ERRORS, *sums, *query.dialect.costs, *query.dialect.percentiles]
    return (
        f"SELECT {', '.join(columns)} FROM {query.dialect.table} WHERE {terms}{_grouped(keys)} "  # noqa: S608
        f"LIMIT {query.bind(limit + 1)}"
    )


def events(query: Query, where: UsageFilter, after: tuple[int, str] | None, limit: int, columns: str) -> str:
    terms = query.where(where)
    if after is not None:
        terms += f" AND {query.compare(('at_ms', 'id'), '>', after)}"
    return (
        f"SELECT {columns} FROM {query.dialect.table} WHERE {terms} "  # noqa: S608
        f"ORDER BY at_ms, id LIMIT {query.bind(limit)}"
    )


def timeline(query: Query, where: UsageFilter, step: Step, after_ms: int | None, limit: int) -> str:
    """Beginnings, calls, errors, percentiles."""
    bucket = query.dialect.bucket.format(step=STEP_MS[step])
    terms = query.where(where)
    if after_ms is not None:
        terms += f" AND {bucket} > {query.bind(after_ms)}"
    columns = ", ".join([bucket, "COUNT(*)", ERRORS, *query.dialect.percentiles])
    return (
        f"SELECT {columns} FROM {query.dialect.table} WHERE {terms}{_grouped([bucket])} "  # noqa: S608
        f"LIMIT {query.bind(limit)}"
    )


def _grouped(keys: Sequence[str]) -> str:
    if not keys:
        # Without a group a sum over nothing is a row; with one it is none.
        return " HAVING COUNT(*) > 0"
    return f" GROUP BY {', '.join(keys)} ORDER BY {', '.join(keys)}"


def to_page(found: Sequence[Sequence[Any]], dimensions: int, limit: int) -> Page:
    """Rows of keys, calls, errors, sums, cost, percentiles p50, p95 of latency and first token."""
    rows = tuple(_to_usage_row(row, dimensions) for row in found[:limit])
    return Page(rows, rows[-1].keys if len(found) > limit else None)


def _to_usage_row(row: Sequence[Any], size: int) -> UsageRow:
    calls, errors, *sums = map(int, row[size : size + 2 + len(SUMS)])
    cost, *percentiles = row[size + 2 + len(SUMS) :]
    counts = dict(zip(SUMS, sums, strict=True))
    ranks = dict(zip(_PERCENTILES, percentiles, strict=True))
    return UsageRow(tuple(row[:size]), calls, errors, **counts, cost_usd=plain(cost), **ranks)


def to_interval(row: Sequence[Any]) -> Interval:
    return Interval(*map(int, row[:3]), *row[3:])
