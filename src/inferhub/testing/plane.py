"""A fleet for tests: an orchestrator that believes everything, and a worker's record that is complete.

The transport's and the announcer's tests talk to it, in process or over gRPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

from inferhub.core.errors import UnknownWorker
from inferhub.core.fleet import Deployment, FleetView, Lease, Member, Progress
from inferhub.core.models import Capability, ModelSpec, ModelStatus
from inferhub.core.serving import Beat, DeviceStatus, WorkerStatus, after


def a_worker(id_: str = "w1", **more: Any) -> WorkerStatus:
    chat = ModelStatus(
        ModelSpec("chat#1", "echo", options={"delay_s": 0.5}, pinned=True, idle_ttl_s=60.0),
        (Capability("chat", frozenset({"stream"}), context_tokens=4096),),
        "cpu",
        prefixes=(1, 2**64 - 1),
    )
    made: dict[str, Any] = {
        "devices": (DeviceStatus("cpu", "CPU", 100, 50),),
        "address": f"{id_}:50051",
        "incarnation": 1_700_000_000_000,
        "seq": 1,
        "at_s": 12.5,
        "labels": {"region": "eu"},
        "version": "0.1.0",
    }
    return WorkerStatus(id_, (chat,), **{**made, **more})


class OpenPlane:
    """An orchestrator that believes everything."""

    def __init__(self, epoch: str = "one", *members: WorkerStatus) -> None:
        self.view = FleetView(epoch, 1, tuple(Member(worker) for worker in members))
        self.wants: list[tuple[str, tuple[Deployment, ...]]] = []
        self.left: list[tuple[str, int]] = []
        self.beats: list[Beat] = []
        self.failure: Exception | None = None
        self.refused = 0
        self.registrations = 0
        self.watchers = 0
        self.loading: tuple[str, ...] = ()
        self.may_finish = asyncio.Event()
        self.may_finish.set()
        self._changed = asyncio.Condition()

    async def register(self, worker: WorkerStatus) -> Lease:
        self._fail()
        self.registrations += 1
        others = [m for m in self.view.members if m.worker.id != worker.id]
        await self.show(*others, Member(worker))
        return Lease(0.25, 1.25)

    async def heartbeat(self, beat: Beat) -> None:
        self._fail()
        members = {m.worker.id: m for m in self.view.members}
        if (known := members.get(beat.id)) is None:
            raise UnknownWorker
        self.beats.append(beat)
        members[beat.id] = Member(after(known.worker, beat))
        await self.show(*members.values())

    async def leave(self, id: str, incarnation: int) -> None:  # noqa: A002
        self.left.append((id, incarnation))
        await self.show(*(m for m in self.view.members if m.worker.id != id))

    async def want(
        self, holder: str, deployments: Sequence[Deployment], on_progress: Progress = lambda _: None
    ) -> None:
        self.wants.append((holder, tuple(deployments)))
        for name in self.loading:
            on_progress(name)
        await self.may_finish.wait()
        self._fail()

    async def watch(self, holder: str) -> AsyncGenerator[FleetView, None]:
        self.watchers += 1
        try:
            shown = None
            while True:
                async with self._changed:
                    await self._changed.wait_for(lambda: self.view is not shown)  # noqa: B023
                    shown = self.view
                yield shown
        finally:
            self.watchers -= 1

    def _fail(self) -> None:
        if self.failure:
            self.refused += 1
            raise self.failure

    async def show(self, *members: Member, **more: Any) -> None:
        async with self._changed:
            self.view = replace(self.view, members=members, revision=self.view.revision + 1, **more)
            self._changed.notify_all()
