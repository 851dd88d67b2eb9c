"""Keeps a worker in the fleet: registers it, beats, registers again, and says when it leaves.

Assembly runs one beside the worker's server. It never touches a call: a worker that reaches no orchestrator
goes on serving the gateways that reach it, because no byte of a call passes through an orchestrator.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from inferhub.core.errors import Conflict, InferHubError, ServingError, UnknownWorker
from inferhub.core.fleet import ControlPlane
from inferhub.core.serving import WorkerStatus, alike, beat_of

_log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 0.5
"""Little, because the fleet is whole again only when the last worker has found a restarted orchestrator."""
REFUSED_PAUSE_S = 10.0
"""After a refusal that only an operator can mend."""
CONFLICT_PAUSE_S = 1.0
"""After one that time may mend: the former life of this worker, which was killed, is still believed in."""
REFUSAL_SAID_EVERY_S = 600.0
MIN_HEARTBEAT_S = 0.02
MAX_HEARTBEAT_S = 60.0
LEAVE_TIMEOUT_S = 3.0


class Announcer:
    """One worker's word to the orchestrators."""

    def __init__(self, plane: ControlPlane, status: Callable[[], Awaitable[WorkerStatus]]) -> None:
        self._plane = plane
        self._status = status
        self._noticed = asyncio.Event()
        self._registered: WorkerStatus | None = None
        self._heartbeat_s = 1.0
        self._failures = 0
        self._refusal = ("", 0.0)
        """The last one that was logged, and until when it is not logged again."""

    def notice(self) -> None:
        """The worker changed: say so now, not at the next beat."""
        self._noticed.set()

    @property
    def is_registered(self) -> bool:
        """Whether an orchestrator knows this worker, as far as this worker knows."""
        return self._registered is not None

    async def run(self) -> None:
        """Until cancelled; then it leaves the fleet."""
        try:
            while True:
                self._noticed.clear()
                pause_s = await self._say()
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._noticed.wait()
        finally:
            await self._leave()

    async def _say(self) -> float:
        """One word; returns the pause until the next one is due."""
        try:
            worker = await self._status()
            if self._registered is None or not alike(self._registered, worker):
                await self._register(worker)
            else:
                await self._plane.heartbeat(beat_of(worker))
        except UnknownWorker:
            # A restarted orchestrator; everybody else hears this too.
            self._registered = None
            return _jittered(FIRST_PAUSE_S)
        except Conflict as error:
            if self._registered is None:
                return self._refused(error)
            # A beat that came too late; the whole record settles it.
            self._registered = None
            return _jittered(FIRST_PAUSE_S)
        except ServingError as error:
            return self._unreachable(error)
        except InferHubError as error:
            return self._refused(error)
        except Exception:
            # The worker must outlive whatever its announcement meets.
            _log.exception("Unexpected failure while announcing this worker")
            return _jittered(REFUSED_PAUSE_S)
        if self._failures:
            _log.info("Worker %s is heard again", worker.id)
            self._failures = 0
            self._refusal = ("", 0.0)
        return self._heartbeat_s

    async def _register(self, worker: WorkerStatus) -> None:
        is_new = self._registered is None
        lease = await self._plane.register(worker)
        self._registered = worker
        self._heartbeat_s = min(max(lease.heartbeat_s, MIN_HEARTBEAT_S), MAX_HEARTBEAT_S)
        if is_new:
            _log.info("Worker %s is in the fleet as %s", worker.id, worker.address)

    def _unreachable(self, error: ServingError) -> float:
        if self._failures == 0:
            _log.warning("No orchestrator hears this worker, its calls go on: %s", error)
        self._failures += 1
        longest_s = min(FIRST_PAUSE_S * 2 ** min(self._failures, 16), LONGEST_PAUSE_S)
        return _jittered(longest_s)

    def _refused(self, error: InferHubError) -> float:
        """What waiting does not mend, such as a name that another worker has."""
        self._registered = None
        self._failures += 1
        now_s = time.monotonic()
        said, until_s = self._refusal
        if error.message != said or now_s >= until_s:
            self._refusal = (error.message, now_s + REFUSAL_SAID_EVERY_S)
            _log.error("An orchestrator refused this worker: %s", error)
        return _jittered(CONFLICT_PAUSE_S if isinstance(error, Conflict) else REFUSED_PAUSE_S)

    async def _leave(self) -> None:
        if (worker := self._registered) is None:
            return
        self._registered = None
        # Nobody waits for a worker that is gone for longer than its lease.
        with suppress(TimeoutError, InferHubError):
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                await self._plane.leave(worker.id, worker.incarnation)


def _jittered(pause_s: float) -> float:
    """So that a fleet that lost its orchestrator does not come back in step."""
    return pause_s * (0.5 + random.random() / 2)  # noqa: S311 - jitter, not a secret
