"""A worker: its models, its devices, and a door that can be closed. Answers the `Transport` protocol.

Assembly makes one and hands it to `transport.local` or `transport.grpc_server`. It serves no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from inferhub.core.call import Call, Emit
from inferhub.core.errors import Draining
from inferhub.core.models import ModelSpec, ModelStatus
from inferhub.core.serving import DeviceStatus, WorkerStatus
from inferhub.worker.host import Host
from inferhub.worker.loaded import STOP_TIMEOUT_S

_log = logging.getLogger(__name__)


class Worker:
    """One process's share of the work."""

    def __init__(self, id: str, host: Host, devices: Callable[[], tuple[DeviceStatus, ...]]) -> None:  # noqa: A002
        self.id = id
        self._host = host
        self._devices = devices
        self._is_draining = False

    async def infer(self, call: Call, emit: Emit) -> None:
        self._refuse_when_draining()
        await self._host.infer(call, emit)

    async def load(self, spec: ModelSpec) -> ModelStatus:
        self._refuse_when_draining()
        return await self._host.load(spec)

    async def unload(self, name: str) -> None:
        await self._host.unload(name)

    async def status(self) -> WorkerStatus:
        # Asking a driver for its free memory may block.
        devices = await asyncio.to_thread(self._devices)
        return WorkerStatus(self.id, self._host.models(), devices, self._is_draining)

    def models(self) -> tuple[ModelStatus, ...]:
        return self._host.models()

    async def drain(self, grace_s: float) -> None:
        self._is_draining = True
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
