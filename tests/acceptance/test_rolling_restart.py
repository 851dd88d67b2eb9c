"""Every process of an installation replaced, one after the other, under load: nobody notices.

Streams that are open finish within the grace period; calls that are not streams succeed with the one retry
that every client makes.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from inferhub.testing.servers import Process, fetch, is_ready, start_service, wait_for
from inferhub.testing.talk import CHAT, Talk, chat_body, content

WORDS = 40
SAID = " ".join(f"w{n}" for n in range(WORDS))
SPEC = """
models:
  - {name: quick, backend: echo, slots: 64}
  - {name: slow, backend: echo, slots: 64, options: {gap_s: 0.05}}
"""
"""A stream takes two seconds: several are open at any moment, and all end far within the grace period."""
GRACE_S = 60
PATIENT_S = 600
"""Far more than a round takes: no test is about the machine's speed."""
STREAMS = 6
CALLERS = 2
PAUSE_S = 0.1

FAST, SLOW = 2, 20


@dataclass
class Load:
    """Streams one after the other in several lanes, and short calls beside them, until it is told to end."""

    talk: Talk
    is_over: bool = False
    streams: int = 0
    calls: int = 0
    retries: int = 0
    served_by: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    async def stream(self) -> None:
        while not self.is_over:
            try:
                await self._stream()
            except (AssertionError, EOFError, OSError) as error:
                self.faults.append(f"stream {self.streams}: {error!r}")
            self.streams += 1

    async def _stream(self) -> None:
        body = chat_body("slow", SAID, stream=True)
        # One retry of what was not answered: a stream that has begun is never asked for again.
        for attempt in range(2):
            async with self.talk.opened(CHAT, body, x_inferhub_cache="off") as call:
                try:
                    head = await call.head()
                except (AssertionError, EOFError, OSError):
                    if attempt:
                        raise
                    self.retries += 1
                    continue
                if head.status != 200 and not attempt:
                    self.retries += 1
                    continue
                assert head.status == 200, (head, await call.connection.body(head))
                events = [event async for event in call.connection.events(head)]
                assert events[-1].data == "[DONE]", events[-1]
                assert content(events) == SAID
                return

    async def call(self, name: int) -> None:
        for number in itertools.count():
            if self.is_over:
                return
            fault = await self._call(f"{name}.{number}")
            if fault is not None:
                self.retries += 1
                fault = await self._call(f"{name}.{number}")
            if fault is not None:
                self.faults.append(f"call {name}.{number}: {fault}")
            self.calls += 1
            await asyncio.sleep(PAUSE_S)

    async def _call(self, words: str) -> str | None:
        try:
            answer = await self.talk.post(CHAT, chat_body("quick", words), x_inferhub_cache="off")
        except (AssertionError, EOFError, OSError) as error:
            return repr(error)
        if answer.status != 200:
            return f"{answer.status} {answer.body!r}"
        self.served_by[answer.head["x-inferhub-upstream"] or ""] += 1
        said = json.loads(answer.body)["choices"][0]["message"]["content"]
        return None if said == words else f"{said!r}"


@asynccontextmanager
async def load(url: str, key: str) -> AsyncIterator[Load]:
    """Checked at the end."""
    given = Load(Talk(url, key))
    async with asyncio.TaskGroup() as group:
        for _ in range(STREAMS):
            group.create_task(given.stream())
        for name in range(CALLERS):
            group.create_task(given.call(name))
        try:
            await until(lambda: given.streams >= STREAMS and given.calls >= CALLERS, "the load to run")
            yield given
        finally:
            given.is_over = True
    assert given.faults == []
    assert given.streams > STREAMS


