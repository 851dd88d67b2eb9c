"""Processes that share a listening socket take turns: here two acceptors in one loop, with a board between."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections.abc import AsyncIterator

import pytest

from inferhub.gateway import turns
from inferhub.gateway.turns import ABSENT, COUNT_BYTES, Acceptor, Board, Turns
from inferhub.telemetry.ports import listen


class Held(asyncio.Protocol):
    def __init__(self, connections: set[Held]) -> None:
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.remove(self)


class Two:
    """Two acceptors of one port."""

    def __init__(self, board: Board) -> None:
        self.board = board
        first = listen("127.0.0.1", 0)
        self.address = first.getsockname()
        self.listeners = (first, first.dup())
        for listener in self.listeners:
            listener.setblocking(False)
        self.held: tuple[set[Held], ...] = (set(), set())
        self.clients: list[socket.socket] = []
        self.acceptors = [self.acceptor(slot) for slot in (0, 1)]

    def acceptor(self, slot: int) -> Acceptor:
        held = self.held[slot]
        return Acceptor(self.listeners[slot], lambda: Held(held), Turns(self.board, slot), held)

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.held[0]), len(self.held[1])

    async def connect(self, number: int) -> None:
        """All are held by the acceptors when it returns."""
        self.clients += [socket.create_connection(self.address) for _ in range(number)]
        async with asyncio.timeout(20):
            while sum(self.counts) < len(self.clients):
                await asyncio.sleep(0.001)


@pytest.fixture
async def two() -> AsyncIterator[Two]:
    with tempfile.TemporaryFile() as file:
        os.ftruncate(file.fileno(), 2 * COUNT_BYTES)
        pair = Two(Board(file.fileno(), 2))
        yield pair
        for acceptor in pair.acceptors:
            acceptor.close()
        for protocol in pair.held[0] | pair.held[1]:
            protocol.transport.close()
        async with asyncio.timeout(20):
            while any(pair.counts):
                await asyncio.sleep(0)
        for open_socket in (*pair.listeners, *pair.clients):
            open_socket.close()


async def test_a_burst_is_shared_evenly(two: Two) -> None:
    await two.connect(20)
    assert two.counts == (10, 10)


async def test_the_one_with_fewer_goes_first_until_both_have_the_same(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "PATIENCE_S", 60.0)  # so that a slow machine changes nothing
    two.acceptors[1].close()
    await two.connect(6)
    assert two.counts == (6, 0)
    two.acceptors[1] = two.acceptor(1)
    await two.connect(6)
    assert two.counts == (6, 6)


async def test_a_connection_is_taken_though_a_less_busy_process_does_not_come(two: Two) -> None:
    """It is stopped: its count says that it has few, and nobody erases it."""
    two.acceptors[1].close()
    two.board.write(1, 0)
    await two.connect(5)
    assert two.counts == (5, 0)


async def test_who_closed_is_not_waited_for(two: Two) -> None:
    two.acceptors[1].close()
    assert two.board.least_of_others(0) == ABSENT
    assert two.board.least_of_others(1) == 0


def test_what_one_process_writes_the_others_read() -> None:
    with tempfile.TemporaryFile() as file:
        os.ftruncate(file.fileno(), 3 * COUNT_BYTES)
        ours, theirs = Board(file.fileno(), 3), Board(file.fileno(), 3)
        for slot, count in enumerate((7, 3, 5)):
            ours.write(slot, count)
        assert [theirs.least_of_others(slot) for slot in (0, 1, 2)] == [3, 5, 3]
