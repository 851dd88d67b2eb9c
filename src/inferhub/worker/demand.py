"""A model that is loaded by its first call and may leave memory again while nobody calls it.

The host puts it in front of the engine it stands for. Calls that come while it loads wait for the one load,
each as long as its own deadline. It never decides to leave by itself: `room` tells it to.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from inferhub.core.call import Call, Emit
from inferhub.core.errors import EndpointLost, InferHubError, NoEndpoint, SetupError
from inferhub.core.models import Capability
from inferhub.worker.engine import Engine
from inferhub.worker.room import Room

_log = logging.getLogger(__name__)

TRY_AGAIN_S = 5.0
"""After a load that failed; until then callers get the same answer at once."""


class DemandEngine:
    """An `Engine` that is there before it is loaded, and a `Guest` of the room."""

    has_failed = False

    def __init__(
        self,
        name: str,
        start: Callable[[], Awaitable[Engine]],
        room: Room,
        *,
        offered: tuple[Capability, ...],
        device: str,
        expected_bytes: int,
        load_timeout_s: float,
    ) -> None:
        self._name = name
        self._start = start
        self._room = room
        self._offered = offered
        self._device = device
        self._expected_bytes = expected_bytes
        self._load_timeout_s = load_timeout_s
        self._engine: Engine | None = None
        self._loading: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._leaving_bytes = 0
        self._failure: InferHubError | None = None
        self._failed_at_s = 0.0
        self._users = 0
        self._is_closed = False
        self.last_used_s = time.monotonic()
        room.enter(name, self)

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        return self._offered if self._engine is None else self._engine.capabilities

    @property
    def device(self) -> str:
        return self._device if self._engine is None else self._engine.device

    @property
    def is_ready(self) -> bool:
        """One whose process was given up is ready too: the next call loads it anew."""
        return self._engine is None or self._engine.is_ready or self._engine.has_failed

    @property
    def is_loaded(self) -> bool:
        return self._engine is not None

    @property
    def memory_bytes(self) -> int:
        if self._engine is not None:
            return self._engine.memory_bytes
        is_leaving = self._leaving is not None and not self._leaving.done()
        return self._leaving_bytes if is_leaving else 0

    @property
    def can_leave(self) -> bool:
        return self._engine is not None and not self._users and self._loading is None

    @property
    def can_unload_busy(self) -> bool:
        return self._engine is None or self._engine.can_unload_busy

    async def measure(self) -> None:
        if self._engine is not None:
            await self._engine.measure()

    async def infer(self, call: Call, emit: Emit) -> None:
        self._users += 1
        try:
            engine = await self._loaded()
            await engine.infer(call, emit)
        finally:
            self._users -= 1
            self.last_used_s = time.monotonic()
            if not self._users:
                self._room.changed()

    async def leave(self) -> None:
        if self.can_leave:
            _log.info("Model %r leaves memory until it is called again", self._name)
            self._let_go()
        if self._leaving is not None:
            await asyncio.wait([self._leaving])

    async def unload(self) -> None:
        self._is_closed = True
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait([self._loading])
        self._let_go()
        if self._leaving is not None:
            await asyncio.wait([self._leaving])
        self._room.forget(self._name)

    async def _loaded(self) -> Engine:
        """The engine, loaded by this call, by another one, or long ago."""
        while (engine := self._engine) is None or engine.has_failed:
            if self._is_closed:
                raise EndpointLost
            if self._loading is None:
                self._refuse_after_failure()
                self._loading = asyncio.create_task(self._load(), name=f"load {self._name}")
            # Not awaited itself: a caller that gives up must not take the load away from the others.
            await asyncio.wait([self._loading])
        return engine

    def _refuse_after_failure(self) -> None:
        wait_s = self._failed_at_s + TRY_AGAIN_S - time.monotonic()
        if self._failure is not None and wait_s > 0:
            # The log has the reason in full; it may name paths of this machine.
            raise NoEndpoint(
                f"Model {self._name.partition('#')[0]!r} could not be loaded ({self._failure.wire_code}); "
                "the log of its worker says why.",
                retry_after_s=wait_s,
            )

    async def _load(self) -> None:
        began_s = time.monotonic()
        self._failure = None
        try:
            async with asyncio.timeout(self._load_timeout_s):
                self._let_go()  # one that was given up
                if self._leaving is not None:
                    await asyncio.wait([self._leaving])
                async with self._room.reserved(self._name, self._expected_bytes):
                    _log.info("Model %r is being loaded for its first call", self._name)
                    self._engine = await self._start()
                    # Before the reservation ends: the room passes to it without a gap.
                    await self._engine.measure()
        except TimeoutError:
            self._fail(
                SetupError(f"It was not loaded within {self._load_timeout_s:g} s.", code="load_timeout")
            )
        except InferHubError as error:
            self._fail(error)
        else:
            took_s = time.monotonic() - began_s
            size = self.memory_bytes
            self._expected_bytes = size or self._expected_bytes
            _log.info("Model %r was loaded in %.1f s and takes %d MB", self._name, took_s, size // 10**6)
            self._room.trim()
        finally:
            self._loading = None

    def _fail(self, error: InferHubError) -> None:
        _log.error("Model %r could not be loaded: %s", self._name, error.message)
        self._failure, self._failed_at_s = error, time.monotonic()

    def _let_go(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            self._leaving_bytes = engine.memory_bytes
            self._leaving = asyncio.create_task(self._end(engine, self._leaving), name=f"unload {self._name}")
            self._leaving.add_done_callback(lambda _: self._room.changed())

    async def _end(self, engine: Engine, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        try:
            await engine.unload()
        except Exception:
            _log.exception("Model %r could not be unloaded", self._name)
