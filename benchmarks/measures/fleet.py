"""A fleet of real processes that loses one: the orchestrator killed and started again, then a worker killed.

An orchestrator, three workers and a gateway, with calls coming all the time. What is timed is what a gateway
is told, and a client counts what its users would notice.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass, field
from statistics import median

from benchmarks.client import Plan, Readings, Target, ask
from benchmarks.contenders.gateway import echo_model, environment, start_http
from benchmarks.measure import CannotMeasureError, Figure, Measure, Options, Outcome, at_most
from benchmarks.processes import Processes, Running, free_port, module
from inferhub.core.fleet import FleetView
from inferhub.transport.control import ControlClient

_WORKERS = 3
_CALLERS = 8
_PATIENCE_S = 30.0
_AWAY_S = 0.5
_SLICE_S = 1.0
_BODY = json.dumps({"model": "mock", "messages": [{"role": "user", "content": "one"}]}, separators=(",", ":"))


def run(options: Options) -> Outcome:
    with Processes() as processes:
        fleet = _Fleet(processes)
        return asyncio.run(_measure(fleet, options.rounds(5)))


class _Fleet:
    """The processes; each listens where it did when it is started again."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self.address = f"127.0.0.1:{free_port()}"
        self.orchestrator = self.start_orchestrator()
        self.workers = {f"w{number}": self.start_worker(f"w{number}") for number in range(_WORKERS)}
        env = {**environment(processes, "gateway", [echo_model()]), "INFERHUB_ORCHESTRATOR": self.address}
        self.gateway = start_http(processes, "gateway", env)

    def start_orchestrator(self) -> Running:
        env = {"INFERHUB_ORCHESTRATOR_LISTEN": self.address}
        return self._start("orchestrator", env)

    def start_worker(self, name: str) -> Running:
        env = {
            "INFERHUB_WORKER_LISTEN": "127.0.0.1:0",
            "INFERHUB_WORKER_ID": name,
            "INFERHUB_ORCHESTRATOR": self.address,
        }
        return self._start("worker", env, name)

    def _start(self, verb: str, env: dict[str, str], name: str = "") -> Running:
        given = {**environment(self._processes, name or verb, ()), **env}
        del given["INFERHUB_SPEC_FILE"]
        return self._processes.start(name or verb, module("inferhub", verb, "--json"), env=given)

    @property
    def target(self) -> Target:
        url = f"{self.gateway.url}/v1/chat/completions"
        return Target("gateway", url, self.gateway.headers, (_BODY,))


@dataclass(slots=True)
class _Seen:
    """What the gateway's clients saw meanwhile."""

    answered: int = 0
    codes: dict[str, int] = field(default_factory=dict)

    def add(self, readings: Readings) -> None:
        self.answered += len(readings.total_s)
        for code, count in readings.codes.items():
            self.codes[code] = self.codes.get(code, 0) + count

    @property
    def failed(self) -> int:
        return sum(self.codes.values())


@dataclass(frozen=True, slots=True)
class _Outage:
    ready_s: float
    """From the start of the new orchestrator until it listens."""
    whole_s: float
    """From its start until it has told a gateway that knew nothing of every worker."""
    seen: _Seen


@dataclass(frozen=True, slots=True)
class _Loss:
    gone_s: float
    """From the death of a worker until a gateway is told."""
    seen: _Seen


async def _measure(fleet: _Fleet, rounds: int) -> Outcome:
    await _until(fleet.address, _is_whole, "the whole fleet")
    await asyncio.to_thread(ask, _plan(fleet))
    outages, losses = [], []
    for _ in range(rounds):
        outages.append(await _orchestrator_lost(fleet))
        losses.append(await _worker_lost(fleet))
    return _judge(outages, losses)


async def _orchestrator_lost(fleet: _Fleet) -> _Outage:
    async with _under_load(fleet) as seen:
        os.kill(fleet.orchestrator.pid, signal.SIGKILL)
        await asyncio.sleep(_AWAY_S)
        begin_s = time.monotonic()
        fleet.orchestrator = await asyncio.to_thread(fleet.start_orchestrator)
        ready_s = time.monotonic() - begin_s
        whole_s = await _until(fleet.address, _is_whole, "the whole fleet again") - begin_s
    return _Outage(ready_s, whole_s, seen)