async def until(condition: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(wait_for, condition, PATIENT_S, what)


@dataclass
class Town:
    """A gateway and its workers, each a process of its own."""

    folder: Path
    stack: ExitStack
    settings: dict[str, object]
    url: str = ""
    ops_url: str = ""
    key: str = ""
    gateway: Process | None = None
    orchestrators: list[str] = field(default_factory=list)
    workers: dict[str, tuple[str, Process]] = field(default_factory=dict)
    """By their names: where each listens, and its process."""
    starts: itertools.count[int] = field(default_factory=itertools.count)

    def start(self, verb: str, *arguments: str, **settings: object) -> Process:
        name = f"{verb}-{next(self.starts)}"
        given = {"drain_grace_s": GRACE_S, **settings}
        return self.stack.enter_context(start_service(verb, self.folder, given, *arguments, name=name))

    async def start_worker(self, name: str, listen: str = "127.0.0.1:0") -> None:
        # Started in this thread: what another thread starts ends with that thread. Waited for in another:
        # the load goes on in this one.
        known = [word for address in self.orchestrators for word in ("--orchestrator", address)]
        process = self.start("worker", *known, worker_listen=listen, worker_id=name)
        said = await asyncio.to_thread(process.announcement)
        self.workers[name] = (said["url"], process)

    def start_gateway(self, *arguments: str) -> None:
        spec = self.folder / "hub.yaml"
        spec.write_text(SPEC, encoding="utf-8")
        self.gateway = self.start("gateway", *arguments, spec_file=spec, **self.settings)
        said = self.gateway.announcement()
        self.url, self.ops_url, self.key = said["url"], said["ops_url"], said["admin_key"]
        wait_for(lambda: is_ready(self.url), PATIENT_S, "the gateway to be ready")

    def members(self) -> dict[str, bool]:
        """Who the gateway says is there, and whether it takes every model's calls."""
        headers = {"Authorization": f"Bearer {self.key}"}
        told = json.loads(fetch(f"{self.url}/admin/v1/workers", headers)[1])["data"]
        return {one["id"]: serves(one) for one in told if one["reachable"]}

    def pids(self) -> list[int]:
        """Of the gateway's processes, once all are ready and no other is left."""

        def told() -> list[int] | None:
            status, body = fetch(f"{self.ops_url}/readyz")
            state = json.loads(body)
            return (
                [one["pid"] for one in state["processes"]]
                if status == 200 and not state["renewing"]
                else None
            )

        return wait_for(told, PATIENT_S, "all processes to serve")


def serves(worker: dict[str, object]) -> bool:
    models = worker["models"]
    assert isinstance(models, list)
    return (
        not worker["draining"]
        and not worker["suspect"]
        and len(models) == 2
        and all(one["ready"] for one in models)
    )


@asynccontextmanager
async def town(
    folder: Path, workers: int, *, with_orchestrator: bool, **settings: object
) -> AsyncIterator[Town]:
    with ExitStack() as stack:
        one = Town(folder, stack, dict(settings))
        if with_orchestrator:
            orchestrator = one.start("orchestrator", orchestrator_listen="127.0.0.1:0")
            one.orchestrators.append(orchestrator.announcement()["url"])
        names = [f"w{n}" for n in range(workers)]
        for name in names:
            await one.start_worker(name)
        if with_orchestrator:
            one.start_gateway("--orchestrator", one.orchestrators[0])
        else:
            one.start_gateway(
                *(word for address, _ in one.workers.values() for word in ("--worker", address))
            )
        await until(lambda: [one.members().get(name) for name in names] == [True] * workers, "all workers")
        yield one


rounds = pytest.mark.parametrize("rounds", [FAST, pytest.param(SLOW, marks=pytest.mark.slow)])
pytestmark = pytest.mark.timeout(3600)
"""Two processes start in each round, beside a load: how long that takes says something of the machine."""


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@rounds
async def test_sighup_replaces_the_gateways_processes_and_nobody_notices(tmp_path: Path, rounds: int) -> None:
    async with town(tmp_path, 1, with_orchestrator=False, processes=2) as one:
        assert one.gateway is not None
        before = await asyncio.to_thread(one.pids)
        async with load(one.url, one.key):
            for _ in range(rounds):
                one.gateway.send(signal.SIGHUP)
                await until(lambda old=before: all(is_gone(pid) for pid in old), "the old processes to end")
                after = await asyncio.to_thread(one.pids)
                assert set(before).isdisjoint(after)
                before = after
        assert one.gateway.exit_code is None
        assert "Traceback" not in one.gateway.stderr


@rounds
@pytest.mark.parametrize("with_orchestrator", [False, True], ids=["--worker", "--orchestrator"])
async def test_workers_that_are_stopped_and_started_again_one_after_the_other(
    tmp_path: Path, rounds: int, *, with_orchestrator: bool
) -> None:
    async with town(tmp_path, 3, with_orchestrator=with_orchestrator) as one:
        async with load(one.url, one.key) as given:
            for name in list(one.workers) * rounds:
                address, process = one.workers[name]
                os.kill(process.pid, signal.SIGTERM)
                await until(lambda process=process: process.exit_code is not None, f"{name} to end")
                assert process.exit_code == 0, process.stderr
                assert "grace did not finish" not in process.stderr
                await one.start_worker(name, address)
                await until(lambda name=name: one.members().get(name), f"{name} to serve again")
        assert set(given.served_by) == set(one.workers)
