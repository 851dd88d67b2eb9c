"""Starts the scripted upstream as a process of its own, asks for its log and stops it: for tests.

`async with Upstream() as upstream:` gives `upstream.url`; leaving the block always ends the process,
and so does the death of the process that started it. A `strict` one checks requests by the vendors' rules;
`script` is what requests meet that bring none.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from hashlib import sha256
from time import monotonic
from typing import Self

import msgspec

from inferhub.testing.upstream_player import Record

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.01


class Upstream:
    """One scripted upstream. Usable from one event loop."""

    def __init__(self, *, strict: bool = False, script: str = "") -> None:
        self.url = ""
        """`http://127.0.0.1:PORT`, without `/v1`."""
        self._arguments = [*(["--strict"] if strict else []), "--script", script]

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "inferhub.testing.upstream", "--port", "0", "--until-eof", *self._arguments),
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
        return msgspec.json.decode(await self._ask("GET", "/log"), type=list[Record])

    async def records(self, request_id: str) -> list[Record]:
        """Every attempt of one request, by the key it came with or by its trace."""
        return records_of(request_id, await self.log())

    async def violations(self) -> list[str]:
        """Everything a strict upstream found wrong since the start or the last `reset`."""
        return [f"{r.path}: {violation}" for r in await self.log() for violation in r.violations]

    async def reset(self) -> None:
        await self._ask("DELETE", "/log")

    async def plays(self, script: str) -> None:
        """From now on, requests without a script of their own meet this one."""
        await self._ask("PUT", "/script", script.encode())

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

    async def _ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        host, _, port = self.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            head = f"{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            return await reader.readexactly(length)
        finally:
            writer.close()
            await writer.wait_closed()


def records_of(request_id: str, log: Sequence[Record]) -> list[Record]:
    """As `Upstream.records`, for who has the log already."""
    trace = trace_of(request_id)
    # What a backend sends is the call's key, and which model it asks.
    return [
        r for r in log if r.id == request_id or r.id.startswith(f"{request_id}-") or _trace_id(r) in trace
    ]


def trace_of(request_id: str) -> str:
    """A `traceparent` for a test's request: the one thing about it that is passed on to the upstream."""
    digest = sha256(request_id.encode()).hexdigest()
    return f"00-{digest[:32]}-{digest[32:48]}-01"


def _trace_id(record: Record) -> str:
    return record.headers.get("traceparent", "-none-").split("-")[1]
