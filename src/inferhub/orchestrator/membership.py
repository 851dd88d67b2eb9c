"""Who is in the fleet: leases, suspicion, lives of workers, and a brake on losing many at once.

`service` feeds it what it hears and the time; it does no I/O and has no clock. Every step costs what it
changes, not what there is, except `tick`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from inferhub.core.errors import Conflict, Invalid, Overloaded, UnknownWorker
from inferhub.core.fleet import Member
from inferhub.core.models import ModelStatus
from inferhub.core.serving import Beat, WorkerStatus, after
from inferhub.orchestrator.credible import check_beat, check_report, check_worker

Source = Literal["heard", "shared", "polled"]
"""Registered here, known from another orchestrator, or asked from time to time."""

What = Literal["here", "restarted", "left", "lost", "suspect", "restored", "braked", "released"]


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to whom; for the log and for who waits for it."""

    what: What
    who: str
    """A worker's id; of the brake, how many."""
    address: str = ""


@dataclass(frozen=True, slots=True)
class Terms:
    """How long silence may last."""

    heartbeat_s: float = 1.0
    lease_s: float = 5.0
    suspect_after_beats: float = 2.5
    """Two that did not come, and half an interval for the way of the third."""
    brake_share: float = 1 / 3
    """So much of the fleet may be lost within one lease, and always one worker; more is held back."""
    brake_s: float = 60.0
    """How long at most."""
    max_members: int = 20_000

    @property
    def shared_s(self) -> float:
        """How long a sighting of another orchestrator counts: it is written down once an interval, and read
        once an interval."""
        return self.lease_s + 2 * self.heartbeat_s


@dataclass(frozen=True, slots=True)
class _Brake:
    since_s: float
    size: int
    """How many members had a lease then."""
    mended_s: float | None = None
    """When half of them had been heard again."""


@dataclass(frozen=True, slots=True)
class Entry:
    member: Member
    heard_s: float
    source: Source

    @property
    def worker(self) -> WorkerStatus:
        return self.member.worker


