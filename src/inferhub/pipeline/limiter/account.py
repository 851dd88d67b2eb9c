"""The arithmetic of leased blocks: pure, no clock and no store of its own. Used by `leased` alone.

A cell holds the blocks of one meter that the store forgets together: those of one second of a sliding
minute, of a calendar day or month, or of no time at all (concurrency). Its blocks are always worth
`free + held + unpushed`.
"""

from __future__ import annotations

import asyncio
import math

from inferhub.core.quota import NANO_USD, Meter, Reading, Refusal, Reservation, Unit, Window

LEASED_FROM: dict[Unit, int] = {
    Unit.REQUESTS: 1_000,
    Unit.TOKENS: 100_000,
    Unit.CONCURRENT: 256,
    Unit.AUDIO_SECONDS: 3_600,
    Unit.CHARACTERS: 100_000,
    Unit.IMAGES: 1_000,
    Unit.PIXELS: 1_000_000_000,
    Unit.USD: 10 * NANO_USD,
}
"""From which limit on `auto` leases: where one in a hundred is still many calls."""

BLOCKS_PER_LIMIT = 100
_MIN_CALLS_PER_BLOCK = 4
# Periods are a second or more apart; the clocks that tell them may differ by less.
_SAME_PERIOD_S = 0.5


class Cell:
    """Blocks of one meter and one period, and the calls that are served from them."""

    __slots__ = ("blocks", "ends_at", "free", "held", "period", "unpushed")

    def __init__(self, period: float, ends_at: float) -> None:
        self.period = period
        """When it leaves the window, on the store's clock; tells periods apart."""
        self.ends_at = ends_at
        """From then on, on this process's monotonic clock, nothing new is taken from it."""
        self.free = 0
        self.held = 0
        """Estimates of calls that run."""
        self.unpushed = 0
        """Used by calls that ended, and not yet told to the store."""
        self.blocks: list[tuple[Reservation, int]] = []

    def add(self, block: Reservation, amount: int, ends_at: float) -> None:
        self.blocks.append((block, amount))
        self.free += amount
        self.ends_at = max(self.ends_at, ends_at)

    def give(self, reserved: int, used: int) -> None:
        """A call that was served from here has ended."""
        self.held -= reserved
        self.unpushed += used
        self.free += reserved - used

    def ripe(self, *, keeps_free: bool) -> list[tuple[Reservation, int]]:
        """Take out the blocks that the store can be told about, with what was used of each.

        What remains still covers every call that runs. With `keeps_free` only blocks that are used up go.
        """
        found = []
        for block, amount in tuple(self.blocks):
            used = min(self.unpushed, amount)
            if keeps_free and used < amount:
                break
            if len(self.blocks) == 1:
                if self.held:
                    break
                # The last one carries what went beyond the estimates.
                used = self.unpushed
            elif self.free - amount + used < min(self.free, 0):
                continue
            self.blocks.remove((block, amount))
            self.free += used - amount
            self.unpushed -= used
            found.append((block, used))
        return found


