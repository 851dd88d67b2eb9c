"""How long admission takes with a real Redis behind it: 500 calls a second against every kind of limit.

The ring itself in a process of its own, over its leases and its fail-safe, as a gateway has it.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks.measure import CannotMeasureError, Figure, Measure, Options, Outcome, at_most
from benchmarks.processes import Processes, module, run_json
from benchmarks.stats import percentile
from inferhub.core.call import Call, Chunk
from inferhub.core.quota import Quota, Unit, Window
from inferhub.pipeline.admit import Admit
from inferhub.pipeline.limiter import Failsafe, Leased, Limiter, QuotaBook
from inferhub.stores import open_counters
from inferhub.testing.backing import running_valkey
from inferhub.testing.calls import make_call
from inferhub.testing.servers import StartError

_RATE_PER_S = 500
_LIMITS = (
    (Unit.REQUESTS, Window.MINUTE, 1_000_000),
    (Unit.TOKENS, Window.MINUTE, 1_000_000_000),
    (Unit.CONCURRENT, Window.NOW, 10_000),
    (Unit.USD, Window.MONTH, 10**15),
)
_SUBJECTS = (("tenant", "ten_default"), ("key", "ih_test"))


def run(options: Options) -> Outcome:
    calls = round(options.scaled(5000))
    with Processes() as processes, ExitStack() as stack:
        try:
            valkey = stack.enter_context(running_valkey(processes.folder))
        except StartError as error:
            raise CannotMeasureError(str(error)) from error
        waits_s = run_json("admission", module("benchmarks.measures.admit", valkey.url, str(calls)))
    figures = (
        Figure(f"p99 of the admit ring at {_RATE_PER_S}/s", percentile(waits_s, 99) * 1e3, "ms", at_most(1)),
        Figure("p50 of the admit ring", percentile(waits_s, 50) * 1e3, "ms"),
    )
    return Outcome(figures, {"calls": len(waits_s), "meters": len(_LIMITS) * len(_SUBJECTS)})


async def _waits_s(url: str, calls: int) -> list[float]:
    """From handing a call to the ring until it is inside."""
    counters = Leased(Failsafe(await open_counters(url), timeout_s=5))
    call = make_call("chat")
    quotas = [
        Quota(f"quo_{level}_{unit}", "ten_default", level, _subject(call, level), unit, window, limit)
        for level, _ in _SUBJECTS
        for unit, window, limit in _LIMITS
    ]
    book = QuotaBook(quotas)
    limiter = Limiter(counters, lambda: book)
    admit = Admit(max_inflight=10_000, limiter=limiter, cost=lambda *_: 1_000)
    services = [asyncio.create_task(limiter.run()), asyncio.create_task(counters.run())]
    waits_s: list[float] = []

    async def one() -> None:
        begin = time.perf_counter()

        async def inside(call: Call, emit: object) -> None:
            waits_s.append(time.perf_counter() - begin)
            await asyncio.sleep(0.01)

        await admit(call, _drop, inside)

    warm_up = 500
    running = []
    start = time.perf_counter()
    for number in range(calls + warm_up):
        await asyncio.sleep(max(0.0, start + number / _RATE_PER_S - time.perf_counter()))
        running.append(asyncio.create_task(one()))
    await asyncio.gather(*running)
    for service in services:
        service.cancel()
    await asyncio.gather(*services, return_exceptions=True)
    await limiter.close()
    await counters.close()
    return waits_s[warm_up:]


def _subject(call: Call, level: str) -> str:
    return call.principal.tenant_id if level == "tenant" else call.principal.key_id


async def _drop(chunk: Chunk) -> None:
    pass


def main(arguments: Sequence[str]) -> None:
    import json

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(_waits_s(arguments[0], int(arguments[1])))))


MEASURE = Measure("admit", "admission with every limit in Redis", run, order=10)

if __name__ == "__main__":
    main(sys.argv[1:])
