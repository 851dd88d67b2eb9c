"""Accepts on a socket that several processes share, the one with the fewest connections first.

Used by `server` where there is a supervisor, which makes the board. Left to the kernel and the event
loop, the process that wakes first takes a whole burst, and clients that keep their connections stay there.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import mmap
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass

_log = logging.getLogger(__name__)

COUNT_BYTES = 4
ABSENT = 2**32 - 1
"""The count of a process that accepts nothing: nobody waits for it."""

PATIENCE_S = 0.002
"""How long a busier process leaves a connection to the others, one of which may be stopped."""
REFRESH_S = 0.05
EXHAUSTED_S = 1.0
"""Pause after a connection that could not be accepted for want of descriptors or memory."""
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Board:
    """How many connections each process has, in memory that all of them see."""

    def __init__(self, descriptor: int, of: int) -> None:
        """`descriptor` is of a file of `of * COUNT_BYTES`."""
        self._counts = memoryview(mmap.mmap(descriptor, of * COUNT_BYTES)).cast("I")

    def write(self, slot: int, connections: int) -> None:
        self._counts[slot] = connections

    def least_of_others(self, slot: int) -> int:
        return min((count for i, count in enumerate(self._counts) if i != slot), default=ABSENT)


@dataclass(frozen=True, slots=True)
class Turns:
    """The board, and which process this is."""

    board: Board
    slot: int


class Acceptor:
    """From its making until `close`, which leaves `listener` open."""

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        turns: Turns,
        connections: Collection[object],
    ) -> None:
        """`connections` holds each protocol between its `connection_made` and `connection_lost`."""
        self._listener = listener
        self._protocol = protocol
        self._turns = turns
        self._connections = connections
        self._joining: set[asyncio.Protocol] = set()
        """Accepted, and perhaps not yet in `connections`."""
        self._adopting: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._resuming: asyncio.TimerHandle | None = None
        self._count()
        self._refreshing = self._loop.call_later(REFRESH_S, self._refresh)
        self._loop.add_reader(listener, self._readable)

    def close(self) -> None:
        self._loop.remove_reader(self._listener)
        self._refreshing.cancel()
        if self._resuming is not None:
            self._resuming.cancel()
        self._turns.board.write(self._turns.slot, ABSENT)

    def _count(self) -> int:
        joining = sum(protocol not in self._connections for protocol in self._joining)
        count = len(self._connections) + joining
        self._turns.board.write(self._turns.slot, count)
        return count

    def _refresh(self) -> None:
        self._count()
        self._refreshing = self._loop.call_later(REFRESH_S, self._refresh)

    def _readable(self) -> None:
        if self._count() > self._turns.board.least_of_others(self._turns.slot):
            self._pause(PATIENCE_S)
        else:
            self._accept()

    def _pause(self, duration_s: float) -> None:
        self._loop.remove_reader(self._listener)
        self._resuming = self._loop.call_later(duration_s, self._resume)

    def _resume(self) -> None:
        """Its patience is over: what is still there is its own."""
        self._loop.add_reader(self._listener, self._readable)
        self._accept()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another process was quicker, or the client is gone
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            _log.error("connections cannot be accepted: %s", error.strerror)
            self._pause(EXHAUSTED_S)
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        protocol = self._protocol()
        self._joining.add(protocol)
        task = self._loop.create_task(self._adopt(connection, protocol))
        self._adopting.add(task)
        task.add_done_callback(self._adopting.discard)
        self._count()

    async def _adopt(self, connection: socket.socket, protocol: asyncio.Protocol) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError:
            connection.close()  # it was reset meanwhile
        finally:
            self._joining.discard(protocol)