class Account:
    """One meter as this process sees it."""

    __slots__ = (
        "_is_calendar", "_known_at", "_marked_at", "_rate", "_reset_s", "_taken_at_mark", "_used",
        "block_at_most", "cell", "closed", "is_leased", "last_take", "low_water", "meter", "no_block_until",
        "refill", "refusal", "refused_until", "retry_at", "taken",
    )  # fmt: skip

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.is_leased = is_leased(meter)
        self.block_at_most = meter.limit // BLOCKS_PER_LIMIT
        self._is_calendar = meter.window in (Window.DAY, Window.MONTH)
        self.cell: Cell | None = None
        """Where new calls are served from."""
        self.closed: list[Cell] = []
        """Cells of past periods, some calls of which still run."""
        self.refill: asyncio.Task[None] | None = None
        self.no_block_until = 0.0
        self.refusal: Refusal | None = None
        self.refused_until = 0.0
        self.retry_at = 0.0
        self.last_take = 0.0
        self.low_water = 0
        """With less than this left, it is time to think of the next block."""
        self.taken = 0
        """What was asked for so far, from cells and from the store."""
        self._marked_at = 0.0
        self._taken_at_mark = 0
        self._rate = 0.0
        self._used = 0
        self._reset_s = 0.0
        self._known_at = 0.0

    def adopt(self, meter: Meter) -> None:
        """The limit was changed: what was leased under the old one goes back."""
        self.close_cell()
        self.meter = meter
        self.is_leased = is_leased(meter)
        self.block_at_most = meter.limit // BLOCKS_PER_LIMIT
        self.refused_until = self.no_block_until = 0.0

    def covers(self, amount: int, now: float) -> bool:
        cell = self.cell
        return cell is not None and cell.free >= amount and now < cell.ends_at

    def next_block(self, amount: int, now: float) -> int:
        """How large a block to fetch now; 0 for none. `amount` is what one call asks for."""
        if not self.is_leased or self.refill is not None or now < self.no_block_until:
            return 0
        size = min(self.block_at_most, self._demand(now) // 2)
        if size < max(1, amount) * _MIN_CALLS_PER_BLOCK:
            return 0
        cell = self.cell
        free = cell.free if cell is not None and now < cell.ends_at else 0
        return size if free < size // 2 else 0

    def _demand(self, now: float) -> int:
        """How much a second asks for: what the last one did, or what this one did so far."""
        taken = self.taken - self._taken_at_mark
        elapsed_s = now - self._marked_at
        if elapsed_s < 1:
            return max(taken, int(self._rate))
        self._rate = taken / elapsed_s
        self._marked_at, self._taken_at_mark = now, self.taken
        return int(self._rate)

    def add(self, block: Reservation, amount: int, sent_at: float) -> None:
        """`sent_at` is when the store was asked, on the monotonic clock: never later than it counted."""
        window, reading = self.meter.window, block.readings[0]
        self.learn(reading, sent_at)
        ends_at = sent_at + lasts_s(window, reading.reset_s)
        period = 0.0 if window is Window.NOW else block.reserved_at_s + reading.reset_s
        cell = self.cell
        if cell is None or period - cell.period > _SAME_PERIOD_S:
            self.close_cell()
            cell = self.cell = Cell(period, ends_at)
        elif cell.period - period > _SAME_PERIOD_S:
            # An answer that came late: nothing is spent from it, it only has to go back.
            cell = Cell(period, ends_at)
            self.closed.append(cell)
        cell.add(block, amount, ends_at)
        self.low_water = amount // 2

    def close_cell(self) -> None:
        if self.cell is not None:
            self.closed.append(self.cell)
            self.cell = None

    def learn(self, reading: Reading, now: float) -> None:
        self._used, self._reset_s, self._known_at = reading.used, reading.reset_s, now

    def reading(self, now: float) -> Reading:
        """What the store said last, without the part of the block that nobody has used."""
        cell = self.cell
        used = self._used - cell.free if cell is not None else self._used
        reset_s = self._reset_s
        if self._is_calendar:
            reset_s = max(0.0, reset_s - (now - self._known_at))
        return Reading(self.meter, used if used > 0 else 0, reset_s)


def is_leased(meter: Meter) -> bool:
    if meter.mode == "auto":
        return meter.limit >= LEASED_FROM[meter.unit]
    return meter.mode == "lease"


def lasts_s(window: Window, reset_s: float) -> float:
    """How long after the store counted a block it may be spent; `reset_s` is what the store said then.

    A block leaves a sliding minute `reset_s` after it was counted. What is spent from it no later than
    `reset_s - 60` is therefore counted for 60 s from then on, as if it had been counted when it was spent.
    A calendar's block may be spent until its day or month ends.
    """
    if window is Window.NOW:
        return math.inf
    return reset_s - (_MINUTE_S if window is Window.MINUTE else 0.0) - _ROUNDING_S


_MINUTE_S = 60.0
# Stores count in milliseconds.
_ROUNDING_S = 0.002
