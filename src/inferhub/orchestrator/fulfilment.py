"""Loads what a gateway has just asked for, and takes it back where not all of it can be had.

`service` makes one for each `want`. It loads on the workers that are there; the loop sees to those that come.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence

from inferhub.core.errors import InferHubError, InternalError, SetupError
from inferhub.core.fleet import Deployment, Member, Progress
from inferhub.core.models import ModelStatus, public_name
from inferhub.orchestrator.hands import AWAY, Hands
from inferhub.orchestrator.plan import Load, Pair, Scene, fits, plan

_log = logging.getLogger(__name__)


class Fulfilment:
    def __init__(
        self,
        deployments: Sequence[Deployment],
        hands: Hands,
        members: Callable[[], tuple[Member, ...]],
        on_progress: Progress,
    ) -> None:
        self._wanted = {deployment.spec.name: deployment for deployment in deployments}
        self._hands = hands
        self._members = members
        self._on_progress = on_progress
        self._unannounced = list(self._wanted)
        self._begun: set[Pair] = set()
        self._away: dict[Pair, float] = {}

    def check(self, *, is_fixed: bool) -> None:
        """Raises `SetupError` for a model that no worker can ever have; a fleet not fixed may grow."""
        members = self._members()
        for deployment in self._wanted.values():
            if not members or any(fits(member.worker, deployment) for member in members):
                continue
            labels = ",".join(f"{name}={value}" for name, value in deployment.placement.labels.items())
            why = f"No worker has device {deployment.spec.device!r}" + (
                f" and labels {labels}." * bool(labels)
            )
            if is_fixed:
                raise _cannot(deployment, why)
            _log.warning("not loaded yet: %s", why, extra={"model": deployment.spec.public_name})

    async def run(self) -> None:
        """One that does not answer is left to the loop, and another one takes its part where not every worker
        has to have the model. Raises `SetupError` with the first thing that goes wrong."""
        while tasks := self._begin():
            pending = set(tasks)
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    worker, name = tasks[task]
                    if not _is_there(task, self._wanted[name]):
                        self._away[worker, name] = float("inf")
                        _log.warning("worker does not answer", extra={"worker": worker})

    async def take_back(self, still_wanted: Collection[str]) -> None:
        """What was loaded in vain, unless another gateway wants it too."""
        vain = [pair for pair in self._begun if pair[1] not in still_wanted]
        await self._hands.cancel(vain)
        unloads = [self._hands.unload(*pair, "not everything could be loaded") for pair in vain]
        if unloads:
            await asyncio.wait(unloads)

    def _begin(self) -> Mapping[asyncio.Task[ModelStatus], Pair]:
        """The loads that are missing, and those under way that others began."""
        scene = Scene(
            members=self._members(),
            wanted=self._wanted,
            loading=frozenset(self._hands.loading),
            unloading=self._hands.unloading,
            not_before_s=self._away,
            told=self._hands.told,
        )
        loads = [action for action in plan(scene) if isinstance(action, Load)]
        joined = [pair for pair in scene.loading if pair[1] in self._wanted and pair not in self._away]
        tasks = {self._load(*pair, "a gateway waits for it"): pair for pair in joined}
        for action in loads:
            pair = (action.worker, action.deployment.spec.name)
            self._begun.add(pair)
            tasks[self._load(*pair, action.reason)] = pair
        waiting = {action.deployment.spec.name for action in loads}
        for name in [name for name in self._unannounced if name not in waiting]:
            self._announce(name)
        return tasks

    def _load(self, worker: str, name: str, reason: str) -> asyncio.Task[ModelStatus]:
        return self._hands.load(worker, self._wanted[name], reason, lambda: self._announce(name))

    def _announce(self, name: str) -> None:
        if name in self._unannounced:
            self._unannounced.remove(name)
            self._on_progress(public_name(name))


def _is_there(task: asyncio.Task[ModelStatus], deployment: Deployment) -> bool:
    """False where the worker does not answer, or was lost meanwhile."""
    if task.cancelled():
        return False
    error = task.exception()
    if error is None:
        return True
    if isinstance(error, AWAY):
        return False
    if isinstance(error, InferHubError):
        raise _cannot(deployment, error.message, error.wire_code) from error
    raise InternalError from error


def _cannot(deployment: Deployment, why: str, code: str | None = None) -> SetupError:
    return SetupError(f"Model {deployment.spec.public_name!r} cannot be loaded: {why}", code=code)
