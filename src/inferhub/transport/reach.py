"""Finds the way to a worker by its address: a connection that is there, or a new one.

Gateways and orchestrators have one each. A connection ends when its worker has left and nobody uses it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping

from inferhub.transport.base import Transport

CLOSE_AFTER_S = 60.0
"""How long the connection to a worker that left stays: calls may still run there, and it may come back."""


class Reach:
    def __init__(
        self,
        dial: Callable[[str], Transport] | None = None,
        *,
        fixed: Mapping[str, Transport] = {},
        close_after_s: float = CLOSE_AFTER_S,
    ) -> None:
        """`fixed`: those that are here from the start, by address; `dial` connects to all others."""
        self._dial = dial
        self._fixed = fixed
        self._close_after_s = close_after_s
        self._dialled: dict[str, Transport] = {}
        self._leaving: dict[str, float] = {}

    def __call__(self, address: str) -> Transport:
        found = self._fixed.get(address) or self._dialled.get(address)
        if found is None:
            if self._dial is None:
                raise KeyError(address)
            found = self._dialled[address] = self._dial(address)
        return found

    async def keep(self, addresses: Collection[str]) -> None:
        """Told who is there: connections to others are closed after a while."""
        now_s = asyncio.get_running_loop().time()
        for address in list(self._dialled):
            if address in addresses:
                self._leaving.pop(address, None)
            elif now_s - self._leaving.setdefault(address, now_s) >= self._close_after_s:
                del self._leaving[address]
                await self._dialled.pop(address).close()

    async def close(self) -> None:
        for transport in (*self._fixed.values(), *self._dialled.values()):
            await transport.close()
