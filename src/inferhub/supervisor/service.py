"""Keeps N gateway processes running behind one listening socket until a signal, then drains them.

Called by the CLI. It answers no calls itself and never opens a store.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import tempfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from inferhub.gateway.turns import ABSENT, COUNT_BYTES, Board
from inferhub.settings import Loaded
from inferhub.supervisor.child import Child
from inferhub.supervisor.messages import Announced
from inferhub.supervisor.scrape import Scrape
from inferhub.supervisor.slot import Common, Muster, Slot
from inferhub.telemetry.ops import OpsServer
from inferhub.telemetry.ports import listen

_log = logging.getLogger(__name__)

KILL_MARGIN_S = 10.0
"""On top of the drain's grace, before a process that does not end is killed."""

Announce = Callable[[Announced, tuple[int, ...]], None]
"""Called once, when all processes serve; with their process ids."""

T = TypeVar("T")


async def supervise(
    loaded: Loaded,
    spec_text: str | None,
    *,
    module: str,
    announce: Announce,
    on_progress: Callable[[str], None],
) -> None:
    """Run `python -m MODULE DESCRIPTOR` as often as the setting `processes` says, until a signal.

    Raises `SetupError` and its kinds when they cannot start.
    """
    settings = loaded.settings
    slots: list[Slot] = []
    stopped = _on_signals(slots)
    muster = Muster(settings.processes, lambda first: announce(first, tuple(c.pid for c in _living(slots))))
    slots += [Slot(number, settings.processes, muster) for number in range(settings.processes)]
    scrape = Scrape(slots)
    # Both ports before any process, so that a taken one is known at once.
    with listen(settings.host, settings.port) as listener, tempfile.TemporaryFile() as shared:
        board = _board(shared.fileno(), settings.processes)
        ops = _ops(loaded, scrape)
        host = f"[{settings.metrics_host}]" if ":" in settings.metrics_host else settings.metrics_host
        ops_url = f"http://{host}:{ops.port}"
        common = Common(module, loaded, spec_text, listener, shared.fileno(), ops_url, on_progress)

        def on_end(slot: Slot, child: Child) -> None:
            board.write(slot.number, ABSENT)
            scrape.retire(slot, child)

        try:
            await _keep(slots, common, on_end, stopped)
        finally:
            # Our copy too: connections that nobody will accept must be refused, not kept waiting.
            listener.close()
            scrape.is_draining = True
            await _drain(slots, settings.drain_grace_s)
            # In a thread: this loop answers the scrape that it may be waiting for.
            await asyncio.to_thread(ops.stop)


def _board(descriptor: int, of: int) -> Board:
    os.ftruncate(descriptor, of * COUNT_BYTES)
    board = Board(descriptor, of)
    for slot in range(of):
        board.write(slot, ABSENT)
    return board


async def _keep(
    slots: Sequence[Slot],
    common: Common,
    on_end: Callable[[Slot, Child], None],
    stopped: asyncio.Event,
) -> None:
    """Fill all slots until `stopped`, or until one raises."""
    keepers = [asyncio.create_task(slot.keep(common, on_end), name=f"process {slot.name}") for slot in slots]
    stop = asyncio.create_task(stopped.wait(), name="stop")
    try:
        done, _ = await asyncio.wait([*keepers, stop], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (*keepers, stop):
            task.cancel()
        await asyncio.wait([*keepers, stop])
    for task in done:
        task.result()


async def _drain(slots: Sequence[Slot], grace_s: float) -> None:
    """Let running calls finish, and make sure of the end."""
    leaving = [(slot.number, slot.child) for slot in slots if slot.child is not None]
    for _, child in leaving:
        child.signal(signal.SIGTERM)
    ends = [asyncio.create_task(_end(number, child)) for number, child in leaving]
    _, late = await asyncio.wait(ends, timeout=grace_s + KILL_MARGIN_S) if ends else ((), ())
    if late:
        _kill(slots)
        await asyncio.wait(late)


async def _end(number: int, child: Child) -> None:
    ended = await child.wait()
    if child.has_failed:
        _log.error("process %d %s while it drained", number, ended)


def _living(slots: Sequence[Slot]) -> list[Child]:
    return [slot.child for slot in slots if slot.child is not None]


def _kill(slots: Sequence[Slot]) -> None:
    for child in _living(slots):
        child.signal(signal.SIGKILL)


def _on_signals(slots: Sequence[Slot]) -> asyncio.Event:
    """Set at the first SIGINT or SIGTERM; a second one ends everything at once."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if stopped.is_set():
            _kill(slots)
            os._exit(130)
        stopped.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    return stopped


class _Exposition:
    """What the operations port's threads ask; answered on the supervisor's loop."""

    def __init__(self, scrape: Scrape) -> None:
        self._scrape = scrape
        self._loop = asyncio.get_running_loop()

    def exposition(self) -> bytes:
        return self._answer(self._scrape.metrics())

    def readiness(self) -> Mapping[str, object]:
        return self._answer(self._scrape.readiness())

    def _answer(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _ops(loaded: Loaded, scrape: Scrape) -> OpsServer:
    view = _Exposition(scrape)
    settings = loaded.settings
    ops = OpsServer(settings.metrics_host, settings.metrics_port, view, view.readiness)
    ops.start()
    if settings.metrics_port not in (0, ops.port):
        _log.info("metrics port %d is taken", settings.metrics_port, extra={"port": ops.port})
    return ops
