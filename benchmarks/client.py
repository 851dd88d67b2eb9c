"""The timing client: a process of its own that speaks plain HTTP/1.1 and notes when bytes arrive.

`ask(plan)` runs it and returns its readings. It never shares a loop with what it measures.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections import deque
from collections.abc import Mapping
from random import Random
from time import perf_counter
from typing import cast
from urllib.parse import urlsplit

import httptools
import msgspec

from benchmarks.measure import CannotMeasureError
from benchmarks.processes import module, run_json

_TIMEOUT_S = 60.0
# The first piece of content, in a whole answer or in an event; an opening `"content":""` is none.
_CONTENT = re.compile(rb'"(?:content|text)"\s*:\s*"[^"]')
_TOKENS = re.compile(rb'"completion_tokens"\s*:\s*(\d+)')


class Target(msgspec.Struct, frozen=True):
    """Where to send what; requests take the bodies in turn."""

    name: str
    url: str
    headers: Mapping[str, str]
    bodies: tuple[str, ...]


class Plan(msgspec.Struct, frozen=True):
    """`turns`: one request at a time, A B C A B C. `streams`: `connections` requests a target at
    once, one target after the other. `load`: closed loop for `duration_s`. `open`: `rate_per_s` requests for
    `duration_s`, at random times and whatever becomes of them."""

    mode: str
    targets: tuple[Target, ...]
    connections: int = 1
    count: int = 1
    """Requests a target (`turns`) or a connection (`streams`)."""
    duration_s: float = 0.0
    stagger_s: float = 0.0
    """Time between the starts of parallel streams."""
    rate_per_s: float = 0.0


class Readings(msgspec.Struct):
    """What one target did."""

    first_s: list[float] = []
    """Sent to first content."""
    total_s: list[float] = []
    """Sent to complete."""
    sent_s: list[float] = []
    """When that was, on a clock of the client's own; one for each of `total_s`."""
    gaps_s: list[float] = []
    """Between arrivals after the first content, of streams."""
    tokens: int = 0
    """Sum of the `completion_tokens` that the answers reported."""
    errors: int = 0
    """Refusals are among them."""
    refused_s: list[float] = []
    """Sent to complete, of answers with another status than 200."""
    codes: dict[str, int] = {}
    """Status of refusals → how many; "cut": broke off or never came."""
    late_s: list[float] = []
    """How late the client itself sent a request of an open loop."""
    elapsed_s: float = 0.0
    """From the first request to the last answer."""


def ask(plan: Plan, timeout_s: float = 60.0) -> dict[str, Readings]:
    """Run the client. Raises `CannotMeasureError` when it fails as a whole."""
    said = run_json(
        "the client", module("benchmarks.client"), given=msgspec.to_builtins(plan), timeout_s=timeout_s
    )
    return msgspec.convert(said, dict[str, Readings])


def all_answered(readings: Mapping[str, Readings]) -> None:
    """Raises `CannotMeasureError` where an answer was an error or broke off."""
    for name, seen in readings.items():
        if seen.errors:
            raise CannotMeasureError(f"{seen.errors} requests to {name} failed")


