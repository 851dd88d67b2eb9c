"""Starts the scripted upstream as a process of its own, asks for its log and stops it: for tests.

`async with Upstream() as upstream:` gives `upstream.url`; leaving the block always ends the process,
and so does the death of the process that started it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from hashlib import sha256
from time import monotonic
from typing import Self

import msgspec

from inferhub.testing.upstream import Record

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.01


class Upstream:
    """One scripted upstream. Usable from one event loop."""

    def __init__(self) -> None:
        self.url = ""
        """`http://127.0.0.1:PORT`, without `/v1`."""

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "inferhub.testing.upstream", "--port", "0", "--until-eof"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), _START_TIMEOUT_S)
            self.url = msgspec.json.decode(line)["url"]
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.communicate(), _STOP_TIMEOUT_S)
        except TimeoutError:
            self._process.kill()
            await self._process.communicate()

    async def log(self) -> list[Record]:
        """Every request since the start or the last `reset`, newest last."""
        return msgspec.json.decode(await self._ask("GET"), type=list[Record])

    async def records(self, request_id: str) -> list[Record]:
        """Every attempt of one request, by the key it came with or by its trace."""
        trace = trace_of(request_id)
        return [r for r in await self.log() if r.id == request_id or _trace_id(r) in trace]

    async def reset(self) -> None:
        await self._ask("DELETE")

    async def wait_for(
        self, request_id: str, when: Callable[[Record], object] = lambda _: True, within_s: float = 30
    ) -> Record:
        """The newest record of this request once `when` holds. Raises `TimeoutError` with what there is."""
        end_s = monotonic() + within_s
        while True:
            found = await self.records(request_id)
            if found and when(found[-1]):
                return found[-1]
            if monotonic() > end_s:
                raise TimeoutError(f"Request {request_id!r} never got there; the log has {found}.")
            await asyncio.sleep(_POLL_S)

    async def _ask(self, method: str) -> bytes:
        host, _, port = self.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(f"{method} /log HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            return await reader.readexactly(length)
        finally:
            writer.close()
            await writer.wait_closed()


def trace_of(request_id: str) -> str:
    """A `traceparent` for a test's request: the one thing about it that is passed on to the upstream."""
    digest = sha256(request_id.encode()).hexdigest()
    return f"00-{digest[:32]}-{digest[32:48]}-01"


def _trace_id(record: Record) -> str:
    return record.headers.get("traceparent", "-none-").split("-")[1]
