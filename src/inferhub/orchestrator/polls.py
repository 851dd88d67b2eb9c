"""Asks the workers that do not register how they are, again and again. `service` runs it.

They are those of a fixed list: in this process, or named in the settings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from inferhub.core.errors import InferHubError
from inferhub.core.serving import WorkerStatus
from inferhub.transport.base import Transport

Answered = Callable[[str, WorkerStatus | None], None]
"""Told the address, and what it said; None where it did not answer."""


class Polls:
    def __init__(
        self,
        addresses: Collection[str],
        reach: Callable[[str], Transport],
        answered: Answered,
        *,
        every_s: float,
    ) -> None:
        self.addresses = tuple(addresses)
        self._reach = reach
        self._answered = answered
        self._every_s = every_s

    async def run(self) -> None:
        """Each at its own pace, so that one that hangs does not make the others look old."""
        async with asyncio.TaskGroup() as group:
            for address in self.addresses:
                group.create_task(self._follow(address))

    async def ask_all(self) -> None:
        await asyncio.gather(*(self._ask(address) for address in self.addresses))

    async def _follow(self, address: str) -> None:
        while True:
            await self._ask(address)
            await asyncio.sleep(self._every_s)

    async def _ask(self, address: str) -> None:
        try:
            status = await self._reach(address).status()
        except InferHubError:
            self._answered(address, None)
        else:
            self._answered(address, status)