class _Connection(asyncio.Protocol):
    """One kept-alive connection, one request at a time."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports derive from none of asyncio's classes.
        self._transport = cast("asyncio.WriteTransport", transport)

    async def request(self, data: bytes, is_stream: bool, readings: Readings) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._arrivals: list[float] = []
        self._first = 0.0
        self._answer = asyncio.get_running_loop().create_future()
        begin = perf_counter()
        self._transport.write(data)
        async with asyncio.timeout(_TIMEOUT_S):
            await self._answer
        end = perf_counter()
        body = b"".join(self._pieces)
        status = self._parser.get_status_code()
        if status != 200 or (is_stream and b"[DONE]" not in body[-64:]):
            readings.errors += 1
            name = str(status) if status != 200 else "cut"
            readings.codes[name] = readings.codes.get(name, 0) + 1
            readings.refused_s.append(end - begin)
            return
        readings.total_s.append(end - begin)
        readings.sent_s.append(begin)
        if self._first:
            readings.first_s.append(self._first - begin)
        if is_stream:
            readings.gaps_s += [b - a for a, b in zip(self._arrivals, self._arrivals[1:], strict=False)]
        readings.tokens += sum(int(found) for found in _TOKENS.findall(body[-2048:])[-1:])

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)
        if self._first:
            self._arrivals.append(perf_counter())
        elif _CONTENT.search(data):
            self._first = perf_counter()
            self._arrivals.append(self._first)

    def on_message_complete(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionError("the server closed the connection"))


class _Sender:
    """A target's requests, made once."""

    def __init__(self, target: Target) -> None:
        self.readings = Readings()
        parts = urlsplit(target.url)
        self._host, self._port = str(parts.hostname), parts.port or 80
        self._requests = deque(_request(parts.path, parts.netloc, target, body) for body in target.bodies)
        self._is_stream = '"stream":true' in target.bodies[0]

    async def connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self._host, self._port)
        return connection

    async def send(self, connection: _Connection) -> bool:
        data = self._requests[0]
        self._requests.rotate(-1)
        try:
            await connection.request(data, self._is_stream, self.readings)
        except (OSError, TimeoutError, httptools.HttpParserError):
            self.readings.errors += 1
            self.readings.codes["cut"] = self.readings.codes.get("cut", 0) + 1
            return False
        return True


def _request(path: str, host: str, target: Target, body: str) -> bytes:
    data = body.encode()
    headers = {"host": host, "content-type": "application/json", "content-length": str(len(data))}
    lines = "".join(f"{key}: {value}\r\n" for key, value in {**headers, **target.headers}.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + data


async def run(plan: Plan) -> dict[str, Readings]:
    senders = {target.name: _Sender(target) for target in plan.targets}
    if plan.mode == "turns":
        await _turns(list(senders.values()), plan.count)
    elif plan.mode == "open":
        for sender in senders.values():
            begin = perf_counter()
            await _open_loop(sender, plan)
            sender.readings.elapsed_s = perf_counter() - begin
    else:
        for sender in senders.values():
            begin = perf_counter()
            await _parallel(sender, plan, begin + plan.duration_s if plan.mode == "load" else None)
            sender.readings.elapsed_s = perf_counter() - begin
    return {name: sender.readings for name, sender in senders.items()}


async def _turns(senders: list[_Sender], count: int) -> None:
    connections = [await sender.connect() for sender in senders]
    for _ in range(count):
        for position, sender in enumerate(senders):
            begin = perf_counter()
            if not await sender.send(connections[position]):
                connections[position] = await sender.connect()
            sender.readings.elapsed_s += perf_counter() - begin
    for connection in connections:
        connection.close()


async def _parallel(sender: _Sender, plan: Plan, end: float | None) -> None:
    connections = [await sender.connect() for _ in range(plan.connections)]

    async def keep_sending(position: int, connection: _Connection) -> None:
        await asyncio.sleep(position * plan.stagger_s)
        sent = 0
        while perf_counter() < end if end is not None else sent < plan.count:
            if not await sender.send(connection):
                return
            sent += 1

    async with asyncio.TaskGroup() as group:
        for position, connection in enumerate(connections):
            group.create_task(keep_sending(position, connection))
    for connection in connections:
        connection.close()


async def _open_loop(sender: _Sender, plan: Plan) -> None:
    random = Random(0)
    idle: list[_Connection] = []

    async def one() -> None:
        connection = idle.pop() if idle else await sender.connect()
        if await sender.send(connection):
            idle.append(connection)
        else:
            connection.close()

    begin = due = perf_counter()
    async with asyncio.TaskGroup() as group:
        while due < begin + plan.duration_s:
            await asyncio.sleep(max(0.0, due - perf_counter()))
            sender.readings.late_s.append(perf_counter() - due)
            group.create_task(one())
            due += random.expovariate(plan.rate_per_s)
    for connection in idle:
        connection.close()


def main() -> None:
    import uvloop

    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        readings = runner.run(run(plan))
    sys.stdout.buffer.write(msgspec.json.encode(readings))


if __name__ == "__main__":
    main()
