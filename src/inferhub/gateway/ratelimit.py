"""The `x-ratelimit-…` headers: how full the caller's tightest limits are. On answers and on errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from inferhub.core.quota import Reading, Unit

Headers = list[tuple[bytes, bytes]]

_NAMES = {
    unit: tuple(f"x-ratelimit-{what}-{unit}".encode() for what in ("limit", "remaining", "reset"))
    for unit in (Unit.REQUESTS, Unit.TOKENS)
}


def ratelimit_headers(readings: Sequence[Reading]) -> Headers:
    """Of several limits of one unit, the one with the least left."""
    tightest: dict[Unit, Reading] = {}
    for reading in readings:
        unit = reading.meter.unit
        if unit in _NAMES and (unit not in tightest or reading.remaining < tightest[unit].remaining):
            tightest[unit] = reading
    headers: Headers = []
    for unit, reading in tightest.items():
        values = (str(reading.meter.limit), str(reading.remaining), go_duration(reading.reset_s))
        headers += [(name, value.encode()) for name, value in zip(_NAMES[unit], values, strict=True)]
    return headers


def go_duration(seconds: float) -> str:
    """As Go prints a duration, to the millisecond and rounded up: `0s`, `120ms`, `1.5s`, `6m0s`, `1h0m0s`."""
    total_ms = max(0, math.ceil(round(seconds * 1000, 3)))
    if total_ms == 0:
        return "0s"
    if total_ms < 1000:
        return f"{total_ms}ms"
    whole_s, ms = divmod(total_ms, 1000)
    minutes, s = divmod(whole_s, 60)
    text = f"{s}.{ms:03d}".rstrip("0") + "s" if ms else f"{s}s"
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60}m{text}"
    return f"{minutes}m{text}" if minutes else text