class Roll:
    """The members by address: that is what they are reached by, and only one process can listen there."""

    def __init__(self, terms: Terms, now_s: float) -> None:
        self._terms = terms
        self._entries: dict[str, Entry] = {}
        self._address_of: dict[str, str] = {}
        """Of those with a lease, by id."""
        self._over: dict[str, tuple[int, float]] = {}
        """Lives that ended by their own word, so that a late report does not bring them back."""
        self._gone: dict[str, tuple[int, int, float]] = {}
        """Last reports of the lost, so that another orchestrator's copy of one does not bring them back."""
        self._known: dict[str, dict[str, tuple[ModelStatus | None, float]]] = {}
        """What was just loaded (or unloaded: None), until when it holds against reports from before."""
        self._lost_s: deque[float] = deque()
        self._brake: _Brake | None = None
        self._born_s = self._ticked_s = now_s

    # --- what there is -------------------------------------------------------------------------

    def members(self) -> tuple[Member, ...]:
        return tuple(entry.member for entry in self._entries.values())

    def entries(self) -> Mapping[str, Entry]:
        return self._entries

    def get(self, address: str) -> Entry | None:
        return self._entries.get(address)

    @property
    def is_braked(self) -> bool:
        return self._brake is not None

    # --- what workers say ----------------------------------------------------------------------

    def register(self, worker: WorkerStatus, now_s: float, now_unix_ms: int) -> list[Change]:
        check_worker(worker, now_unix_ms)
        return self._enter(worker, now_s, now_s, "heard")

    def learn(self, worker: WorkerStatus, age_s: float, now_s: float, now_unix_ms: int) -> list[Change]:
        """From another orchestrator, which heard it `age_s` ago."""
        check_worker(worker, now_unix_ms)
        if age_s > self._terms.shared_s or self.is_known(worker.id, worker.incarnation, worker.seq):
            return []
        return self._enter(worker, now_s - max(age_s, 0.0), now_s, "shared")

    def is_known(self, id: str, incarnation: int, seq: int) -> bool:  # noqa: A002 - the noun everywhere
        """Whether a report says nothing new."""
        over = self._over.get(id)
        if over is not None and incarnation <= over[0]:
            return True
        gone = self._gone.get(id)
        if gone is not None and (incarnation, seq) <= gone[:2]:
            return True
        known = self._leased(id)
        return known is not None and (incarnation, seq) <= (known.worker.incarnation, known.worker.seq)

    def heartbeat(self, beat: Beat, now_s: float) -> list[Change]:
        known = self._leased(beat.id)
        if known is None:
            raise UnknownWorker
        if beat.incarnation < known.worker.incarnation:
            raise _life_is_over(beat.id)
        if beat.incarnation > known.worker.incarnation:
            raise UnknownWorker
        check_beat(beat)
        if beat.seq <= known.worker.seq:
            raise _is_old(beat.id, beat.seq)
        self._check_clock(known.worker, beat.at_s)
        try:
            worker = after(known.worker, beat)
        except ValueError as error:
            raise UnknownWorker(f"Worker {beat.id!r} has other models than it registered.") from error
        self._entries[worker.address] = Entry(Member(worker), now_s, "heard")
        return [Change("restored", worker.id, worker.address)] if known.member.is_suspect else []

    def leave(self, id: str, incarnation: int, now_s: float) -> list[Change]:  # noqa: A002
        known = self._leased(id)
        if known is None or incarnation < known.worker.incarnation:
            return []
        self._over[id] = (incarnation, now_s + self._terms.shared_s)
        self._drop(known.worker.address)
        return [Change("left", id, known.worker.address)]

    # --- what workers are asked ----------------------------------------------------------------

    def answered(self, address: str, worker: WorkerStatus, now_s: float) -> list[Change]:
        """One that does not register said this when it was asked."""
        check_report(worker)
        known = self._entries.get(address)
        if known is not None and known.source != "polled":
            return []
        worker = self._corrected(replace(worker, address=address), now_s)
        self._entries[address] = Entry(Member(worker), now_s, "polled")
        return [] if known else [Change("here", worker.id, address)]

    def is_silent(self, address: str) -> list[Change]:
        """One that does not register did not answer: it is out at once, and back with its next answer."""
        known = self._entries.get(address)
        if known is None or known.source != "polled":
            return []
        self._drop(address)
        return [Change("lost", known.worker.id, address)]

    # --- what was done to them -----------------------------------------------------------------

    def loaded(self, address: str, name: str, status: ModelStatus | None, now_s: float) -> None:
        """A model was just loaded, or unloaded (None). Reports that were made before are corrected by it."""
        entry = self._entries.get(address)
        if entry is None:
            return
        until_s = now_s + 2 * self._terms.heartbeat_s
        self._known.setdefault(address, {})[name] = (status, until_s)
        worker = self._corrected(entry.worker, now_s)
        self._entries[address] = replace(entry, member=replace(entry.member, worker=worker))

    # --- time ----------------------------------------------------------------------------------

    def tick(self, now_s: float) -> list[Change]:
        """What silence has led to."""
        gap_s = now_s - self._ticked_s
        self._ticked_s = now_s
        if gap_s > self._terms.heartbeat_s:
            # It was this process that was away, so nobody can be blamed for having been silent meanwhile.
            self.excuse(gap_s, now_s)
        self._over = {id_: over for id_, over in self._over.items() if over[1] > now_s}
        self._gone = {id_: gone for id_, gone in self._gone.items() if gone[2] > now_s}
        suspect_s = self._terms.suspect_after_beats * self._terms.heartbeat_s
        changes = []
        expired = []
        for address, entry in self._entries.items():
            late_s = 2 * self._terms.heartbeat_s if entry.source == "shared" else 0.0
            silent_s = now_s - entry.heard_s - late_s
            if entry.source == "polled" or silent_s <= suspect_s:
                continue
            if not entry.member.is_suspect:
                # Changing a value does not disturb the loop over a dictionary; adding a key would.
                self._entries[address] = replace(entry, member=replace(entry.member, is_suspect=True))
                changes.append(Change("suspect", entry.worker.id, address))
            if silent_s > self._terms.lease_s:
                expired.append((entry.heard_s, address))
        if now_s < self._born_s + self._terms.lease_s:
            # Others may have heard them, and they may not have found this orchestrator yet.
            return changes
        return changes + self._expire([address for _, address in sorted(expired)], now_s)

    def excuse(self, gap_s: float, now_s: float, source: Source | None = None) -> None:
        """Everybody, or those of one source, could not be heard for so long."""
        for address, entry in self._entries.items():
            if source is None or entry.source == source:
                self._entries[address] = replace(entry, heard_s=min(entry.heard_s + gap_s, now_s))

    def _expire(self, expired: list[str], now_s: float) -> list[Change]:
        """Let go of as many as may be gone: when many fall silent at once, it is likelier we are cut off."""
        changes = []
        while self._lost_s and self._lost_s[0] < now_s - self._terms.lease_s:
            self._lost_s.popleft()
        if self._brake is not None:
            if expired and not self._may_release(self._brake, now_s):
                return []
            self._brake = None
            changes.append(Change("released", f"{len(expired)} are silent"))
        else:
            size = len(self._address_of)
            room = max(1, int((size + len(self._lost_s)) * self._terms.brake_share)) - len(self._lost_s)
            # After a brake was released the room is negative, which is no reason to brake for nobody.
            if expired and len(expired) > room:
                self._brake = _Brake(now_s, size)
                changes.append(Change("braked", f"{len(expired)} of {size} are silent"))
                expired = expired[: max(room, 0)]
        for address in expired:
            worker = self._entries[address].worker
            changes.append(Change("lost", worker.id, address))
            self._gone[worker.id] = (worker.incarnation, worker.seq, now_s + self._terms.shared_s)
            self._drop(address)
            self._lost_s.append(now_s)
        return changes

    def _may_release(self, brake: _Brake, now_s: float) -> bool:
        if brake.mended_s is None:
            heard = sum(entry.heard_s > brake.since_s for entry in self._leased_entries())
            if heard * 2 >= brake.size:
                self._brake = brake = replace(brake, mended_s=now_s)
        # One lease more for those that connect again a little later than the first half.
        is_mended = brake.mended_s is not None and now_s - brake.mended_s >= self._terms.lease_s
        return is_mended or now_s - brake.since_s >= self._terms.brake_s

    # --- inside --------------------------------------------------------------------------------

    def _enter(self, worker: WorkerStatus, heard_s: float, now_s: float, source: Source) -> list[Change]:
        known = self._leased(worker.id)
        what: What = "here"
        if known is not None:
            if known.worker == worker:
                # Its first answer was lost. Nothing new was heard, so nothing changes, not even the lease.
                return []
            self._check_life(known, worker)
            is_restarted = worker.incarnation > known.worker.incarnation
            what = "restarted" if is_restarted else "restored" if known.member.is_suspect else "here"
        elif self._over.get(worker.id, (-1, 0.0))[0] >= worker.incarnation:
            raise _life_is_over(worker.id)
        elif len(self._entries) >= self._terms.max_members:
            raise Overloaded(f"The fleet has {len(self._entries)} workers and takes no more.")
        tenant = self._entries.get(worker.address)
        changes = []
        if tenant is not None and tenant.source != "polled" and tenant.worker.id != worker.id:
            if not tenant.member.is_suspect:
                raise Conflict(
                    f"Worker {tenant.worker.id!r} is already at {worker.address}.", code="duplicate_address"
                )
            self._drop(worker.address)
            changes.append(Change("left", tenant.worker.id, worker.address))
        if known is not None and known.worker.address != worker.address:
            self._drop(known.worker.address)
            changes.append(Change("left", worker.id, known.worker.address))
        worker = self._corrected(worker, now_s)
        heard_s = max(heard_s, known.heard_s) if known else heard_s
        self._entries[worker.address] = Entry(Member(worker), heard_s, source)
        self._address_of[worker.id] = worker.address
        is_news = known is None or what != "here"
        return [*changes, Change(what, worker.id, worker.address)] if is_news else changes

    def _check_life(self, known: Entry, worker: WorkerStatus) -> None:
        before = known.worker
        if worker.incarnation < before.incarnation:
            raise _life_is_over(worker.id)
        if worker.address != before.address and not known.member.is_suspect:
            raise Conflict(
                f"The id {worker.id!r} belongs to a living worker at {before.address}.", code="duplicate_id"
            )
        if worker.incarnation > before.incarnation:
            self._known.pop(before.address, None)
            return
        if worker.seq <= before.seq:
            raise _is_old(worker.id, worker.seq)
        self._check_clock(before, worker.at_s)

    def _check_clock(self, before: WorkerStatus, at_s: float) -> None:
        if at_s < before.at_s:
            raise Invalid(
                f"The clock of worker {before.id!r} went back by {before.at_s - at_s:.3f} s.",
                param="at_s",
                code="clock_back",
            )

    def _corrected(self, worker: WorkerStatus, now_s: float) -> WorkerStatus:
        known = self._known.get(worker.address)
        if known is None:
            return worker
        for name in [name for name, (_, until_s) in known.items() if until_s <= now_s]:
            del known[name]
        if not known:
            del self._known[worker.address]
            return worker
        models = {model.spec.name: model for model in worker.models}
        for name, (status, _) in known.items():
            reported = models.get(name)
            if status is None:
                models.pop(name, None)
            elif reported is None or reported.spec != status.spec or reported.loading:
                models[name] = status
        # In the order that workers report them.
        return replace(worker, models=tuple(models[name] for name in sorted(models)))

    def _leased(self, id: str) -> Entry | None:  # noqa: A002
        address = self._address_of.get(id)
        return None if address is None else self._entries[address]

    def _leased_entries(self) -> Iterable[Entry]:
        return (self._entries[address] for address in self._address_of.values())

    def _drop(self, address: str) -> None:
        entry = self._entries.pop(address)
        self._known.pop(address, None)
        if self._address_of.get(entry.worker.id) == address:
            del self._address_of[entry.worker.id]


def _is_old(id: str, seq: int) -> Conflict:  # noqa: A002
    return Conflict(f"Report {seq} of worker {id!r} is old, or a replay.", code="old_report")


def _life_is_over(id: str) -> Conflict:  # noqa: A002
    return Conflict(f"This life of worker {id!r} is over; a later one took its place.", code="old_life")
