"""How fast the ledger's spool empties into the usage store, and what writing a call down costs."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from benchmarks.measure import Figure, Measure, Options, Outcome, at_least
from benchmarks.processes import module, run_json
from inferhub.core.clock import new_id
from inferhub.core.usage import Begin, UsageEvent
from inferhub.stores import open_usage
from inferhub.stores.spool.drain import Drain
from inferhub.stores.spool.spool import Spool
from inferhub.stores.usage.consumer import UsageConsumer

_CALLER = {"tenant_id": "ten_default", "project_id": "prj_default", "key_id": "ih_4fA09bQzX1c2"}


def run(options: Options) -> Outcome:
    events = round(options.scaled(100_000))
    seen = run_json("the ledger", module("benchmarks.measures.ledger", str(events)))
    figures = (
        Figure("events drained into SQLite", events / seen["drain_s"], "1/s", at_least(20_000)),
        Figure("writing down one call, begin and end", seen["write_s"] / events * 1e6, "us"),
        Figure("CPU of draining one event", seen["drain_cpu_s"] / events * 1e6, "us"),
    )
    return Outcome(figures, {"events": events, **seen})


async def _measure(events: int, folder: Path) -> dict[str, float]:
    spool = Spool(folder / "spool", 2 * 1024**3)
    begin = time.perf_counter()
    for number in range(events):
        at_ms = 1_800_000_000_000 + number
        call_id = new_id("call")
        spool.begin(Begin(id=call_id, request_id="req_1", at_ms=at_ms, modality="chat", model="m", **_CALLER))
        spool.end(_event(call_id, at_ms))
    write_s = time.perf_counter() - begin
    store = await open_usage(f"sqlite:///{folder}/usage.db")
    drain = Drain(spool, [UsageConsumer(store)])
    begin, begin_cpu = time.perf_counter(), time.process_time()
    task = asyncio.create_task(drain.run())
    if not await drain.flush(120):
        raise SystemExit("the spool was not empty after two minutes")
    drain_s, drain_cpu_s = time.perf_counter() - begin, time.process_time() - begin_cpu
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    spool.close()
    await store.close()
    return {"write_s": write_s, "drain_s": drain_s, "drain_cpu_s": drain_cpu_s}


def _event(call_id: str, at_ms: int) -> UsageEvent:
    return UsageEvent(
        id=call_id,
        request_id="req_1",
        at_ms=at_ms,
        modality="chat",
        model="m",
        requested_model="m",
        endpoint="local",
        source="reported",
        input_tokens=20,
        output_tokens=64,
        total_tokens=84,
        latency_ms=12.5,
        first_token_ms=3.25,
        cost_usd=Decimal("0.0000414"),
        price_version="4f1d0a7c9b2e",
        **_CALLER,
    )


def main(arguments: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(_measure(int(arguments[0]), Path(folder)))))


MEASURE = Measure("ledger", "the ledger's spool", run, order=11)

if __name__ == "__main__":
    main(sys.argv[1:])
