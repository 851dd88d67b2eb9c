"""The operations port's view of all processes as one: metrics merged, ready when all are.

Lives on the supervisor's event loop; `service` hands its answers to the port's threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from inferhub.supervisor.child import Child
from inferhub.supervisor.crew import Crew
from inferhub.supervisor.slot import Slot
from inferhub.telemetry.aggregate import Aggregate

ASK_TIMEOUT_S = 2.0
"""A process that does not answer in time counts with what it said last, and is not ready."""


class Scrape:
    def __init__(self, crew: Crew) -> None:
        self.is_draining = False
        self._crew = crew
        self._aggregate = Aggregate()
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)

    def retire(self, slot: Slot, child: Child) -> None:
        """What a process counted stays in the totals after its end."""
        self._aggregate.retire(slot.name, child.state.metrics)

    async def metrics(self) -> bytes:
        await self._ask()
        told = [(slot.name, slot.child.state.metrics) for slot in self._crew.everyone() if slot.child]
        told.append(("supervisor", generate_latest(self._registry).decode()))
        return self._aggregate.merge(told, self._own())

    async def readiness(self) -> Mapping[str, object]:
        answered = await self._ask()
        processes = [self._process(slot, answers=slot in answered) for slot in self._crew.slots]
        is_ready = not self.is_draining and all(process["ready"] for process in processes)
        return {
            "ready": is_ready,
            "draining": self.is_draining,
            "renewing": self._crew.is_renewing,
            "processes": processes,
        }

    def _process(self, slot: Slot, *, answers: bool) -> dict[str, object]:
        state: Mapping[str, object] = slot.child.state.readiness if slot.child is not None else {}
        return {
            "process": slot.number,
            "pid": None if slot.child is None else slot.child.pid,
            "restarts": slot.restarts,
            **state,
            "ready": answers and bool(state.get("ready")),
        }

    async def _ask(self) -> set[Slot]:
        """The slots whose process answered in time."""
        living = [(slot, slot.child) for slot in self._crew.everyone() if slot.child is not None]
        answers = await asyncio.gather(*(child.ask(ASK_TIMEOUT_S) for _, child in living))
        return {slot for (slot, _), answered in zip(living, answers, strict=True) if answered}

    def _own(self) -> list[Metric]:
        processes = GaugeMetricFamily(
            "inferhub_processes", "Gateway processes, by whether they serve.", labels=["state"]
        )
        slots = self._crew.slots
        serving = sum(slot.is_serving for slot in slots)
        processes.add_metric(["serving"], serving)
        processes.add_metric(["starting"], len(slots) - serving)
        restarts = CounterMetricFamily(
            "inferhub_process_restarts",
            "Gateway processes that ended and were started again.",
            labels=["process"],
        )
        for slot in slots:
            restarts.add_metric([slot.name], slot.restarts)
        return [processes, restarts]
