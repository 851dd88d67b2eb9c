"""Turns events into rows that every usage store can hold, and back. Pure; used by the three stores.

What a store cannot hold is cut here and for all of them alike: a single event that is refused would
stop the spool that delivers it, and everything behind it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any

from inferhub.core.usage import UsageEvent

COLUMNS = tuple(field.name for field in fields(UsageEvent))
"""A row's values are in this order."""

MAX_TEXT = 512
MAX_COUNT = 10**12
MAX_COST_USD = 10**6
"""Of one call: sums over thousands of calls that all claim so much still fit into 64 bits."""
MAX_AT_MS = 4_102_444_799_999
"""The end of the year 2099; ClickHouse's calendar is the shortest."""

_TEXTS = tuple(
    COLUMNS.index(name)
    for name in (
        "id", "request_id", "tenant_id", "project_id", "key_id", "modality", "model", "requested_model",
        "endpoint", "status", "cache", "source", "price_version",
    )
)  # fmt: skip
_COUNTS = tuple(
    COLUMNS.index(name)
    for name in (
        "attempts", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "total_tokens",
        "audio_ms", "characters", "images", "pixels",
    )
)  # fmt: skip
_AT_MS = COLUMNS.index("at_ms")
_LATENCY = COLUMNS.index("latency_ms")
_FIRST_TOKEN = COLUMNS.index("first_token_ms")
_IS_STREAM = COLUMNS.index("is_stream")
COST = COLUMNS.index("cost_usd")

_ATTO = Decimal(1).scaleb(-18)
# Python's usual 28 digits would round sums.
_EXACT = Context(prec=80, rounding=ROUND_HALF_EVEN)


def to_row(event: UsageEvent) -> list[Any]:
    """In the order of `COLUMNS`, within the limits, the cost with 18 decimals."""
    row: list[Any] = [getattr(event, name) for name in COLUMNS]
    for index in _TEXTS:
        value = row[index]
        if not value.isascii() or len(value) > MAX_TEXT or "\0" in value:
            row[index] = clip(value)
    for index in _COUNTS:
        if not 0 <= row[index] <= MAX_COUNT:
            row[index] = min(max(row[index], 0), MAX_COUNT)
    row[_AT_MS] = min(max(row[_AT_MS], 0), MAX_AT_MS)
    row[_LATENCY] = _duration(row[_LATENCY])
    if row[_FIRST_TOKEN] is not None:
        row[_FIRST_TOKEN] = _duration(row[_FIRST_TOKEN])
    row[COST] = _cost(row[COST])
    return row


def from_row(row: Sequence[Any]) -> UsageEvent:
    values: list[Any] = list(row)
    values[_IS_STREAM] = bool(values[_IS_STREAM])
    values[COST] = plain(values[COST])
    return UsageEvent(**dict(zip(COLUMNS, values, strict=True)))


def plain(cost: Decimal) -> Decimal:
    """The same amount without an exponent or trailing zeros, for people."""
    return Decimal(format(_EXACT.normalize(cost), "f"))


def to_nano_and_atto(cost: Decimal) -> tuple[int, int]:
    """Whole nano-dollars, and the remainder in billionths of one: sums of both fit into 64 bits."""
    return divmod(int(_EXACT.scaleb(cost, 18)), 10**9)


def from_nano_and_atto(nano: int, atto: int) -> Decimal:
    return _EXACT.scaleb(Decimal(nano * 10**9 + atto), -18)


def clip(value: str) -> str:
    """As every store and stream can hold it."""
    # No database takes a lone surrogate, and PostgreSQL no NUL.
    return value.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")[:MAX_TEXT]


def _duration(value: float) -> float:
    return min(max(value, 0.0), float(MAX_COUNT)) if math.isfinite(value) else 0.0


def _cost(value: Decimal) -> Decimal:
    if not value.is_finite():
        return Decimal(0)
    return _EXACT.quantize(min(max(value, Decimal(-MAX_COST_USD)), Decimal(MAX_COST_USD)), _ATTO)
