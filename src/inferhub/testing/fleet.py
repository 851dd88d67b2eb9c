"""A whole fleet of real processes for tests: an orchestrator, workers that register with it, and a gateway.

Each can be killed, frozen and started again by itself. For one process of each kind, see `servers`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inferhub.testing.raw_http import Event
from inferhub.testing.servers import START_TIMEOUT_S, Hub, Process, ready_hub, start_service, wait_for
from inferhub.testing.talk import CHAT, Talk, chat_body, chunks

QUICK: Mapping[str, object] = {"heartbeat_interval_s": 0.2, "lease_s": 1.0}
"""So that a test does not wait five seconds until a dead worker is out."""


@dataclass
class RunningFleet:
    """Processes by what they are."""

    folder: Path
    settings: Mapping[str, object]
    orchestrator: Process
    address: str
    """Of the orchestrator; the same in each of its lives."""
    workers: dict[str, Process] = field(default_factory=dict)
    gateways: list[Hub] = field(default_factory=list)
    _lives: int = 0

    @property
    def hub(self) -> Hub:
        return self.gateways[0]

    def start_worker(self, name: str, *, within: Sequence[str] = (), **settings: object) -> Process:
        """Not yet in the fleet: `until_serving` waits for that. `within`: see `start_service`."""
        given = {**self.settings, "orchestrator": self.address, "worker_id": name, **settings}
        process = start_service("worker", self.folder, given, name=self._named(name), within=within)
        self.workers[name] = process
        return process

    def start_gateway(self, spec: str, **settings: object) -> Hub:
        folder = self.folder / f"gateway{len(self.gateways)}"
        folder.mkdir()
        spec_file = folder / "hub.yaml"
        spec_file.write_text(spec, encoding="utf-8")
        given = {**self.settings, "orchestrator": self.address, "spec_file": spec_file, **settings}
        process = start_service("gateway", folder, given)
        try:
            self.gateways.append(ready_hub("split", folder, (process,)))
        except BaseException:
            process.stop()
            raise
        return self.hub

    def restart_orchestrator(self) -> Process:
        """At the address where it was."""
        given = {**self.settings, "orchestrator_listen": self.address}
        self.orchestrator = start_service(
            "orchestrator", self.folder, given, name=self._named("orchestrator")
        )
        self.orchestrator.announcement()
        return self.orchestrator

    def cards(self) -> dict[str, dict[str, Any]]:
        """What the gateway knows of each worker, by name."""
        listing = self.hub.get("/admin/v1/workers")["data"]
        return {card["name"]: card for card in listing if card["name"] != "providers"}

    def states(self) -> dict[str, str]:
        """`serving`, `suspect`, `draining` or `lost`, of every worker that the gateway knows."""
        return {name: _state(card) for name, card in self.cards().items()}

    def until(self, states: Mapping[str, str], timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until the gateway sees exactly this."""
        wait_for(lambda: self.states() == states, timeout_s, f"the fleet to be {states}")

    def until_serving(self, *names: str) -> None:
        """Wait until these workers, and no other, have every model."""

        def are_serving() -> bool:
            cards = self.cards()
            return set(cards) == set(names) and all(map(self._has_all, cards.values()))

        wait_for(are_serving, START_TIMEOUT_S, f"{names} to serve")

    def stop(self) -> None:
        everyone = [
            *(process for hub in self.gateways for process in hub.processes),
            *self.workers.values(),
            self.orchestrator,
        ]
        for process in everyone:
            process.end()
        for process in everyone:
            process.stop()

    def _has_all(self, card: Mapping[str, Any]) -> bool:
        has = {model["name"] for model in card.get("models", ()) if model["ready"]}
        return has >= set(self.hub.models) and _state(card) == "serving"

    def _named(self, name: str) -> str:
        """A file of its own for the words of each life."""
        self._lives += 1
        return f"{name}-{self._lives}"


@contextmanager
def running_fleet(
    folder: Path,
    spec: str,
    *names: str,
    settings: Mapping[str, object] | None = None,
    of_orchestrator: Mapping[str, object] | None = None,
) -> Iterator[RunningFleet]:
    """An orchestrator, a worker for each of `names`, and a gateway that serves `spec`, all ready."""
    given = {**QUICK, **(settings or {})}
    orchestrator = start_service("orchestrator", folder, {**given, **(of_orchestrator or {})})
    fleet = RunningFleet(folder, given, orchestrator, "")
    try:
        fleet.address = orchestrator.announcement()["url"]
        for name in names:
            fleet.start_worker(name)
        for worker in fleet.workers.values():
            worker.announcement()
        fleet.start_gateway(spec)
        fleet.until_serving(*names)
        yield fleet
    finally:
        fleet.stop()


class LongAnswer:
    """A stream of seconds, read in a task; `upstream` is known as soon as it begins."""

    def __init__(self, hub: Hub, model: str, words: int = 60) -> None:
        self.upstream: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.events: list[Event] = []
        body = chat_body(model, " ".join(f"word{n}" for n in range(words)), stream=True)
        self.task = asyncio.create_task(self._read(Talk(hub.url, hub.admin_key), body))

    @property
    def is_whole(self) -> bool:
        return bool(self.events) and self.events[-1].data == "[DONE]"

    @property
    def error(self) -> str | None:
        """The code of the event that ended it before its time."""
        found = [chunk["error"]["code"] for chunk in chunks(self.events) if "error" in chunk]
        return found[0] if found else None

    async def _read(self, talk: Talk, body: Mapping[str, Any]) -> None:
        async with talk.opened(CHAT, body) as call:
            head = await call.head()
            assert head.status == 200, head
            self.upstream.set_result(head["x-inferhub-upstream"] or "")
            async for event in call.connection.events(head):
                self.events.append(event)


async def spread_answers(fleet: RunningFleet, model: str) -> list[LongAnswer]:
    """Three long answers for each worker, so that none waits for a slot; at least one has begun on each."""
    answers = [LongAnswer(fleet.hub, model) for _ in range(3 * len(fleet.workers))]
    upstreams = await asyncio.gather(*(answer.upstream for answer in answers))
    assert set(upstreams) == set(fleet.workers), upstreams
    return answers


def _state(card: Mapping[str, Any]) -> str:
    if not card["reachable"]:
        return "lost"
    if card["draining"]:
        return "draining"
    return "suspect" if card["suspect"] else "serving"
