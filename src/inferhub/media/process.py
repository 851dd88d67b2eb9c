"""One life of a child process, as its parent sees it: start, give it a job, read what comes of it, end.

Made by `pool`, which decides how many there are. It never decodes anything, and never waits for a child
without a limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from inferhub.core.errors import InferHubError, InternalError, Invalid, Overloaded, SetupError, TooLarge
from inferhub.media.limits import MediaLimits
from inferhub.media.messages import (
    HEAD,
    MAX_FRAME_BYTES,
    PIECE_BYTES,
    Failure,
    Job,
    Kind,
    Task,
    decode_failure,
    encode,
    frame,
)

_log = logging.getLogger(__name__)

_END_TIMEOUT_S = 5.0
_KEPT_AFTER = frozenset({"invalid", "too_large"})
"""Failures that say something of the file and nothing of the child."""

Input = bytes | AsyncIterator[bytes]


class ChildDied(Exception):
    """The process ended, or had to be ended, in the middle of a job."""


class Child:
    """One job at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None  # noqa: S101
        assert process.stdout is not None  # noqa: S101
        self.pid = process.pid
        self.jobs_done = 0
        self.is_clean = True
        """Between two jobs, and nothing is known against it."""
        self._process = process
        self._to = process.stdin
        self._from = process.stdout
        self._head: bytes | None = None
        """Of a frame whose rest has not come yet."""
        self._is_source_slow = False
        """It is the job's input that is waited for, not the child."""

    @classmethod
    async def start(cls) -> Child:
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # the folder that somebody stands in is no place to import from
                "-m",
                "inferhub.media.child",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                # Libraries print what they find in files; what matters is said in a frame.
                stderr=asyncio.subprocess.DEVNULL,
                # Keys in our environment are no business of a process that reads strangers' files.
                env=_environment(),
                limit=PIECE_BYTES,
            )
        except OSError as error:
            raise Overloaded(f"Cannot start a process that decodes media: {error.strerror}.") from error
        return cls(process)

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None

    async def run(
        self, task: Task, limits: MediaLimits, given: Input
    ) -> AsyncGenerator[tuple[Kind, bytes], None]:
        """What the child answers: pieces of data, and notes. Raises an `InferHubError`, or `ChildDied`.

        A child whose job did not end by itself is not clean, and to be killed.
        """
        self.is_clean = False
        feeding = asyncio.create_task(self._feed(Job(task, limits), given), name=f"feed {self.pid}")
        # Whoever waits for the child's answer must not wait for a child that waits for its input.
        feeding.add_done_callback(self._kill_if_failed)
        try:
            while True:
                kind, payload = await self._next(limits.time_s, feeding)
                if kind in (Kind.END, Kind.FAILED):
                    break
                yield kind, payload
            self.jobs_done += 1
            failure = decode_failure(payload) if kind is Kind.FAILED else None
            if isinstance(given, bytes):
                await asyncio.wait([feeding], timeout=_END_TIMEOUT_S)  # it has all, and we are about to know
            self.is_clean = feeding.done() and (failure is None or failure.kind in _KEPT_AFTER)
            if failure is not None:
                raise _error(failure)
        except ChildDied:
            if feeding.done() and not feeding.cancelled() and (error := feeding.exception()) is not None:
                raise error from None
            raise
        finally:
            feeding.cancel()
            await asyncio.wait([feeding])
            if not feeding.cancelled():
                feeding.exception()  # it was raised above, or comes too late to matter

    async def _next(self, time_s: float, feeding: asyncio.Task[None]) -> tuple[Kind, bytes]:
        while True:
            try:
                async with asyncio.timeout(time_s):
                    return await self._read()
            except TimeoutError:
                if feeding.done() or not self._is_source_slow:
                    self.kill()
                    raise ChildDied(f"was silent for {time_s:g} s") from None

    async def _read(self) -> tuple[Kind, bytes]:
        """Cancelled, it loses nothing: the head is kept, the rest stays in the reader until it is whole."""
        try:
            if self._head is None:
                self._head = await self._from.readexactly(HEAD.size)
            kind, length = HEAD.unpack(self._head)
            if length > MAX_FRAME_BYTES:
                self.kill()
                raise ChildDied("wrote more than it may")
            payload = await self._from.readexactly(length)
            self._head = None
            return Kind(kind), payload
        except asyncio.IncompleteReadError:
            raise ChildDied(await self._fate()) from None

    async def _fate(self) -> str:
        """How it died, as the end of a sentence; its output ended, so it is about to."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_TIMEOUT_S):
                await self._process.wait()
        code = self._process.returncode
        if code is None:
            return "closed its output"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"

    async def _feed(self, job: Job, given: Input) -> None:
        try:
            self._to.write(frame(Kind.JOB, encode(job)))
            if isinstance(given, bytes):
                await self._write(given)
            else:
                await self._pour(given)
            self._to.write(frame(Kind.END))
            await self._to.drain()
        except ConnectionError:
            pass  # it died, which the reader sees as well and tells better

    async def _pour(self, given: AsyncIterator[bytes]) -> None:
        self._is_source_slow = True
        try:
            async for piece in given:
                self._is_source_slow = False
                await self._write(piece)
                self._is_source_slow = True
        finally:
            self._is_source_slow = False
            close: Any = getattr(given, "aclose", None)
            if close is not None:
                await close()

    async def _write(self, content: bytes) -> None:
        view = memoryview(content)
        for at in range(0, len(view), PIECE_BYTES):
            piece = view[at : at + PIECE_BYTES]
            self._to.write(HEAD.pack(Kind.DATA, len(piece)))
            self._to.write(piece)
            await self._to.drain()

    def _kill_if_failed(self, feeding: asyncio.Task[None]) -> None:
        if not feeding.cancelled() and feeding.exception() is not None:
            self.kill()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def end(self) -> None:
        """At once, whatever it does; nothing of it is left afterwards."""
        self.kill()
        self._to.close()
        # As long as its pipe holds something that nobody reads, it does not count as gone.
        # Where somebody else still reads, that one gets to its end.
        with contextlib.suppress(ConnectionError, RuntimeError):
            while await self._from.read(PIECE_BYTES):
                pass
        await self._process.wait()
        # asyncio closes it some turns later, and a loop may end before; it has no public name.
        self._process._transport.close()  # type: ignore[attr-defined]
        await asyncio.sleep(0)


def _environment() -> dict[str, str]:
    path = dict.fromkeys(entry for entry in sys.path if entry)
    return {
        "PYTHONPATH": ":".join(path),
        "PYTHONUTF8": "1",
        # Each arena reserves address space, which is limited.
        "MALLOC_ARENA_MAX": "1",
        "OMP_NUM_THREADS": "1",
    }


def _error(failure: Failure) -> InferHubError:
    match failure.kind:
        case "invalid":
            return Invalid(failure.message, code=failure.code)
        case "too_large":
            return TooLarge(failure.message, code=failure.code)
        case "missing":
            return SetupError(failure.message, code=failure.code)
        case "internal":
            _log.warning("A media job failed: %s", failure.message)
            return InternalError(code=failure.code)
