"""What an open stream costs while little happens: memory of the gateway, and CPU, with a thousand of them."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

from benchmarks.contenders.gateway import remote_model, start_serve
from benchmarks.contenders.upstream import script, start_scripted_upstream
from benchmarks.cpu import tree_cpu_s, tree_rss_bytes
from benchmarks.measure import CannotMeasureError, Figure, Measure, Options, Outcome, at_most
from benchmarks.processes import Processes, Running

_STREAMS = 1000
_AT_ONCE = 50
"""Streams that are being opened: fewer than a listener's backlog."""
_IDLE_S = 5.0
_PATIENCE_S = 60.0
_GAP_MS = 1000


def run(options: Options) -> Outcome:
    count = int(options.scaled(_STREAMS))
    with Processes() as processes:
        upstream = start_scripted_upstream(processes)
        model = remote_model(upstream.url)
        # Each open stream holds a connection to the upstream.
        model["options"]["max_connections"] = _STREAMS + _AT_ONCE
        gateway = start_serve(processes, "serve", [model])
        return asyncio.run(_measure(gateway, count))


async def _measure(gateway: Running, count: int) -> Outcome:
    # What the first streams make for all that follow is no cost of a stream.
    async with _Streams(gateway) as warm:
        await warm.open(_AT_ONCE)
    await asyncio.sleep(1)
    before = tree_rss_bytes(gateway.pid)
    async with _Streams(gateway) as streams:
        await streams.open(count)
        during = tree_rss_bytes(gateway.pid)
        used_s, begin = tree_cpu_s([gateway.pid]), time.monotonic()
        await asyncio.sleep(_IDLE_S)
        used_s, elapsed_s = tree_cpu_s([gateway.pid]) - used_s, time.monotonic() - begin
        alive = streams.alive()
    each = (during - before) / count
    figures = (
        Figure(f"memory of one of {count} open streams", each / 1000, "kB", at_most(60)),
        Figure("streams that were cut", float(count - alive), "", at_most(0)),
        Figure(f"CPU with {count} streams of a token a second", used_s / elapsed_s * 100, "%"),
    )
    return Outcome(figures, {"streams": count, "rss_before_bytes": before, "rss_during_bytes": during})


class _Streams:
    """Open streams of one gateway. Reads them, so that nothing waits for its client."""

    def __init__(self, gateway: Running) -> None:
        self._gateway = gateway
        self._stack = AsyncExitStack()
        self._reading: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> _Streams:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._reading:
            task.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)
        await self._stack.aclose()

    async def open(self, count: int) -> None:
        """Returns when each has had its first token."""
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one() -> None:
            async with gate, asyncio.timeout(_PATIENCE_S):
                await self._open_one()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(count):
                    group.create_task(one())
        except* (OSError, TimeoutError, asyncio.IncompleteReadError) as errors:
            raise CannotMeasureError(f"not every stream began: {errors.exceptions[0]!r}") from errors

    async def _open_one(self) -> None:
        parts = urlsplit(self._gateway.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        self._stack.callback(writer.close)
        body = {
            "model": "mock",
            "messages": [{"role": "user", "content": "Tell me a story."}],
            "stream": True,
            "user": script(gap_ms=_GAP_MS, n=600),
        }
        data = json.dumps(body).encode()
        head = {"host": parts.netloc, "content-type": "application/json", "content-length": str(len(data))}
        lines = "".join(f"{key}: {value}\r\n" for key, value in {**head, **self._gateway.headers}.items())
        writer.write(f"POST /v1/chat/completions HTTP/1.1\r\n{lines}\r\n".encode() + data)
        await reader.readuntil(b"word0")
        self._reading.append(asyncio.create_task(_read(reader)))

    def alive(self) -> int:
        return sum(not task.done() for task in self._reading)


async def _read(reader: asyncio.StreamReader) -> None:
    while await reader.read(65536):
        pass


MEASURE = Measure("many_streams", f"{_STREAMS} streams open at once", run, order=4)
