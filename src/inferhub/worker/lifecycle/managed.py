"""One model's life: unloaded → loading → loaded → leaving, and again; an `Engine` in front of the real one.

The host puts it in front of every engine. Calls that come while it loads wait for the one load, each as long
as its own deadline. It leaves when `keeper` sends it away, and comes back by a call, or by itself where it
has to; a process that keeps dying is started again ever more slowly.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum

from inferhub.core.call import Call, Emit
from inferhub.core.errors import EndpointLost, InferHubError, NoEndpoint, Overloaded, SetupError
from inferhub.core.models import Capability, public_name
from inferhub.telemetry.lifecycle import ModelTally, UnloadReason
from inferhub.worker.engine import Engine
from inferhub.worker.lifecycle.evict import Bytes, Keeping, Resident
from inferhub.worker.lifecycle.keeper import Keeper
from inferhub.worker.lifecycle.restarts import STABLE_S, WAIT_S, Restarts

_log = logging.getLogger(__name__)

_FIRST_LOAD_S = 2.0
_FIRST_LOAD_BYTES_PER_S = 250e6
"""What a load is expected to take before one was measured."""


class State(StrEnum):
    UNLOADED = "unloaded"
    LOADING = "loading"
    LOADED = "loaded"
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True)
class Beginnings:
    """What is known of a model before it is loaded."""

    name: str
    device: str
    offered: tuple[Capability, ...]
    """Empty where only the loaded model can tell."""
    memory: Bytes
    """What it is expected to take."""
    load_timeout_s: float
    waiting_limit: int
    """Calls that may wait for it to be loaded: as many as it takes when it is."""


Start = Callable[[Callable[[], None]], Awaitable[Engine]]
"""Makes the real engine; told what to call when its process has died."""


class ManagedEngine:
    """An `Engine` that is there before it is loaded, and a `Guest` of the keeper."""

    has_failed = False

    def __init__(
        self, known: Beginnings, start: Start, keeper: Keeper, keeping: Keeping, tally: ModelTally
    ) -> None:
        self._known = known
        self._start = start
        self._keeper = keeper
        self._keeping = keeping
        self._tally = tally
        self._offered = known.offered
        self._expected = known.memory
        self._expected_s = _FIRST_LOAD_S + sum(known.memory.values()) / _FIRST_LOAD_BYTES_PER_S
        self._engine: Engine | None = None
        self._loading: asyncio.Task[InferHubError | None] | None = None
        self._began_s = 0.0
        """When the load began that runs; 0 before it does."""
        self._loaded_at_s = 0.0
        self._leaving: asyncio.Task[None] | None = None
        self._leaving_memory: Bytes = {}
        self._failure: InferHubError | None = None
        self._restarts = Restarts()
        self._users = 0
        self.waiting = 0
        """Calls that came before it was loaded."""
        self._was_loaded = False
        self._is_closed = False
        self._last_used_s = time.monotonic()
        keeper.enter(known.name, self)

    # --- as the host and its callers see it ------------------------------------------------------

    @property
    def state(self) -> State:
        if self._engine is not None:
            return State.LOADED
        if self._loading is not None:
            return State.LOADING
        return State.LEAVING if self._is_leaving else State.UNLOADED

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        return self._offered

    @property
    def device(self) -> str:
        return self._known.device if self._engine is None else self._engine.device

    @property
    def is_ready(self) -> bool:
        """A call will find it, or wait for it no longer than it should."""
        if self._engine is not None:
            return self._engine.is_ready
        may_wait = self._was_loaded or not self._keeping.is_eager
        return bool(self._offered) and may_wait and not self._is_down

    @property
    def is_loaded(self) -> bool:
        return self._engine is not None

    @property
    def is_loading(self) -> bool:
        return self.state is State.LOADING

    @property
    def memory(self) -> Mapping[str, int]:
        if self._engine is not None:
            return self._engine.memory
        return self._leaving_memory if self._is_leaving else {}

    @property
    def ready_in_s(self) -> float:
        """How long a call that comes now is expected to wait for the load; 0 when it is loaded."""
        if self._engine is not None:
            return 0.0
        spent_s = time.monotonic() - self._began_s if self._began_s else 0.0
        return self._restarts.delay_s + max(1.0, self._expected_s - spent_s)

    @property
    def can_unload_busy(self) -> bool:
        return self._engine is None or self._engine.can_unload_busy

    async def measure(self) -> None:
        if self._engine is not None:
            await self._engine.measure()

    def keep(self, keeping: Keeping) -> None:
        """From now on like this, without loading anything anew."""
        self._keeping = keeping
        self._keeper.news()
        self._keeper.changed()

    async def load(self) -> None:
        """Have it in memory. Raises what made that impossible. Does not wait out the delay of a restart."""
        is_put_off = self._restarts.delay_s > 0
        self._restarts.hurry()
        if is_put_off and self._loading is not None:
            self._loading.cancel()
            await asyncio.wait([self._loading])
        while self._engine is None:
            if error := await self._loaded_or_why():
                raise error

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Loaded, and staying so. Raises `Overloaded` where too many wait for that already."""
        self._users += 1
        try:
            if self._engine is None:
                await self._waited()
            yield
        finally:
            self._users -= 1
            self._last_used_s = time.monotonic()
            if not self._users:
                self._keeper.changed()

    async def infer(self, call: Call, emit: Emit) -> None:
        """While it is held. One that died in the meantime is waited for."""
        engine = self._engine or await self._waited()
        await engine.infer(call, emit)

    async def unload(self) -> None:
        self._is_closed = True
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait([self._loading])
        self._let_go("request")
        await self.gone()
        self._keeper.forget(self._known.name)

    # --- as the keeper sees it -------------------------------------------------------------------

    @property
    def resident(self) -> Resident:
        is_loaded = self._engine is not None and self._loading is None
        return Resident(
            self._known.name,
            self.memory,
            self._last_used_s,
            is_loaded=is_loaded,
            is_pinned=self._keeping.is_pinned,
            users=self._users,
            idle_ttl_s=self._keeping.idle_ttl_s,
        )

    def send_away(self, reason: UnloadReason) -> None:
        if self.resident.can_leave:
            why = "to make room" if reason == "room" else "because nobody calls it"
            _log.info("Model %r leaves memory %s", self._known.name, why)
            self._let_go(reason)

    async def gone(self) -> None:
        if self._leaving is not None:
            await asyncio.wait([self._leaving])

    # --- inside ----------------------------------------------------------------------------------

    @property
    def _is_leaving(self) -> bool:
        return self._leaving is not None and not self._leaving.done()

    @property
    def _is_down(self) -> bool:
        """Its process died, and it takes longer to come back than calls wait for it."""
        is_late = self._loading is not None and self._restarts.down_s > WAIT_S
        return self._restarts.is_one and (is_late or self._restarts.delay_s > WAIT_S)

    async def _waited(self) -> Engine:
        if self.waiting >= self._known.waiting_limit:
            wait_s = self.ready_in_s
            refusal = Overloaded(
                f"Model {public_name(self._known.name)!r} is being loaded, and {self.waiting} calls wait for "
                "it already.",
                retry_after_s=wait_s,
                reason="cold_start",
            )
            refusal.pending_s = wait_s
            raise refusal
        self.waiting += 1
        try:
            return await self._arrive()
        finally:
            self.waiting -= 1

    async def _arrive(self) -> Engine:
        """The engine, loaded by this call or by another one."""
        came_s = time.monotonic()
        if self._loading is None and self._restarts.down_s > STABLE_S:
            self._restarts.forget()
        while self._engine is None:
            self._refuse_early()
            # A load at the first call may take its time; a restart is a fault, of which callers must hear.
            wait_s = came_s + WAIT_S - time.monotonic() if self._restarts.is_one else None
            try:
                async with asyncio.timeout(wait_s):
                    error = await self._loaded_or_why()
            except TimeoutError as late:
                raise self._starting_again() from late
            if error is not None:
                raise self._as_told(error)
        return self._engine

    async def _loaded_or_why(self) -> InferHubError | None:
        if self._is_closed:
            raise EndpointLost
        task = self._loading or self._begin()
        # Not awaited itself: a caller that gives up must not take the load away from the others.
        await asyncio.wait([task])
        return None if task.cancelled() else task.result()

    def _refuse_early(self) -> None:
        if self._failure is not None and self._restarts.delay_s:
            raise self._as_told(self._failure)
        if self._is_down:
            raise self._starting_again()

    def _starting_again(self) -> NoEndpoint:
        return NoEndpoint(
            f"The process of model {public_name(self._known.name)!r} died; it is starting again.",
            retry_after_s=self.ready_in_s,
        )

    def _as_told(self, error: InferHubError) -> InferHubError:
        """The log has the reason in full; it may name paths of this machine."""
        if isinstance(error, Overloaded):
            return Overloaded(error.message, retry_after_s=error.retry_after_s, reason=error.reason)
        return NoEndpoint(
            f"Model {public_name(self._known.name)!r} could not be loaded ({error.wire_code}); "
            "the log of its worker says why.",
            retry_after_s=self._restarts.delay_s,
        )

    def _begin(self) -> asyncio.Task[InferHubError | None]:
        self._loading = asyncio.create_task(self._load(), name=f"load {self._known.name}")
        self._loading.add_done_callback(self._ended)
        return self._loading

    async def _load(self) -> InferHubError | None:
        """None when it is loaded, else why it is not."""
        try:
            await asyncio.sleep(self._restarts.delay_s)
            self._began_s = time.monotonic()
            async with asyncio.timeout(self._known.load_timeout_s):
                await self.gone()
                async with self._keeper.reserved(self._known.name, self._expected):
                    _log.info("Model %r is being loaded", self._known.name)
                    self._engine = await self._start(self._after_death)
                    self._loaded_at_s = time.monotonic()
                    # Before the reservation ends: the room passes to it without a gap.
                    await self._engine.measure()
            self._after_death()  # it may have come sooner than this
        except TimeoutError:
            limit_s = self._known.load_timeout_s
            return self._fail(SetupError(f"It was not loaded within {limit_s:g} s.", code="load_timeout"))
        except InferHubError as error:
            return self._fail(error)
        except asyncio.CancelledError:
            if self._began_s:
                self._tally.loaded(public_name(self._known.name), "cancelled", 0.0)
            raise
        self._succeed()
        return None

    def _ended(self, task: asyncio.Task[InferHubError | None]) -> None:
        """Not in the task itself: one that is cancelled before it could run comes here too."""
        self._loading, self._began_s = None, 0.0
        if self._engine is not None:
            self._keeper.trim()
            self._keeper.news()
        self._come_back()

    def _succeed(self) -> None:
        self._failure = None
        if self._engine is None:  # it has died already
            return
        self._was_loaded = True
        self._last_used_s = time.monotonic()
        self._expected_s = self._last_used_s - self._began_s
        self._offered = self._engine.capabilities
        self._expected = self._engine.memory or self._expected
        size = sum(self._engine.memory.values())
        _log.info(
            "Model %r is loaded on %s after %.1f s and takes %d MB",
            self._known.name,
            self._engine.device,
            self._expected_s,
            size // 10**6,
        )
        self._tally.loaded(public_name(self._known.name), "ok", self._expected_s)

    def _fail(self, error: InferHubError) -> InferHubError:
        _log.error("Model %r could not be loaded: %s", self._known.name, error.message)
        self._tally.loaded(public_name(self._known.name), "error", 0.0)
        self._let_go("request")
        self._failure = error
        if not isinstance(error, Overloaded):
            self._restarts.failed()
        return error

    def _after_death(self) -> None:
        """The process of the engine is gone, and was not asked to go."""
        if self._engine is None or not self._engine.has_failed:
            return
        delay_s = self._restarts.died(time.monotonic() - self._loaded_at_s)
        _log.error("The process of model %r died; it may start again in %g s", self._known.name, delay_s)
        self._tally.unloaded(public_name(self._known.name), "crash")
        self._engine = None
        self._come_back()
        self._keeper.changed()

    def _come_back(self) -> None:
        """After a death, where somebody counts on it."""
        is_wanted = self._restarts.is_one and self._keeping.is_eager and not self._is_closed
        if is_wanted and self._engine is None and self._loading is None and not self._is_leaving:
            self._begin()

    def _let_go(self, reason: UnloadReason) -> None:
        engine, self._engine = self._engine, None
        if engine is None:
            return
        self._restarts.forget()
        self._tally.unloaded(public_name(self._known.name), reason)
        self._leaving_memory = engine.memory
        self._leaving = asyncio.create_task(self._end(engine), name=f"unload {self._known.name}")
        self._leaving.add_done_callback(lambda _: self._keeper.changed())

    async def _end(self, engine: Engine) -> None:
        try:
            await engine.unload()
        except Exception:
            _log.exception("Model %r could not be unloaded", self._known.name)
