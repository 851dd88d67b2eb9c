"""A worker: its models, its devices, and a door that can be closed. Answers the `Transport` protocol.

Assembly makes one and hands it to `transport.local` or `transport.grpc_server`. It serves no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

from inferhub import __version__
from inferhub.core.call import Call, Emit
from inferhub.core.errors import Draining
from inferhub.core.models import ModelSpec, ModelStatus
from inferhub.core.serving import DeviceStatus, WorkerStatus
from inferhub.telemetry.lifecycle import ModelTally
from inferhub.worker.host import Host
from inferhub.worker.loaded import STOP_TIMEOUT_S

_log = logging.getLogger(__name__)

NO_LABELS: Mapping[str, str] = MappingProxyType({})


class Worker:
    """One process's share of the work."""

    def __init__(
        self,
        id: str,  # noqa: A002
        host: Host,
        devices: Callable[[], tuple[DeviceStatus, ...]],
        *,
        address: str = "",
        labels: Mapping[str, str] = NO_LABELS,
    ) -> None:
        self.id = id
        self.address = address
        """Where others reach it; set once that is known."""
        self.incarnation = time.time_ns() // 1_000_000
        self.on_change: Callable[[], None] = lambda: None
        """Told when models came or went or the door closed: news that need not wait for the next beat."""
        self._labels = labels
        self._host = host
        self._devices = devices
        self._is_draining = False
        self._seq = 0

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    async def infer(self, call: Call, emit: Emit) -> None:
        self._refuse_when_draining()
        await self._host.infer(call, emit)

    async def load(self, spec: ModelSpec) -> ModelStatus:
        self._refuse_when_draining()
        try:
            return await self._host.load(spec)
        finally:
            self.on_change()

    async def unload(self, name: str) -> None:
        try:
            await self._host.unload(name)
        finally:
            self.on_change()

    async def status(self) -> WorkerStatus:
        # Asking a driver for its free memory may block.
        devices = await asyncio.to_thread(self._devices)
        # The number is taken with the figures, not before the wait: of two reports the later one says more.
        self._seq += 1
        return WorkerStatus(
            self.id,
            self._host.models(),
            devices,
            self._is_draining,
            address=self.address,
            incarnation=self.incarnation,
            seq=self._seq,
            at_s=time.monotonic(),
            labels=self._labels,
            version=__version__,
        )

    def models(self) -> tuple[ModelStatus, ...]:
        return self._host.models()

    @property
    def tally(self) -> ModelTally:
        """What happened to its models so far."""
        return self._host.tally

    async def drain(self, grace_s: float) -> None:
        self._is_draining = True
        self.on_change()
        if await self._host.wait_idle(grace_s):
            return
        _log.warning("Worker %s ends the calls that %s s of grace did not finish", self.id, grace_s)
        self._host.abort(Draining)
        await self._host.wait_idle(STOP_TIMEOUT_S)

    async def close(self) -> None:
        """Unload every model."""
        self._is_draining = True
        await self._host.close()

    def _refuse_when_draining(self) -> None:
        if self._is_draining:
            raise Draining(retry_after_s=1.0)
