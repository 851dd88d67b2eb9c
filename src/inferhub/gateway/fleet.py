"""What can be called now: follows the fleet's view and turns it into `Directory` snapshots.

Asked by `app` and `desired` (apply, readiness), run by assembly. It says what it needs; who loads it where
is the orchestrator's business. Workers are only known by their addresses.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Literal

from inferhub.core.clock import new_id
from inferhub.core.errors import InferHubError
from inferhub.core.fleet import (
    EVERYWHERE,
    ControlPlane,
    Deployment,
    FleetView,
    Member,
    Progress,
    deployment_of,
)
from inferhub.core.models import ModelSpec, public_name
from inferhub.core.serving import Endpoint
from inferhub.pipeline.directory import Directory
from inferhub.settings.spec import Spec
from inferhub.transport.reach import Reach

_log = logging.getLogger(__name__)

LOOK_TIMEOUT_S = 5.0
"""For one look at the fleet. Who cannot be asked is looked at as it was last."""

Side = Literal["engines", "providers"]


class Fleet:
    """The workers as one gateway sees them: `engines` run models, `providers` reach remote ones."""

    def __init__(
        self,
        *,
        engines: ControlPlane,
        providers: ControlPlane,
        reach: Reach,
        is_remote: Callable[[ModelSpec], bool],
        expected: Sequence[str] = (),
    ) -> None:
        """`expected`: addresses of workers that are listed even while they do not answer."""
        self.holder = new_id("gw")
        self._planes: Mapping[Side, ControlPlane] = {"engines": engines, "providers": providers}
        self._views: dict[Side, FleetView] = {}
        self._reach = reach
        self._is_remote = is_remote
        self._expected = tuple(expected)
        self._spec = Spec(models=(), routes=())
        self._deployed: frozenset[str] = frozenset()
        """Names of the spec's models on workers: made once, because every view asks for them."""
        self._offered: dict[tuple[Side, str], tuple[Member, Sequence[Endpoint]]] = {}
        self._directory = Directory()
        self._applying = asyncio.Lock()
        self.is_draining = False

    def directory(self) -> Directory:
        return self._directory

    @property
    def spec(self) -> Spec:
        return self._spec

    def workers(self) -> Mapping[str, Member | None]:
        """Every worker as it was last heard; None for those that were expected and do not answer."""
        found: dict[str, Member | None] = dict.fromkeys(self._expected)
        for _, member in self._members():
            worker = member.worker
            found[worker.address if worker.address in found else worker.id] = member
        return dict(sorted(found.items()))

    def readiness(self) -> Mapping[str, object]:
        """`ready` is true when every wanted model has an endpoint and nothing drains."""
        models = {name: len(endpoints) for name, endpoints in sorted(self._directory.endpoints.items())}
        workers = {worker: member is not None for worker, member in self.workers().items()}
        is_ready = not self.is_draining and bool(models) and all(models.values())
        return {"ready": is_ready, "draining": self.is_draining, "models": models, "workers": workers}

    async def introduce(self) -> None:
        """Need nothing yet. Raises `InferHubError` where nobody hears it."""
        await self._planes["engines"].want(self.holder, ())

    async def apply(self, spec: Spec, on_progress: Progress = lambda _: None) -> None:
        """Load everything new, then swap in one step, then retire the old. On any error nothing changes."""
        async with self._applying:
            before = self._spec
            try:
                for side, plane in self._planes.items():
                    new, old = self._deployments(side, spec), self._deployments(side, before)
                    await plane.want(self.holder, _both(new, old), on_progress)
            except BaseException:
                await self._settle(before)
                await self.refresh()
                raise
            self._spec = spec
            self._deployed = frozenset(deployment_of(model).name for model in spec.models)
            await self.refresh()
            await self._settle(spec)

    async def run(self) -> None:
        """Follow the fleet until cancelled."""
        async with asyncio.TaskGroup() as group:
            for side in self._planes:
                group.create_task(self._follow(side))

    async def refresh(self) -> None:
        """Look at the fleet as it is now, then publish one new snapshot."""
        await asyncio.gather(*(self._look(side) for side in self._planes))
        self._publish()

    async def close(self) -> None:
        await self._reach.close()

    async def _settle(self, spec: Spec) -> None:
        """Need this and no more. What it no longer needs is unloaded once it is idle."""
        for side, plane in self._planes.items():
            try:
                await plane.want(self.holder, self._deployments(side, spec))
            except InferHubError as error:
                _log.warning("the orchestrator does not take what this gateway needs: %s", error.message)

    async def _follow(self, side: Side) -> None:
        async with aclosing(self._planes[side].watch(self.holder)) as views:
            async for view in views:
                self._views[side] = view
                self._publish()
                await self._reach.keep({member.worker.address for _, member in self._members()})

    async def _look(self, side: Side) -> None:
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                async with aclosing(self._planes[side].watch(self.holder)) as views:
                    self._views[side] = await anext(views)
        except (TimeoutError, InferHubError, StopAsyncIteration):
            _log.warning("the orchestrator does not answer; the fleet is taken to be as it was")

    def _deployments(self, side: Side, spec: Spec) -> Sequence[Deployment]:
        return [
            Deployment(deployment_of(model), spec.placements.get(model.name, EVERYWHERE))
            for model in spec.models
            if self._is_remote(model) == (side == "providers")
        ]

    def _members(self) -> Iterable[tuple[Side, Member]]:
        for side, view in self._views.items():
            for member in view.members:
                yield side, member

    def _publish(self) -> None:
        endpoints: dict[str, list[Endpoint]] = {model.name: [] for model in self._spec.models}
        before, self._offered = self._offered, {}
        for side, member in self._members():
            key = side, member.worker.id
            known = before.get(key)
            # A member that has not changed is the same object: of a large fleet, nearly all.
            offered = known[1] if known is not None and known[0] is member else self._endpoints(side, member)
            self._offered[key] = member, offered
            for endpoint in offered:
                deployment = endpoint.model.spec.name
                # One without `#` was loaded by the worker's operator.
                if deployment in self._deployed or "#" not in deployment:
                    endpoints.setdefault(public_name(deployment), []).append(endpoint)
        self._directory = Directory(
            endpoints={name: tuple(found) for name, found in endpoints.items()},
            routes={route.name: route for route in self._spec.routes},
            revision=self._directory.revision + 1,
        )

    def _endpoints(self, side: Side, member: Member) -> Sequence[Endpoint]:
        worker = member.worker
        if worker.draining:
            return ()
        used = {
            # More can be free than there is only by a worker's word.
            d.id: max(0.0, 1 - d.memory_free_bytes / d.memory_total_bytes)
            for d in worker.devices
            if d.memory_total_bytes
        }
        infer = self._reach(worker.address).infer
        return [
            Endpoint(
                # Remote models are told apart by name: they all live on the one provider host.
                id=public_name(model.spec.name) if side == "providers" else worker.id,
                model=model,
                infer=infer,
                is_suspect=member.is_suspect,
                labels=worker.labels,
                memory_used_share=used.get(model.device),
                report=(worker.incarnation, worker.seq),
            )
            for model in worker.models
            if model.ready
        ]


def _both(new: Sequence[Deployment], old: Sequence[Deployment]) -> Sequence[Deployment]:
    names = {deployment.spec.name for deployment in new}
    return [*new, *(d for d in old if d.spec.name not in names)]
