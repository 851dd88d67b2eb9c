"""Worker processes on this machine: started, watched, started again later and later, drained, ended.

Made by assembly, asked by `pool`. A process is told by a pipe what to run and lives as long as that pipe, so
none outlives its parent by more than a drain; its log comes back through ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Mapping, Sequence

from inferhub.orchestrator.launchers.base import Launched
from inferhub.orchestrator.launchers.log import forward
from inferhub.orchestrator.launchers.messages import (
    MAX_LINE_BYTES,
    Listens,
    Refuses,
    Task,
    line_of,
    read_word,
)
from inferhub.settings import Loaded
from inferhub.settings.plain import plain_settings

_log = logging.getLogger(__name__)

FIRST_DELAY_S = 0.1
MAX_DELAY_S = 30.0
STABLE_S = 60.0
"""A process that listened so long starts counting from the first delay again."""
LOOPING_DEATHS = 3
START_TIMEOUT_S = 120.0
"""Until it listens; it loads nothing before."""
KILL_MARGIN_S = 10.0
"""On top of the drain's grace, before a process that does not end is killed."""

_OWN: Mapping[str, object] = {
    # What concerns the parent alone.
    "metrics_port": 0, "processes": 1, "workers": 0, "max_workers": None, "launcher": "none",
    "fleet_url": "memory://", "spec_file": None, "worker": [],
}  # fmt: skip


class ProcessLauncher:
    """A `Launcher`. `python -m MODULE ID` is a process."""

    def __init__(self, module: str, loaded: Loaded, overrides: Mapping[str, object]) -> None:
        """`overrides` stand instead of the settings of `loaded`: values as JSON has them."""
        self._module = module
        self._settings = {**plain_settings(loaded), **_OWN, **overrides}
        self._origins = dict(loaded.origins)
        self._environment = dict(loaded.environment)
        self._places: dict[str, _Place] = {}

    async def start(self, id: str) -> None:  # noqa: A002 - the noun everywhere
        if id not in self._places:
            task = Task({**self._settings, "worker_id": id}, self._origins, self._environment)
            self._places[id] = _Place(id, self._module, line_of(task))

    async def stop(self, id: str, grace_s: float) -> None:  # noqa: A002
        if place := self._places.get(id):
            await place.end(grace_s)
            self._places.pop(id, None)

    def launched(self) -> Sequence[Launched]:
        return [place.state() for place in self._places.values()]

    async def close(self, grace_s: float) -> None:
        await asyncio.gather(*(self.stop(id_, grace_s) for id_ in tuple(self._places)))


class _Place:
    """Where one worker is, through all its lives; filled again until `end`."""

    def __init__(self, id: str, module: str, task: bytes) -> None:  # noqa: A002
        self._id = id
        self._module = module
        self._task = task
        self._life: _Life | None = None
        self._deaths = 0
        """In a row."""
        self._restarts = 0
        self._last_end = self._refused = ""
        self._grace_s = 0.0
        self._keeper = asyncio.create_task(self._keep(), name=f"keeper of {id}")

    def state(self) -> Launched:
        if self._keeper.done() and not self._keeper.cancelled():
            self._keeper.result()  # it never returns: this raises what went wrong
        life = self._life
        told = life.listens if life else None
        return Launched(
            self._id,
            is_running=told is not None,
            is_looping=self._deaths >= LOOPING_DEATHS,
            restarts=self._restarts,
            last_end=self._last_end,
            refused=self._refused,
            pid=life.pid if life else None,
            url=told.url if told else "",
            ops_url=told.ops_url if told else "",
        )

    async def end(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._keeper.cancel()
        await asyncio.wait([self._keeper])

    async def _keep(self) -> None:
        try:
            while True:
                self._life, self._last_end = None, await self._live()
                delay_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(self._deaths - 1, 20))
                # Workers that died together must not come back together.
                delay_s *= random.uniform(0.5, 1.0)  # noqa: S311
                extra = {"worker": self._id}
                _log.error("worker %s; it starts again in %.1f s", self._last_end, delay_s, extra=extra)
                if self._deaths == LOOPING_DEATHS:
                    _log.error("worker died %d times in a row", self._deaths, extra=extra)
                self._restarts += 1
                await asyncio.sleep(delay_s)
        finally:
            if self._life is not None:
                await self._life.end(self._grace_s)
                self._life = None

    async def _live(self) -> str:
        """From a start to its end, and how that was."""
        try:
            life = self._life = await _Life.start(self._id, self._module, self._task)
        except OSError as error:
            self._deaths += 1
            return f"cannot start: {error.strerror}"
        ended = await life.wait()
        is_stable = life.listened_s() >= STABLE_S
        self._deaths = 1 if is_stable else self._deaths + 1
        self._refused = life.refused
        return f"{ended}: {life.refused}" if life.refused else ended


class _Life:
    """One process, from its start to its end."""

    def __init__(self, id: str, process: asyncio.subprocess.Process) -> None:  # noqa: A002
        assert process.stdout is not None and process.stderr is not None  # noqa: S101, PT018
        self.pid = process.pid
        self.listens: Listens | None = None
        self.refused = ""
        self._id = id
        self._process = process
        self._listens_since_s: float | None = None
        self._late = asyncio.get_running_loop().call_later(START_TIMEOUT_S, self._kill)
        self._reading = [
            asyncio.create_task(self._hear(process.stdout), name=f"words of {id}"),
            asyncio.create_task(forward(process.stderr, id), name=f"log of {id}"),
        ]

    @classmethod
    async def start(cls, id: str, module: str, task: bytes) -> _Life:  # noqa: A002
        """Raises `OSError`."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # the folder that somebody stands in is no place to import from
            "-m",
            module,
            id,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=MAX_LINE_BYTES,
            # Ctrl-C reaches the whole group of a terminal; this process decides what it means. A session
            # of its own, not a group alone: uvloop knows no other way.
            start_new_session=True,
        )
        assert process.stdin is not None  # noqa: S101
        # Kept open: its end is what tells the process that it is alone.
        process.stdin.write(task)
        return cls(id, process)

    def listened_s(self) -> float:
        return 0.0 if self._listens_since_s is None else time.monotonic() - self._listens_since_s

    async def wait(self) -> str:
        """How it ended, as the end of a sentence, after its last word was read."""
        code = await self._process.wait()
        self._late.cancel()
        # Bounded: a process that an engine started may hold the pipes open.
        await asyncio.wait(self._reading, timeout=1.0)
        for task in self._reading:
            task.cancel()
        return f"ended with exit status {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"

    async def end(self, grace_s: float) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        waiting = asyncio.create_task(self.wait(), name=f"end of {self._id}")
        _, late = await asyncio.wait([waiting], timeout=grace_s + KILL_MARGIN_S)
        if late:
            _log.warning("worker does not end; it is killed", extra={"worker": self._id})
            self._kill()
        ended = await waiting
        if self._process.returncode not in (0, -signal.SIGTERM):
            _log.error("worker %s while it drained", ended, extra={"worker": self._id})

    def _kill(self) -> None:
        """With the processes of its engines, which are in its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    async def _hear(self, stdout: asyncio.StreamReader) -> None:
        async for line in stdout:
            if not line.endswith(b"\n"):
                return  # killed in the middle of a word
            match read_word(line):
                case Listens() as said:
                    self._late.cancel()
                    self.listens, self._listens_since_s = said, time.monotonic()
                case Refuses() as said:
                    self.refused = said.message
