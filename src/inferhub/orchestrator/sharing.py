"""What this orchestrator and others tell one another through a store: sightings, wants, and who acts.

`service` runs it where there is a store. A store that is away changes nothing that is known already.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import DecodeError

from inferhub.core.errors import InferHubError, Invalid, StoreFailed
from inferhub.core.fleet import Deployment
from inferhub.core.serving import WorkerStatus
from inferhub.orchestrator.membership import Change, Roll, Terms
from inferhub.orchestrator.refusals import Refusals
from inferhub.orchestrator.wants import Wants
from inferhub.stores.fleet.base import FleetStore, Sighting, Wanted
from inferhub.transport import codec_models as nouns
from inferhub.transport._pb import orchestrator_pb2 as fleet_pb
from inferhub.transport._pb import worker_pb2 as pb

_log = logging.getLogger(__name__)
_RENEWALS = 6
"""How often a want is written again within its time."""


class Leadership(Protocol):
    """Whether this orchestrator is the one that acts."""

    def may_act(self) -> bool: ...

    def may_unload(self) -> bool: ...


class Alone:
    """There is no other."""

    def may_act(self) -> bool:
        return True

    def may_unload(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class _Written:
    record: bytes
    again_s: float


class Sharing:
    def __init__(
        self,
        store: FleetStore,
        me: str,
        *,
        roll: Roll,
        wants: Wants,
        terms: Terms,
        wants_ttl_s: float,
        clock: Callable[[], float],
        wall_ms: Callable[[], int],
        noticed: Callable[[list[Change]], None],
        refusals: Refusals,
    ) -> None:
        self._store = store
        self._me = me
        self._roll = roll
        self._wants = wants
        self._terms = terms
        self._wants_ttl_s = wants_ttl_s
        self._clock = clock
        self._wall_ms = wall_ms
        self._noticed = noticed
        self._refusals = refusals
        self._seen: dict[str, tuple[int, int]] = {}
        self._written: dict[str, _Written] = {}
        self._leads = False
        self._leads_until_s = 0.0
        self._round_s = clock()
        self.is_away = False
        """The store does not answer."""

    def may_act(self) -> bool:
        """While the store is away nobody new can be made leader, so who led goes on: a worker that comes back
        empty must not wait for a database."""
        return self._leads and (self.is_away or self._clock() < self._leads_until_s)

    def may_unload(self) -> bool:
        """Not while the store is away: gateways that talk to another orchestrator may want something new."""
        return self.may_act() and not self.is_away

    async def run(self) -> None:
        while True:
            await self.round()
            await asyncio.sleep(self._terms.heartbeat_s)

    async def round(self) -> None:
        try:
            async with asyncio.timeout(self._terms.lease_s):
                await self._exchange()
        except (StoreFailed, TimeoutError) as error:
            if not self.is_away:
                _log.error("the fleet's store is away, going on with what is known: %s", error)
            self.is_away = True
            # What others hear cannot be read, which says nothing of the workers that they hear.
            self._roll.excuse(self._clock() - self._round_s, self._clock(), "shared")
        else:
            if self.is_away:
                _log.warning("the fleet's store is back")
            self.is_away = False
        self._round_s = self._clock()

    async def forget(self, id: str, incarnation: int) -> None:  # noqa: A002 - the noun everywhere
        await self._tell(self._store.forget(id, incarnation), "that a worker left")

    async def resign(self) -> None:
        self._leads = False
        await self._tell(self._store.resign(self._me), "that this orchestrator leaves")

    async def tell_wants(self) -> None:
        """Now, instead of with the next round; where the store is away, then."""
        await self._tell(self._tell_wants(), "what a gateway wants")

    async def _tell(self, told: Coroutine[None, None, None], what: str) -> None:
        """Nobody waits for a store for long."""
        try:
            async with asyncio.timeout(self._terms.lease_s):
                await told
        except (StoreFailed, TimeoutError):
            _log.info("the fleet's store could not be told %s", what)

    async def _tell_wants(self) -> None:
        """What gateways said here, where it is new or has to be renewed."""
        now_s = self._clock()
        mine = self._wants.mine()
        for holder in self._written.keys() - mine.keys():
            del self._written[holder]
        for holder, deployments in mine.items():
            record = _pack_wants(deployments)
            written = self._written.get(holder)
            if written is None or written.record != record or now_s >= written.again_s:
                await self._store.want(Wanted(holder, record), self._wants_ttl_s)
                self._written[holder] = _Written(record, now_s + self._wants_ttl_s / _RENEWALS)
                self._wants.told_others(holder, deployments)

    async def _exchange(self) -> None:
        await self._tell_sightings()
        await self._read_sightings()
        await self._tell_wants()
        await self._read_wants()
        asked_s = self._clock()
        leads = await self._store.lead(self._me, self._terms.lease_s)
        if leads != self._leads:
            _log.info("this orchestrator %s", "leads now" if leads else "leads no longer")
        self._leads, self._leads_until_s = leads, asked_s + self._terms.lease_s

    async def _tell_sightings(self) -> None:
        now_s = self._clock()
        seen, sightings = {}, []
        for entry in self._roll.entries().values():
            if entry.source != "heard":
                continue
            worker = entry.worker
            seen[worker.id] = (worker.incarnation, worker.seq)
            if self._seen.get(worker.id) != seen[worker.id]:
                record = nouns.encode_worker(worker).SerializeToString()
                age_s = now_s - entry.heard_s
                sightings.append(Sighting(worker.id, worker.incarnation, worker.seq, record, age_s))
        if sightings:
            await self._store.saw(sightings, self._terms.shared_s)
        self._seen = seen

    async def _read_sightings(self) -> None:
        for sighting in await self._store.sightings():
            if self._roll.is_known(sighting.id, sighting.incarnation, sighting.seq):
                continue
            try:
                worker = _unpack_worker(sighting.record)
                changes = self._roll.learn(worker, sighting.age_s, self._clock(), self._wall_ms())
            except InferHubError as error:
                self._refusals.note("a worker in the fleet's store is", sighting.id, error)
            else:
                self._noticed(changes)

    async def _read_wants(self) -> None:
        wanted = {}
        for want in await self._store.wants():
            try:
                wanted[want.holder] = _unpack_wants(want.record)
            except InferHubError as error:
                self._refusals.note(f"what {want.holder[:80]!r} wants is", "", error)
        self._wants.heard_elsewhere(wanted)


def _pack_wants(deployments: tuple[Deployment, ...]) -> bytes:
    request = fleet_pb.WantRequest(deployments=nouns.encode_deployments(deployments))
    return request.SerializeToString(deterministic=True)


def _unpack_wants(record: bytes) -> tuple[Deployment, ...]:
    try:
        return nouns.decode_deployments(fleet_pb.WantRequest.FromString(record).deployments)
    except DecodeError as error:
        raise _unreadable() from error


def _unpack_worker(record: bytes) -> WorkerStatus:
    try:
        return nouns.decode_worker(pb.WorkerStatus.FromString(record))
    except DecodeError as error:
        raise _unreadable() from error


def _unreadable() -> Invalid:
    return Invalid("It cannot be read; another release may have written it.", code="unreadable")
