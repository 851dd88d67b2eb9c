"""A place among the processes that is always filled again. Kept by `service`; `scrape` looks at it.

The number stays with the place: a process that starts again has the one of its predecessor.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from inferhub.core.errors import SetupError
from inferhub.settings import Loaded
from inferhub.settings.plain import plain_settings
from inferhub.supervisor.child import Child
from inferhub.supervisor.messages import Announced, Go, Place

_log = logging.getLogger(__name__)

FIRST_DELAY_S = 0.1
MAX_DELAY_S = 30.0
STABLE_S = 10.0
"""A process that served so long starts counting from the first delay again."""
START_ATTEMPTS = 3
"""Of a process that never served; then the whole start is given up."""


@dataclass(frozen=True, slots=True)
class Common:
    """What all processes have the same."""

    module: str
    """`python -m MODULE DESCRIPTOR` is a process; the descriptor is its line to the supervisor."""
    loaded: Loaded
    spec_text: str | None
    listener: socket.socket
    board: int
    """File descriptor of the memory in which the processes take turns to accept."""
    ops_url: str
    on_loading: Callable[[str], None]


class Muster:
    """The order of the first start; later ones find every gate open.

    Slot 0 sets up the catalog while nobody else looks at it. When all are prepared it makes the first
    key, so that no failing start takes along a key that nobody saw; then the others read it and serve.
    """

    def __init__(self, of: int, on_all_serve: Callable[[Announced], None]) -> None:
        self.catalog_is_set_up = asyncio.Event()
        self.all_are_prepared = asyncio.Event()
        self.key_is_made = asyncio.Event()
        self.spec_revision: int | None = None
        self._unprepared = set(range(of))
        self._silent = set(range(of))
        self._first: Announced | None = None
        self._on_all_serve = on_all_serve

    def prepares(self, number: int, spec_revision: int) -> None:
        if self.spec_revision is None:
            self.spec_revision = spec_revision
        self.catalog_is_set_up.set()
        self._unprepared.discard(number)
        if not self._unprepared:
            self.all_are_prepared.set()

    def serves(self, number: int, announced: Announced) -> None:
        if self._first is None:
            self._first = announced
            self.key_is_made.set()
        if self._silent:
            self._silent.discard(number)
            if not self._silent:
                self._on_all_serve(self._first)


class Slot:
    def __init__(self, number: int, seat: int, seats: int, muster: Muster, *, restarts: int = 0) -> None:
        """`restarts` are those of the place until now."""
        self.number = number
        self.seat = seat
        self.child: Child | None = None
        """None between two lives."""
        self.restarts = restarts
        self.has_served = asyncio.Event()
        self._seats = seats
        self._muster = muster
        self._is_leaving = False
        self._serves_since_s: float | None = None

    @property
    def is_serving(self) -> bool:
        return self.child is not None and self.child.announced.done()

    @property
    def name(self) -> str:
        return str(self.number)

    def leave(self) -> bool:
        """Let the process finish its calls, and have no other after it. False where there is none now."""
        self._is_leaving = True
        if self.child is not None:
            self.child.signal(signal.SIGTERM)
        return self.child is not None

    async def keep(self, common: Common, on_end: Callable[[Slot, Child], None]) -> None:
        """Fill it until cancelled, or until the end of the process that was told to leave. Raises
        `SetupError` when the first start is hopeless."""
        failures = 0
        while True:
            descriptors = (common.listener.fileno(), common.board)
            self.child = child = await Child.start(common.module, descriptors, common.on_loading)
            self._serves_since_s = None
            async with asyncio.TaskGroup() as group:
                introducing = group.create_task(self._introduce(child, common))
                ended = await child.wait()
                introducing.cancel()
            self.child = None
            on_end(self, child)
            if self._is_leaving:
                if child.has_failed:
                    _log.error("process %d %s while it drained", self.number, ended)
                return
            failures = 1 if self._was_stable() else failures + 1
            if not self.has_served.is_set():
                self._check_hope(child, ended, failures)
            delay_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(failures - 1, 20))
            _log.error("process %d %s; it starts again in %.1f s", self.number, ended, delay_s)
            self.restarts += 1
            await asyncio.sleep(delay_s)

    async def _introduce(self, child: Child, common: Common) -> None:
        """Tell a new process who it is, until it serves."""
        muster = self._muster
        leads = self.number == 0 and not muster.key_is_made.is_set()
        if not leads:
            await muster.catalog_is_set_up.wait()
        child.send(self._place(common, leads=leads))
        muster.prepares(self.number, (await child.prepared).spec_revision)
        await (muster.all_are_prepared if leads else muster.key_is_made).wait()
        child.send(Go())
        announced = await child.announced
        self._serves_since_s = time.monotonic()
        self.has_served.set()
        muster.serves(self.number, announced)

    def _place(self, common: Common, *, leads: bool) -> Place:
        return Place(
            slot=self.number,
            seat=self.seat,
            seats=self._seats,
            leads=leads,
            listener=common.listener.fileno(),
            board=common.board,
            ops_url=common.ops_url,
            settings=plain_settings(common.loaded),
            origins=dict(common.loaded.origins),
            environment=dict(common.loaded.environment),
            spec_text=common.spec_text,
            spec_revision=None if leads else self._muster.spec_revision,
        )

    def _was_stable(self) -> bool:
        return self._serves_since_s is not None and time.monotonic() - self._serves_since_s >= STABLE_S

    def _check_hope(self, child: Child, ended: str, failures: int) -> None:
        if child.refused is not None:
            raise SetupError(child.refused.message, param=child.refused.param, code=child.refused.code)
        if failures >= START_ATTEMPTS:
            raise SetupError(
                f"Gateway process {self.number} {ended}, {failures} times, before it could serve; "
                "the log has its last words."
            )
