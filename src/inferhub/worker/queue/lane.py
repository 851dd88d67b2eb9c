"""The slots of one model and the queue in front of them. Made for one event loop.

`loaded` enters it for every call. It knows tickets only: a waiting call is taken out by cancelling its task,
and one that loses its place is told so by an error.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from inferhub.core.call import Criticality
from inferhub.core.errors import DeadlineExceeded, Overloaded
from inferhub.worker.queue.fair import Entry, Ticket
from inferhub.worker.queue.order import Order
from inferhub.worker.queue.rate import DrainRate

_RETRY_AFTER_S = (1.0, 60.0)
_ANY = Ticket()


class Lane:
    """At most `slots` calls run and `queue_limit` wait."""

    def __init__(self, slots: int, queue_limit: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.running = 0
        self._slots = slots
        self._queue_limit = queue_limit
        self._clock = clock
        self._waiting = Order()
        self._running_cost = 0.0
        self._rate = DrainRate()

    @property
    def queued(self) -> int:
        return len(self._waiting)

    @property
    def pending_cost(self) -> float:
        """Of all that waits and runs."""
        return self._waiting.cost + self._running_cost

    @property
    def s_per_cost(self) -> float:
        return self._rate.s_per_cost

    @asynccontextmanager
    async def slot(self, ticket: Ticket = _ANY) -> AsyncIterator[None]:
        """Hold a slot. Raises `Overloaded` when there is no room, or no hope to be in time."""
        await self._enter(ticket)
        done: float | None = None
        self._running_cost += ticket.cost
        self._rate.began(self._clock())
        try:
            yield
            done = ticket.cost
        finally:
            self._rate.ended(self._clock(), done)
            self._running_cost = self._running_cost - ticket.cost if self.running > 1 else 0.0
            self._leave()

    async def _enter(self, ticket: Ticket) -> None:
        if self.running < self._slots:
            self.running += 1
            return
        self._refuse_hopeless(ticket)
        if len(self._waiting) >= self._queue_limit:
            self._make_room(ticket)
        turn = asyncio.get_running_loop().create_future()
        entry = self._waiting.add(ticket, turn, self._clock())
        try:
            await turn
        except asyncio.CancelledError:
            self._waiting.remove(entry)
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                # The slot was handed over in the very moment the call was cancelled: pass it on.
                self._leave()
            raise

    def _refuse_hopeless(self, ticket: Ticket) -> None:
        """A call that cannot be done in its time is better told so while it can still go elsewhere."""
        ahead = self._waiting.ahead_of(ticket) + self._running_cost
        needed_s = (ahead + ticket.cost) * self._rate.at_best(self._slots)
        left_s = ticket.deadline_s - self._clock()
        if needed_s > left_s:
            raise self._refusal(
                f"The answer would take {needed_s:.1f} s from now, and the call has {max(left_s, 0):.1f} s."
            )

    def _make_room(self, ticket: Ticket) -> None:
        victim: Entry | None = self._waiting.newest_below(ticket.criticality)
        if victim is None:
            raise self._refusal(f"All {self._slots} slots are busy and {self.queued} calls wait already.")
        self._waiting.remove(victim)
        if not victim.value.done():
            kind = ticket.criticality.name.lower()
            refusal = self._refusal(f"The queue is full and a {kind} call took the place.")
            if victim.ticket.criticality is Criticality.BATCH:
                refusal.reason = "shed_batch"
            victim.value.set_exception(refusal)

    def _leave(self) -> None:
        now_s = self._clock()
        while (entry := self._waiting.pop(now_s)) is not None:
            turn: asyncio.Future[None] = entry.value
            # One that was cancelled stays in the queue until its task runs; it must not swallow the slot.
            if turn.done():
                continue
            if entry.ticket.deadline_s <= now_s:
                turn.set_exception(DeadlineExceeded("The call's time was over in the queue of its model."))
                continue
            turn.set_result(None)
            return
        self.running -= 1

    def _refusal(self, message: str) -> Overloaded:
        pending_s = self.pending_cost * self.s_per_cost
        shortest_s, longest_s = _RETRY_AFTER_S
        refusal = Overloaded(message, retry_after_s=min(longest_s, max(shortest_s, pending_s)))
        refusal.pending_s = pending_s
        return refusal
