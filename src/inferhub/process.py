"""What every service process does, whatever it serves: its event loop, its memory, its signals.

Called by assembly; knows none of the services.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Coroutine
from typing import Any

import uvloop


def run(service: Coroutine[Any, Any, None]) -> None:
    """Run a service on uvloop, from a synchronous caller. A SIGTERM before it is up, while a model loads,
    ends it in order: it lets go of what it has opened."""
    is_told = False

    async def stoppable() -> None:
        task = asyncio.current_task()

        def stop() -> None:
            nonlocal is_told
            is_told = True
            if task:
                task.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
        await service

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(stoppable())
        except asyncio.CancelledError:
            if is_told:
                raise SystemExit(128 + signal.SIGTERM) from None
            raise


def settle_memory() -> None:
    """Take what start-up made out of the garbage collector's sight, and let it run less often.

    Modules, schemas and models live as long as the process; walking them again and again took a quarter
    of a busy gateway's CPU and stopped the loop for a tenth of a second each time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


async def until_signalled(*, ends_at_second: bool = True) -> None:
    """Returns at the first SIGINT or SIGTERM; a second one ends the process at once.

    Not one that has a supervisor: a service manager signals them all, and so does the supervisor.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if stopped.is_set() and ends_at_second:
            os._exit(130)
        stopped.set()

    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stop)
    await stopped.wait()
