"""All gateway processes together: kept, replaced one after the other, drained.

Made by `service`, which hears the signals; `scrape` looks at it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from inferhub.core.errors import InferHubError
from inferhub.gateway.turns import ABSENT, Board
from inferhub.supervisor.child import Child
from inferhub.supervisor.slot import Common, Muster, Slot

_log = logging.getLogger(__name__)

KILL_MARGIN_S = 10.0
"""On top of the drain's grace, before a process that does not end is killed."""
SIDE_BY_SIDE = 2
"""Lives that one place may have at the same time: a process and its successor."""


class Crew:
    def __init__(self, of: int, muster: Muster, drain_grace_s: float) -> None:
        self.slots = [Slot(number, number, SIDE_BY_SIDE * of, muster) for number in range(of)]
        """Who serves, by number."""
        self.beside: Slot | None = None
        """A successor that does not serve yet, or a predecessor that does no more."""
        self.is_renewing = False
        self._muster = muster
        self._drain_grace_s = drain_grace_s
        self._renewal = asyncio.Event()
        self._keepers: dict[Slot, asyncio.Task[None]] = {}

    def everyone(self) -> Iterator[Slot]:
        yield from self.slots
        if self.beside is not None:
            yield self.beside

    def living(self) -> list[Child]:
        return [slot.child for slot in self.everyone() if slot.child is not None]

    def renew(self) -> None:
        """Replace every process, one after the other; asked again meanwhile, it begins again afterwards."""
        self._renewal.set()

    async def keep(
        self, common: Common, board: Board, retire: Callable[[Slot, Child], None], stopped: asyncio.Event
    ) -> None:
        """Fill all slots until `stopped`, or until one raises."""

        def on_end(slot: Slot, child: Child) -> None:
            board.write(slot.seat, ABSENT)
            retire(slot, child)

        trouble: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def start(slot: Slot) -> None:
            keeper = asyncio.create_task(slot.keep(common, on_end), name=f"process {slot.name}")
            keeper.add_done_callback(lambda _: self._look_at(slot, keeper, trouble))
            self._keepers[slot] = keeper

        for slot in self.slots:
            start(slot)
        stop = asyncio.create_task(stopped.wait(), name="stop")
        renewing = asyncio.create_task(self._renew_when_asked(start), name="renew")
        try:
            ends: list[asyncio.Future[Any]] = [stop, renewing, trouble]
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            tasks = (stop, renewing, *self._keepers.values())
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for each in done:
            each.result()

    def _look_at(self, slot: Slot, keeper: asyncio.Task[None], trouble: asyncio.Future[None]) -> None:
        """One that ends by itself ends everything, unless it was told to leave or never served."""
        is_successor = slot is self.beside and not slot.has_served.is_set()
        if (
            not keeper.cancelled()
            and (error := keeper.exception())
            and not is_successor
            and not trouble.done()
        ):
            trouble.set_exception(error)

    async def drain(self) -> None:
        """Let running calls finish, and make sure of the end."""
        leaving = [(slot.number, slot.child) for slot in self.everyone() if slot.child is not None]
        for _, child in leaving:
            child.signal(signal.SIGTERM)
        ends = [asyncio.create_task(_end(number, child)) for number, child in leaving]
        limit_s = self._drain_grace_s + KILL_MARGIN_S
        _, late = await asyncio.wait(ends, timeout=limit_s) if ends else ((), ())
        if late:
            self.kill()
            await asyncio.wait(late)

    def kill(self) -> None:
        for child in self.living():
            child.signal(signal.SIGKILL)

    async def _renew_when_asked(self, start: Callable[[Slot], None]) -> NoReturn:
        # While the first ones come, everything is as new as it will be.
        await self._muster.key_is_made.wait()
        while True:
            await self._renewal.wait()
            self._renewal.clear()
            self.is_renewing = True
            _log.info("all processes are replaced, one after the other")
            for number in range(len(self.slots)):
                if not await self._replace(number, start):
                    break
            else:
                _log.info("all processes have been replaced")
            self.is_renewing = False

    async def _replace(self, number: int, start: Callable[[Slot], None]) -> bool:
        """The new one serves before the old one is told to leave. False where it cannot serve."""
        old = self.slots[number]
        of = len(self.slots)
        seat = old.seat - of if old.seat >= of else old.seat + of
        new = self.beside = Slot(number, seat, SIDE_BY_SIDE * of, self._muster, restarts=old.restarts)
        start(new)
        keeper = self._keepers[new]
        served = asyncio.create_task(new.has_served.wait(), name=f"successor {new.name}")
        try:
            await asyncio.wait([keeper, served], return_when=asyncio.FIRST_COMPLETED)
        finally:
            served.cancel()
        if not new.has_served.is_set():
            del self._keepers[new]
            self.beside = None
            why = keeper.exception()
            if not isinstance(why, InferHubError):
                keeper.result()
            _log.error("process %d is not replaced, and goes on; its successor said: %s", number, why)
            return False
        self.slots[number], self.beside = new, old
        await self._dismiss(old)
        self.beside = None
        return True

    async def _dismiss(self, old: Slot) -> None:
        keeper = self._keepers[old]
        if not old.leave():
            # Between two lives: there is nobody to wait for.
            keeper.cancel()
        _, late = await asyncio.wait([keeper], timeout=self._drain_grace_s + KILL_MARGIN_S)
        if late and old.child is not None:
            _log.warning("process %d does not end; it is killed", old.number)
            old.child.signal(signal.SIGKILL)
        await asyncio.wait([keeper])
        del self._keepers[old]
        with contextlib.suppress(asyncio.CancelledError):
            keeper.result()


async def _end(number: int, child: Child) -> None:
    ended = await child.wait()
    if child.has_failed:
        _log.error("process %d %s while it drained", number, ended)
