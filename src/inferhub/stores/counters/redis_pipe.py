"""One connection to Redis: whatever was asked while it was waiting goes out together in the next round trip.

Used by `redis`. A client that lends a connection to each command costs its process three times as much.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from redis.asyncio import Connection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from inferhub.core.errors import SetupError, StoreFailed

CONNECT_TIMEOUT_S = 0.5
MAX_GROUP = 64
MAX_WAITING = 10_000


class _Job:
    __slots__ = ("command", "future")

    def __init__(self, command: bytes, future: asyncio.Future[bytes]) -> None:
        self.command = command
        self.future = future


class RedisPipe:
    """Commands in, replies out, in order. May send a command twice when a connection breaks under it."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._pool = _pool(url)
        self._timeout_s = timeout_s
        self._connection: Connection | None = None
        self._jobs: deque[_Job] = deque()
        self._has_jobs = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._is_closed = False

    async def ask(self, command: bytes) -> bytes:
        """The reply to a packed command: a string or a number, as bytes.

        Raises `ResponseError` for what Redis itself refuses, `StoreFailed` when it does not answer in time.
        """
        if self._is_closed:
            raise StoreFailed("The counters in Redis are closed.")
        if len(self._jobs) >= MAX_WAITING:
            raise StoreFailed(f"Redis is too slow: {MAX_WAITING} commands wait.")
        loop = asyncio.get_running_loop()
        if self._runner is None:
            self._runner = loop.create_task(self._run(), name="redis pipe")
        job = _Job(command, loop.create_future())
        # Its own timer: it may wait behind a group that waits for a frozen server.
        timer = loop.call_later(self._timeout_s, self._give_up, job)
        self._jobs.append(job)
        self._has_jobs.set()
        try:
            return await job.future
        finally:
            timer.cancel()

    async def close(self) -> None:
        """Whoever still waits is told that it failed."""
        self._is_closed = True
        if self._runner is not None:
            self._runner.cancel()
            with suppress(asyncio.CancelledError):
                await self._runner
        _fail(self._jobs, StoreFailed("The counters in Redis are closed."))
        await self._disconnect()

    def _give_up(self, job: _Job) -> None:
        _fail([job], StoreFailed(f"Redis did not answer in {self._timeout_s:g} s."))

    async def _run(self) -> None:
        while True:
            await self._has_jobs.wait()
            group: list[_Job] = []
            while self._jobs and len(group) < MAX_GROUP:
                job = self._jobs.popleft()
                if not job.future.done():
                    group.append(job)
            if not self._jobs:
                self._has_jobs.clear()
            if group:
                await self._serve(group)

    async def _serve(self, group: list[_Job]) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                try:
                    await self._exchange(group)
                except (RedisError, OSError):
                    # Perhaps it was only this connection: the server was restarted, or closes idle ones.
                    await self._disconnect()
                    await self._exchange([job for job in group if not job.future.done()])
        except TimeoutError:
            await self._disconnect()
            _fail(group, StoreFailed(f"Redis did not answer in {self._timeout_s:g} s."))
        except Exception as error:
            await self._disconnect()
            failure = StoreFailed(f"Redis failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            _fail(group, failure)
        except BaseException:
            _fail(group, StoreFailed("The counters in Redis are closed."))
            raise

    async def _exchange(self, group: list[_Job]) -> None:
        connection = self._connection
        if connection is None:
            connection = self._connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            await connection.connect()
        await connection.send_packed_command(b"".join(job.command for job in group), check_health=False)
        for job in group:
            try:
                reply = await connection.read_response()
            except ResponseError as error:
                if not job.future.done():
                    job.future.set_exception(error)
            else:
                if not job.future.done():
                    job.future.set_result(reply)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)


def _pool(url: str) -> ConnectionPool:
    """Only for what it reads out of the URL."""
    try:
        return ConnectionPool.from_url(
            url,
            protocol=2,
            # One deadline for all of it is kept above.
            socket_timeout=None,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            driver_info=None,
            client_name="inferhub",
        )
    except (ValueError, TypeError) as error:
        # Not the driver's words: they may hold a password.
        raise SetupError(
            "counters_url cannot be read; write redis://[USER:PASSWORD@]HOST:PORT/DATABASE, "
            "or rediss:// for TLS.",
            param="counters_url",
        ) from error


def _fail(jobs: list[_Job] | deque[_Job], error: StoreFailed) -> None:
    for job in jobs:
        if not job.future.done():
            job.future.set_exception(error)
