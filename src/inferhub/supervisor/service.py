"""Keeps N gateway processes running behind one listening socket until a signal, then drains them.

Called by the CLI. It answers no calls itself and never opens a store.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import tempfile
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from inferhub.gateway.turns import ABSENT, COUNT_BYTES, Board
from inferhub.settings import Loaded
from inferhub.supervisor.crew import SIDE_BY_SIDE, Crew
from inferhub.supervisor.messages import Announced
from inferhub.supervisor.scrape import Scrape
from inferhub.supervisor.slot import Common, Muster
from inferhub.telemetry.ops import OpsServer
from inferhub.telemetry.ports import listen

_log = logging.getLogger(__name__)

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
    muster = Muster(settings.processes, lambda first: announce(first, tuple(c.pid for c in crew.living())))
    crew = Crew(settings.processes, muster, settings.drain_grace_s)
    stopped = _on_signals(crew)
    scrape = Scrape(crew)
    # Both ports before any process, so that a taken one is known at once.
    with listen(settings.host, settings.port) as listener, tempfile.TemporaryFile() as shared:
        board = _board(shared.fileno(), SIDE_BY_SIDE * settings.processes)
        ops = _ops(loaded, scrape)
        host = f"[{settings.metrics_host}]" if ":" in settings.metrics_host else settings.metrics_host
        ops_url = f"http://{host}:{ops.port}"
        common = Common(module, loaded, spec_text, listener, shared.fileno(), ops_url, on_progress)
        try:
            await crew.keep(common, board, scrape.retire, stopped)
        finally:
            # Our copy too: connections that nobody will accept must be refused, not kept waiting.
            listener.close()
            scrape.is_draining = True
            await crew.drain()
            # In a thread: this loop answers the scrape that it may be waiting for.
            await asyncio.to_thread(ops.stop)


def _board(descriptor: int, seats: int) -> Board:
    os.ftruncate(descriptor, seats * COUNT_BYTES)
    board = Board(descriptor, seats)
    for seat in range(seats):
        board.write(seat, ABSENT)
    return board


def _on_signals(crew: Crew) -> asyncio.Event:
    """Set at the first SIGINT or SIGTERM; a second one ends everything at once. SIGHUP renews."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if stopped.is_set():
            crew.kill()
            os._exit(130)
        stopped.set()

    had_terminal = _has_terminal()

    def hang_up() -> None:
        # The same signal says that somebody closed the terminal that we were started from.
        if had_terminal and not _has_terminal():
            stopped.set()
        else:
            crew.renew()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, hang_up)
    return stopped


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


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
