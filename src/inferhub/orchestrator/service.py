"""The orchestrator: knows the workers, has them load what gateways want, and tells gateways who is there.

Assembly makes one and runs it, in a process of its own or beside a gateway. No call passes through it: when
it is gone, calls go on. `membership` and `plan` decide; this class only connects them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from weakref import WeakValueDictionary

from inferhub.core.clock import new_id
from inferhub.core.errors import InferHubError
from inferhub.core.fleet import Deployment, FleetView, Lease, Progress
from inferhub.core.models import ModelStatus
from inferhub.core.serving import Beat, WorkerStatus
from inferhub.orchestrator import wants as wanting
from inferhub.orchestrator.board import Board
from inferhub.orchestrator.fulfilment import Fulfilment
from inferhub.orchestrator.hands import Hands
from inferhub.orchestrator.membership import Change, Roll, Terms
from inferhub.orchestrator.plan import Load, Pair, Scene, decide
from inferhub.orchestrator.polls import Polls
from inferhub.orchestrator.refusals import Refusals
from inferhub.orchestrator.sharing import Alone, Leadership, Sharing
from inferhub.stores.fleet.base import FleetStore
from inferhub.transport.base import Transport

_log = logging.getLogger(__name__)

QUIET_BEYOND_LEASE_S = 5.0
MAX_TICK_S = 0.25
PLAN_PAUSE = 10.0
"""Times as long as it took to plan, before it is done again."""


class Orchestrator:
    """Answers `ControlPlane`. It closes neither the store nor the transports: who made them does."""

    def __init__(
        self,
        *,
        reach: Callable[[str], Transport],
        polled: Collection[str] = (),
        poll_s: float = 0.5,
        store: FleetStore | None = None,
        keep: Callable[[Collection[str]], Awaitable[None]] | None = None,
        heartbeat_s: float = 1.0,
        lease_s: float = 5.0,
        drain_grace_s: float = 30.0,
        load_timeout_s: float = 1800.0,
        settle_s: float | None = None,
        quiet_s: float | None = None,
        wants_grace_s: float = wanting.GRACE_S,
        clock: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        """`polled`: addresses of workers that do not register. `keep` is told who is there, as `Reach.keep`.

        `settle_s`: how long an unwanted model stays at least (two heartbeats), so that every gateway has
        stopped asking for it. `quiet_s`: how long after its start an orchestrator unloads nothing, because
        gateways may not have said yet what they want; none for a fixed list of workers beside one gateway.
        """
        self.epoch = new_id("orc")
        self._terms = Terms(heartbeat_s, lease_s)
        self._clock, self._wall_s = clock, wall_s
        self._drain_grace_s = drain_grace_s
        self._settle_s = 2 * heartbeat_s if settle_s is None else settle_s
        if quiet_s is None:
            quiet_s = 0.0 if polled else lease_s + QUIET_BEYOND_LEASE_S
        self._quiet_until_s = clock() + quiet_s
        self._keep = keep
        self._roll = Roll(self._terms, clock())
        self._wants = wanting.Wants(wants_grace_s)
        self._board = Board(self.epoch, self._roll.members)
        self._refusals = Refusals(clock)
        self._hands = Hands(reach, load_timeout_s=load_timeout_s, clock=clock, done=self._done)
        self._polls = Polls(polled, reach, self._answered, every_s=poll_s)
        self._sharing: Sharing | None = None
        if store is not None:
            self._sharing = Sharing(
                store,
                self.epoch,
                roll=self._roll,
                wants=self._wants,
                terms=self._terms,
                wants_ttl_s=wants_grace_s,
                clock=clock,
                wall_ms=self._now_ms,
                noticed=self._noticed,
                refusals=self._refusals,
            )
        self._leadership: Leadership = self._sharing or Alone()
        self._holders: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._unneeded_since_s: dict[Pair, float] = {}
        self._changes: Counter[str] = Counter()
        self._is_due = True
        self._planned_s = self._plan_from_s = float("-inf")
        self._wake = asyncio.Event()

    # --- for workers ---------------------------------------------------------------------------

    async def register(self, worker: WorkerStatus) -> Lease:
        try:
            changes = self._roll.register(worker, self._clock(), self._now_ms())
        except InferHubError as error:
            self._refusals.note("registration", worker.id, error)
            raise
        self._noticed(changes, is_new=True)
        return Lease(self._terms.heartbeat_s, self._terms.lease_s)

    async def heartbeat(self, beat: Beat) -> None:
        try:
            changes = self._roll.heartbeat(beat, self._clock())
        except InferHubError as error:
            self._refusals.note("heartbeat", beat.id, error)
            raise
        self._noticed(changes)

    async def leave(self, id: str, incarnation: int) -> None:  # noqa: A002 - the noun everywhere
        changes = self._roll.leave(id, incarnation, self._clock())
        self._noticed(changes)
        if changes and self._sharing is not None:
            await self._sharing.forget(id, incarnation)

    # --- for gateways --------------------------------------------------------------------------

    async def want(
        self, holder: str, deployments: Sequence[Deployment], on_progress: Progress = lambda _: None
    ) -> None:
        lock = self._holders.setdefault(holder, asyncio.Lock())
        async with lock:
            self._wants.prepare(holder, deployments, self._clock())
            fulfilment = Fulfilment(deployments, self._hands, self._roll.members, on_progress)
            try:
                await self._polls.ask_all()
                fulfilment.check(is_fixed=self._is_fixed())
                await fulfilment.run()
            except BaseException:
                self._wants.give_up(holder, self._clock())
                await fulfilment.take_back(still_wanted=self._wants.union())
                self._plan_soon()
                raise
            self._wants.settle(holder, self._clock())
            self._plan_soon()
            if self._sharing is not None:
                await self._sharing.tell_wants()

    async def watch(self, holder: str) -> AsyncGenerator[FleetView, None]:
        self._wants.watches(holder, self._clock())
        try:
            view = None
            while True:
                view = await self._board.next(view)
                yield view
        finally:
            self._wants.left(holder, self._clock())

    # --- for assembly --------------------------------------------------------------------------

    async def run(self) -> None:
        """Endless: look, plan, act."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._polls.run())
            if self._sharing is not None:
                group.create_task(self._sharing.run())
            if self._keep is not None:
                group.create_task(self._keep_connections(self._keep))
            tick_s = min(self._terms.heartbeat_s / 4, MAX_TICK_S)
            while True:
                self._tick()
                # Not `wait_for`: in Python 3.11 it may swallow a cancellation.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(tick_s):
                        await self._wake.wait()
                self._wake.clear()

    async def close(self) -> None:
        """Stop acting, and let another orchestrator act at once."""
        await self._hands.close()
        if self._sharing is not None:
            await self._sharing.resign()

    def view(self) -> FleetView:
        return self._board.view()

    def figures(self) -> Mapping[str, Mapping[str, int]]:
        """For metrics: members by state, and what happened since the start, by kind."""
        states = {"alive": 0, "suspect": 0, "draining": 0}
        for member in self._roll.members():
            is_draining = member.worker.draining
            states["suspect" if member.is_suspect else "draining" if is_draining else "alive"] += 1
        return {
            "members": states,
            "changes": dict(self._changes),
            "actions": dict(self._hands.acts),
            "refused": dict(self._refusals.counts),
        }

    def stats(self) -> Mapping[str, object]:
        """For people: its figures, and what it may do."""
        return {
            **self.figures(),
            "epoch": self.epoch,
            "leads": self._leadership.may_act(),
            "braked": self._roll.is_braked,
        }

    # --- what is noticed -----------------------------------------------------------------------

    def _noticed(self, changes: list[Change], *, is_new: bool = False) -> None:
        for change in changes:
            self._changes[change.what] += 1
            extra = {"worker": change.who}
            if change.what == "braked":
                _log.error(
                    "%s at once: likelier this orchestrator is cut off than they are gone, so they stay as "
                    "suspects for up to %d s",
                    change.who,
                    self._terms.brake_s,
                )
            elif change.what == "released":
                _log.warning("the fleet is believed again to be as it looks; %s", change.who)
            else:
                level = logging.WARNING if change.what in ("lost", "suspect") else logging.INFO
                _log.log(level, "worker is %s", change.what, extra=extra)
            if change.what in ("lost", "left", "restarted"):
                self._hands.forget(change.address)
        if changes or is_new:
            self._plan_soon()
        self._board.changed()

    def _answered(self, address: str, worker: WorkerStatus | None) -> None:
        try:
            if worker is None:
                changes = self._roll.is_silent(address)
            else:
                changes = self._roll.answered(address, worker, self._clock())
        except InferHubError as error:
            self._refusals.note("answer", address, error)
            changes = self._roll.is_silent(address)
        self._noticed(changes)

    def _done(self, address: str, name: str, status: ModelStatus | None) -> None:
        self._roll.loaded(address, name, status, self._clock())
        self._plan_soon()
        self._board.changed()

    # --- looking, planning, acting -------------------------------------------------------------

    def _tick(self) -> None:
        now_s = self._clock()
        if changes := self._roll.tick(now_s):
            self._noticed(changes)
        self._wants.tick(now_s)
        is_due = self._is_due or now_s - self._planned_s >= self._terms.heartbeat_s
        if is_due and now_s >= self._plan_from_s:
            self._is_due, self._planned_s = False, now_s
            if self._leadership.may_act():
                self._act(now_s)
            # A large fleet that comes all at once must not have this process plan all the time.
            self._plan_from_s = now_s + PLAN_PAUSE * (self._clock() - now_s)

    def _plan_soon(self) -> None:
        self._is_due = True
        self._wake.set()

    def _act(self, now_s: float) -> None:
        actions, spare = decide(self._scene(self._wants.union(), now_s))
        self._unneeded_since_s = {pair: self._unneeded_since_s.get(pair, now_s) for pair in spare}
        for action in actions:
            if isinstance(action, Load):
                self._hands.load(action.worker, action.deployment, action.reason)
            else:
                self._hands.unload(action.worker, action.name, action.reason, is_forced=action.is_forced)

    def _scene(self, wanted: Mapping[str, Deployment], now_s: float) -> Scene:
        return Scene(
            members=self._roll.members(),
            wanted=wanted,
            now_s=now_s,
            loading=self._hands.loading,
            unloading=self._hands.unloading,
            not_before_s=self._hands.not_before_s(),
            told=self._hands.told,
            unneeded_since_s=self._unneeded_since_s,
            settle_s=self._settle_s,
            drain_grace_s=self._drain_grace_s,
            may_unload=self._leadership.may_unload()
            and self._wants.is_complete
            and now_s >= self._quiet_until_s,
            may_replace=not self._roll.is_braked,
        )

    def _is_fixed(self) -> bool:
        """Whether no worker will come that is not here: a list of addresses, all of which answer."""
        return len(self._polls.addresses) == len(self._roll.entries()) and all(
            entry.source == "polled" for entry in self._roll.entries().values()
        )

    async def _keep_connections(self, keep: Callable[[Collection[str]], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(self._terms.lease_s)
            await keep(self._roll.entries().keys() | set(self._polls.addresses))

    def _now_ms(self) -> int:
        return int(self._wall_s() * 1000)
