"""The workers that an orchestrator starts itself: as many as the load asks for, within the limits.

Made and run by assembly. It looks at the fleet's view, decides with `autoscale`, and acts through a launcher.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from inferhub.core.errors import SetupError
from inferhub.core.fleet import FleetView, Progress
from inferhub.core.serving import WorkerStatus
from inferhub.orchestrator.autoscale import Limits, Load, Scale, scaled, waiting_s
from inferhub.orchestrator.launchers.base import Launched, Launcher

_log = logging.getLogger(__name__)

TICK_S = 1.0
START_TIMEOUT_S = 180.0
_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """How many workers there are; `most` None: always `least`."""

    least: int
    most: int | None = None


class WorkerPool:
    def __init__(
        self,
        launcher: Launcher,
        view: Callable[[], FleetView],
        limits: PoolLimits,
        *,
        prefix: str,
        drain_grace_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Workers are called `PREFIX-N`; no other machine's may be."""
        least = max(1, limits.least)
        self._launcher = launcher
        self._view = view
        self._limits = Limits(least, max(least, limits.most or 0))
        self._prefix = prefix
        self._drain_grace_s = drain_grace_s
        self._clock = clock
        self._scale = Scale(least)
        self._leaving: set[str] = set()

    async def start(self, on_progress: Progress = lambda _: None) -> None:
        """Back when the first of them are in the fleet. Raises `SetupError` where they cannot be."""
        await self._fill()
        missing = {one.id for one in self._launcher.launched()}
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while missing:
                    self._check_hope()
                    here = missing & {member.worker.id for member in self._view().members}
                    missing -= here
                    for name in sorted(here):
                        on_progress(name)
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError as error:
            raise SetupError(
                f"Workers that were started did not register in {START_TIMEOUT_S:g} s: "
                f"{', '.join(sorted(missing))}."
            ) from error

    async def run(self) -> None:
        """Scale until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                for leaving in await self.tick():
                    group.create_task(self._stop(leaving), name=f"stop {leaving}")
                await asyncio.sleep(TICK_S)

    async def tick(self) -> Sequence[str]:
        """Decide, and start who is missing; who has to go is returned, and no longer counted."""
        members = {
            member.worker.id: member.worker
            for member in self._view().members
            if not member.is_suspect and not member.worker.draining
        }
        kept = [one for one in self._launcher.launched() if one.id not in self._leaving]
        load = _load(members, kept)
        was, self._scale = self._scale, scaled(self._scale, load, self._clock(), self._limits)
        if self._scale.desired != was.desired:
            _log.info(
                "%d workers instead of %d: %.1f s of work waits, %d of %d workers have nothing to do",
                self._scale.desired,
                was.desired,
                load.waiting_s,
                load.idle,
                load.serving,
            )
        await self._fill()
        return self._surplus(members, kept)

    def state(self) -> Mapping[str, object]:
        """For `/readyz`."""
        return {
            "desired": self._scale.desired,
            "launched": [_shown(one, leaving=one.id in self._leaving) for one in self._launcher.launched()],
        }

    async def close(self) -> None:
        """Let every worker finish its calls, and end it."""
        await self._launcher.close(self._drain_grace_s)

    async def _fill(self) -> None:
        """The lowest free numbers: names that come back keep their metrics and logs together."""
        taken = {one.id for one in self._launcher.launched()}
        missing = self._scale.desired - len(taken - self._leaving)
        number = 0
        while missing > 0:
            name = f"{self._prefix}-{number}"
            if name not in taken:
                await self._launcher.start(name)
                missing -= 1
            number += 1

    def _surplus(self, members: Mapping[str, WorkerStatus], kept: Sequence[Launched]) -> Sequence[str]:
        """The last ones started that have nothing to do."""
        surplus = len(kept) - self._scale.desired
        if surplus <= 0:
            return ()
        idle = [one.id for one in kept if one.id in members and _is_idle(members[one.id])]
        leaving = idle[-surplus:]
        self._leaving.update(leaving)
        return leaving

    async def _stop(self, name: str) -> None:
        try:
            await self._launcher.stop(name, self._drain_grace_s)
        finally:
            self._leaving.discard(name)

    def _check_hope(self) -> None:
        for one in self._launcher.launched():
            if one.refused:
                raise SetupError(one.refused)
            if one.is_looping:
                raise SetupError(
                    f"Worker {one.id!r} {one.last_end}, again and again; the log has its last words."
                )


def _load(members: Mapping[str, WorkerStatus], kept: Sequence[Launched]) -> Load:
    has_models = any(worker.models for worker in members.values())
    starting = {name for name, worker in members.items() if _is_starting(worker, has_models=has_models)}
    # One that dies again and again will not help soon.
    coming = [one for one in kept if one.id not in members and not one.is_looping]
    idle = [one for one in kept if one.id in members and one.id not in starting and _is_idle(members[one.id])]
    return Load(
        serving=len(members) - len(starting),
        starting=len(coming) + len(starting),
        idle=len(idle),
        waiting_s=sum(waiting_s(model) for worker in members.values() for model in worker.models),
    )


def _is_starting(worker: WorkerStatus, *, has_models: bool) -> bool:
    """It is there, but what it should run is not yet."""
    return any(model.loading for model in worker.models) or (has_models and not worker.models)


def _is_idle(worker: WorkerStatus) -> bool:
    return not any(model.running or model.queued for model in worker.models)


def _shown(one: Launched, *, leaving: bool) -> Mapping[str, object]:
    return {"leaving": leaving, **asdict(one)}
