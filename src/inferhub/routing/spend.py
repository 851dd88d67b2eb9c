"""What calls that spilled over have cost in the last hour: a sliding sum. Kept by `router`, one per route."""

from __future__ import annotations

HOUR_S = 3600
_BUCKET_S = 60
"""The hour slides by minutes; a minute is let go when all of it is an hour old."""


class HourlySpend:
    """Billionths of a US dollar. What a call may cost is added at its start, and corrected at its end."""

    __slots__ = ("_by_minute", "_total")

    def __init__(self) -> None:
        self._by_minute: dict[int, int] = {}
        """Oldest first."""
        self._total = 0

    def total(self, now_s: float) -> int:
        oldest = int(now_s // _BUCKET_S) - HOUR_S // _BUCKET_S
        while self._by_minute and (minute := next(iter(self._by_minute))) < oldest:
            self._total -= self._by_minute.pop(minute)
        return self._total

    def add(self, nano_usd: int, now_s: float) -> int:
        """Returns what `correct` wants to know."""
        self.total(now_s)
        minute = int(now_s // _BUCKET_S)
        self._by_minute[minute] = self._by_minute.get(minute, 0) + nano_usd
        self._total += nano_usd
        return minute

    def correct(self, minute: int, by_nano_usd: int) -> None:
        """In the minute of its `add`, so that both leave together."""
        if minute in self._by_minute:
            self._by_minute[minute] += by_nano_usd
            self._total += by_nano_usd