async def _worker_lost(fleet: _Fleet) -> _Loss:
    name = next(iter(fleet.workers))

    def is_gone(view: FleetView) -> bool:
        return all(member.worker.id != name or member.is_suspect for member in view.members)

    async with _under_load(fleet) as seen:
        begin_s = time.monotonic()
        os.kill(fleet.workers.pop(name).pid, signal.SIGKILL)
        gone_s = await _until(fleet.address, is_gone, "a worker's death") - begin_s
    fleet.workers[name] = await asyncio.to_thread(fleet.start_worker, name)
    await _until(fleet.address, _is_whole, "its return")
    return _Loss(gone_s, seen)


async def _until(address: str, is_so: Callable[[FleetView], bool], what: str) -> float:
    """When a gateway that has just begun to watch was told so: one that remembers would hold what it knew."""
    control = ControlClient([address])
    try:
        async with asyncio.timeout(_PATIENCE_S), aclosing(control.watch("observer")) as views:
            async for view in views:
                if is_so(view):
                    return time.monotonic()
    except TimeoutError as error:
        raise CannotMeasureError(f"{what} was not seen within {_PATIENCE_S:g} s") from error
    finally:
        await control.close()
    raise CannotMeasureError(f"the orchestrator went away before {what} was seen")


def _is_whole(view: FleetView) -> bool:
    return sum(not member.is_suspect for member in view.members) == _WORKERS


def _plan(fleet: _Fleet) -> Plan:
    return Plan("load", (fleet.target,), connections=_CALLERS, duration_s=_SLICE_S)


@asynccontextmanager
async def _under_load(fleet: _Fleet) -> AsyncIterator[_Seen]:
    """Calls all the time, a while before and a while after too."""
    seen, is_over = _Seen(), asyncio.Event()

    async def press() -> None:
        while not is_over.is_set():
            seen.add((await asyncio.to_thread(ask, _plan(fleet)))["gateway"])

    pressing = asyncio.create_task(press())
    try:
        await asyncio.sleep(_SLICE_S)
        yield seen
    finally:
        is_over.set()
        await pressing


def _judge(outages: list[_Outage], losses: list[_Loss]) -> Outcome:
    ready_s = median(o.ready_s for o in outages)
    figures = (
        Figure(
            "orchestrator back: every worker known after its start",
            median(o.whole_s for o in outages),
            "s",
            at_most(2),
            f"slowest {max(o.whole_s for o in outages):.2f} s; it listened after {ready_s:.2f} s",
        ),
        Figure(
            "the same, after it listened", median(o.whole_s - o.ready_s for o in outages), "s", at_most(2)
        ),
        Figure(
            "calls that failed meanwhile",
            float(sum(o.seen.failed for o in outages)),
            "",
            at_most(0),
            _codes([o.seen for o in outages]),
        ),
        Figure("a killed worker is known to be gone", median(loss.gone_s for loss in losses), "s"),
        Figure(
            "calls that failed when a worker was killed",
            float(sum(loss.seen.failed for loss in losses)),
            "",
            note=_codes([loss.seen for loss in losses]),
        ),
    )
    details = {
        "workers": _WORKERS,
        "callers": _CALLERS,
        "outages": [asdict(outage) for outage in outages],
        "losses": [asdict(loss) for loss in losses],
    }
    return Outcome(figures, details)


def _codes(seen: list[_Seen]) -> str:
    counts: dict[str, int] = {}
    for one in seen:
        for code, count in one.codes.items():
            counts[code] = counts.get(code, 0) + count
    said = ", ".join(f"{count} × {code}" for code, count in sorted(counts.items()))
    return f"of {sum(one.answered for one in seen):,} answered{': ' + said if said else ''}"


MEASURE = Measure("fleet", "an orchestrator and a worker killed under load", run, order=18, limit_s=240)
