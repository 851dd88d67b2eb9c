"""One life of a gateway process, as its supervisor sees it: start, listen to, ask, end.

Made by `service`, which decides when. Started by exec, not forked: gRPC, threads and an event loop do
not survive a fork.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Sequence

from inferhub.core.errors import SetupError
from inferhub.supervisor.messages import (
    MAX_LINE_BYTES,
    Announced,
    Ask,
    Loading,
    Prepared,
    Refused,
    State,
    ToProcess,
    ToSupervisor,
    line_of,
    read_to_supervisor,
)

_STDERR = 2
_MAX_ASKED = 8
"""Questions under way: a process that is stopped must not fill our memory."""


class Child:
    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_loading: Callable[[str], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.pid = process.pid
        self.prepared: asyncio.Future[Prepared] = loop.create_future()
        self.announced: asyncio.Future[Announced] = loop.create_future()
        self.state = State("", {"ready": False})
        """The last one it told."""
        self.refused: Refused | None = None
        self._process = process
        self._writer = writer
        self._on_loading = on_loading
        self._asked = self._answers = 0
        self._answered = asyncio.Condition()
        self._reading = asyncio.create_task(self._read(reader), name=f"words of {process.pid}")

    @classmethod
    async def start(cls, module: str, descriptors: Sequence[int], on_loading: Callable[[str], None]) -> Child:
        """`python -m MODULE DESCRIPTOR`, which inherits `descriptors` and waits for its `Place`."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",  # the folder that somebody stands in is no place to import from
                    "-m",
                    module,
                    str(theirs.fileno()),
                    pass_fds=(theirs.fileno(), *descriptors),
                    stdin=asyncio.subprocess.DEVNULL,
                    # Only the supervisor announces; a stray word belongs to the log.
                    stdout=_STDERR,
                    # Ctrl-C reaches the whole group of a terminal; the supervisor decides what it means.
                    process_group=0,
                )
        except OSError as error:
            ours.close()
            raise SetupError(f"Cannot start a gateway process: {error.strerror}.") from error
        except BaseException:
            ours.close()
            raise
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=MAX_LINE_BYTES)
        return cls(process, reader, writer, on_loading)

    def send(self, message: ToProcess) -> None:
        if not self._writer.is_closing():
            self._writer.write(line_of(message))

    async def ask(self, timeout_s: float) -> bool:
        """Bring `state` up to date; False when no answer came in time."""
        if self._asked - self._answers < _MAX_ASKED:
            self._asked += 1
            self.send(Ask())
        mine = self._asked
        try:
            async with asyncio.timeout(timeout_s), self._answered:
                await self._answered.wait_for(lambda: self._answers >= mine or self._reading.done())
        except TimeoutError:
            return False
        return self._answers >= mine

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    @property
    def has_failed(self) -> bool:
        """It ended, and not as it should when it is told to."""
        return self._process.returncode not in (None, 0, -signal.SIGTERM)

    async def wait(self) -> str:
        """Return how it ended, as the end of a sentence, after its last word was read."""
        code = await self._process.wait()
        await asyncio.wait([self._reading])
        self._writer.close()
        if self.refused is not None:
            return f"ended: {self.refused.message}"
        return f"ended with exit status {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            async for line in reader:
                # Killed in the middle of a word: the rest never comes.
                if line.endswith(b"\n"):
                    await self._hear(read_to_supervisor(line))
        async with self._answered:
            self._answered.notify_all()

    async def _hear(self, message: ToSupervisor) -> None:
        match message:
            case Loading():
                self._on_loading(message.model)
            case Prepared():
                self.prepared.set_result(message)
            case Announced():
                self.announced.set_result(message)
            case Refused():
                self.refused = message
            case State():
                self.state = message
                async with self._answered:
                    self._answers += 1
                    self._answered.notify_all()
