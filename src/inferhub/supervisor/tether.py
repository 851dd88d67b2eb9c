"""A gateway process's end of the line to its supervisor. Made by the CLI, handed to assembly in pieces.

A thread of its own answers for metrics and readiness while the event loop is blocked, and ends the
process when the supervisor is gone: the kernel closes the line however that happened.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future

from inferhub.supervisor.messages import (
    Ask,
    Go,
    Place,
    Prepared,
    State,
    ToSupervisor,
    line_of,
    read_to_process,
)
from inferhub.telemetry.ops import Exposition

_ORPHAN_MARGIN_S = 5.0
"""On top of the drain's grace, for an orphan whose event loop never comes back."""


class Tether:
    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)
        self._lines = self._socket.makefile("rb")
        self._sending = threading.Lock()
        self._go: Future[None] = Future()
        self._metrics: Exposition | None = None
        self._readiness: Callable[[], Mapping[str, object]] = lambda: {"ready": False}

    def place(self) -> Place | None:
        """Waits for the first word; None when the supervisor ended before it came."""
        first = read_to_process(line) if (line := self._lines.readline()) else None
        return first if isinstance(first, Place) else None

    def watch(self, drain_grace_s: float) -> None:
        """From now on the process ends with its supervisor."""
        arguments = (drain_grace_s,)
        threading.Thread(target=self._listen, args=arguments, name="tether", daemon=True).start()

    def tell(self, message: ToSupervisor) -> None:
        try:
            with self._sending:
                self._socket.sendall(line_of(message))
        except OSError:
            """Nobody listens any more; the thread sees the same and ends the process."""

    async def prepared(self, spec_revision: int) -> None:
        """Say so, and wait for the others."""
        self.tell(Prepared(spec_revision))
        await asyncio.wrap_future(self._go)

    def expose(self, metrics: Exposition, readiness: Callable[[], Mapping[str, object]]) -> None:
        """What `Ask` is answered with, both called in the tether's thread."""
        self._metrics, self._readiness = metrics, readiness

    def _listen(self, drain_grace_s: float) -> None:
        for line in self._lines:
            match read_to_process(line):
                case Ask():
                    self.tell(self._state())
                case Go():
                    self._go.set_result(None)
        # As if someone had stopped this process: running calls may finish.
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(drain_grace_s + _ORPHAN_MARGIN_S)
        os._exit(1)

    def _state(self) -> State:
        metrics = self._metrics.exposition().decode() if self._metrics else ""
        return State(metrics, dict(self._readiness()))
