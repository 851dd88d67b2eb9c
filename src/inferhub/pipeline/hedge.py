"""Two legs of one call at once: the first that is heard goes on alone, the other is cancelled at that moment.

The attempt ring runs it for routes with `hedge_after_s`. Every task it starts has ended when it returns; a
leg that fails leaves the other one running. It chooses no endpoint and blames none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple, Protocol

from inferhub.core.call import Handler
from inferhub.pipeline.leg import Leg


class Records(Protocol):
    """Who writes down what became of a leg that does not count."""

    def failed(self, leg: Leg, error: BaseException) -> None: ...

    def beaten(self, leg: Leg) -> None: ...


class Outcome(NamedTuple):
    """Of the leg that counts: the one that was heard, or else the one that failed last."""

    leg: Leg
    error: BaseException | None


class Race:
    """Made for one use. Its legs are made with its `claim`."""

    def __init__(self, inner: Handler, records: Records) -> None:
        self._inner = inner
        self._records = records
        self._running: dict[Leg, asyncio.Task[None]] = {}
        self._winner: Leg | None = None
        self._last: Outcome | None = None
        self._is_decided = asyncio.Event()

    async def run(self, first: Leg, second: Callable[[], Leg | None], after_s: float) -> Outcome:
        """Asks for the `second` leg once the first has been silent for `after_s`; None: there is none."""
        async with asyncio.TaskGroup() as group:
            self._send(group, first)
            if await self._is_open_after(after_s):
                leg = second()
                if leg is not None:
                    self._send(group, leg)
        assert self._last is not None  # noqa: S101 - a leg that did not end was cancelled with the group
        return self._last

    def claim(self, leg: Leg) -> None:
        """The leg is heard: it wins, unless another one has."""
        if self._winner is not None:
            raise asyncio.CancelledError
        self._winner = leg
        for other, task in self._running.items():
            if other is not leg:
                self._records.beaten(other)
                task.cancel()
        self._is_decided.set()

    async def _is_open_after(self, after_s: float) -> bool:
        try:
            async with asyncio.timeout(after_s):
                await self._is_decided.wait()
        except TimeoutError:
            return not self._is_decided.is_set()
        return False

    def _send(self, group: asyncio.TaskGroup, leg: Leg) -> None:
        self._running[leg] = group.create_task(self._go(leg))

    async def _go(self, leg: Leg) -> None:
        """Raises nothing but its cancellation, so that the group ends no other leg for this one."""
        try:
            await leg.run(self._inner)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._finish(leg, error)
        else:
            self._finish(leg, None)
        finally:
            del self._running[leg]
            self._is_decided.set()

    def _finish(self, leg: Leg, error: BaseException | None) -> None:
        if self._winner not in (None, leg):
            return
        if error is not None and self._winner is None and len(self._running) > 1:
            # The other leg carries on: this is a failure on the way, not the end.
            self._records.failed(leg, error)
        else:
            self._last = Outcome(leg, error)
