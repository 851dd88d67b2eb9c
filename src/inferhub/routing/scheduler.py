"""Which endpoint of one model takes a call: filter, score, pick. Pure, over snapshots that `pools` keeps.

Looks at a handful of endpoints however many there are, so that a decision costs the same in a large fleet.
It knows nothing of routes (`choose`), remembers nothing, and asks nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from random import Random
from statistics import median
from typing import NamedTuple, Protocol

from inferhub.core.scheduling import Scheduling
from inferhub.core.serving import Endpoint
from inferhub.routing.affinity import Ring
from inferhub.routing.concurrency import Caller, bounds_of
from inferhub.routing.condition import ANYBODY, Key, key_of
from inferhub.routing.filters import gate_s
from inferhub.routing.pickers import best, sample
from inferhub.routing.scorers import BY_ENDPOINT, NEUTRAL, prefix
from inferhub.routing.verdict import Told, Verdict

ASSUMED_S_PER_CALL = 0.25
"""What a call counts while no endpoint of a model has measured anything: the gate then means eight calls."""
SUSPECT = 0.2
"""What is left of the score of one whose worker has missed heartbeats."""
_MOST_SKIPPED = 8
_ROUNDS = 4
"""So often others are looked at where nobody was well."""


class Load(Protocol):
    """How busy an endpoint is by the latest knowledge, and the only thing here that moves: a `Condition`."""

    load: int
    """Calls that wait or run there."""
    pending_cost: float
    """Theirs."""
    in_flight: int
    """Those of this process."""
    sure: int
    """While `in_flight` is less, it is well and the numbers above say all; else `pending_s` is asked."""

    def pending_s(self, now_s: float, s_per_cost: float, s_per_call: float, caller: Caller) -> float | None:
        """None where it is not well: resting, full, or behind an open breaker."""


@dataclass(slots=True, eq=False)
class Row:
    """An endpoint as of one report. Never changed; not frozen, because a large fleet makes many a second."""

    id: str
    endpoint: Endpoint
    key: Key
    load: Load
    base: float
    """What the terms of `BY_ENDPOINT` come to with their weights."""
    s_per_cost: float
    """0 where it is not known."""
    factor: float
    """Of the whole score."""
    slots: int
    """How many calls run at once; further ones wait."""
    told: Told
    """What is kept of it for `inferhub why`."""


def row_of(endpoint: Endpoint, load: Load, scheduling: Scheduling, region: str = "") -> Row:
    terms, base = [], 0.0
    for name, term in BY_ENDPOINT.items():
        known = term(endpoint, scheduling, region)
        value = NEUTRAL if known is None else known
        terms.append(value)
        base += getattr(scheduling.weights, name) * value
    factor = SUSPECT if endpoint.is_suspect else 1.0
    spec = endpoint.model.spec
    slots = bounds_of(spec.slots, spec.queue_limit, spec.max_batch).slots
    told = endpoint.id, tuple(terms)
    s_per_cost = endpoint.model.s_per_cost
    return Row(endpoint.id, endpoint, key_of(endpoint), load, base, s_per_cost, factor, slots, told)


@dataclass(frozen=True, slots=True)
class Pool:
    """The endpoints of a model that can do one kind of call, as of one revision."""

    rows: tuple[Row, ...]
    scheduling: Scheduling
    by_id: Mapping[str, Row]
    usual_s_per_cost: float
    """Of those that have measured it, the middle: who is new is taken to be no different."""
    s_per_call: float
    """What each call counts beside its cost: nothing, where anybody has measured costs."""
    left_out: tuple[tuple[str, int], ...] = ()
    """Reason → how many endpoints of the model are not in this pool for it."""
    ring: Callable[[], Ring] | None = None
    """Whose a session is. Made when the first session asks."""
    circle: tuple[Row, ...] = ()
    """Where there are more rows than are compared: all of them twice, so that a slice goes around."""

    @classmethod
    def build(
        cls,
        rows: Sequence[Row],
        scheduling: Scheduling,
        left_out: tuple[tuple[str, int], ...] = (),
        ring: Callable[[], Ring] | None = None,
    ) -> Pool:
        measured = [row.s_per_cost for row in rows if row.s_per_cost > 0]
        return cls(
            tuple(rows),
            scheduling,
            {row.id: row for row in rows},
            median(measured) if measured else 0.0,
            0.0 if measured else ASSUMED_S_PER_CALL,
            left_out,
            ring,
            (*rows, *rows) if len(rows) > scheduling.sample else (),
        )


@dataclass(slots=True)
class Ask:
    """What a decision knows of its call. Not frozen: one is made for every call, and frozen ones cost."""

    now_s: float
    cost: float = 1.0
    total: int = 0
    """Hashes of the prompt; 0 where it has none."""
    held: Mapping[str, int] = field(default_factory=dict)
    """Endpoint id → how many of them it has."""
    session: str = ""
    sticks: bool = False
    """Whether the session's own endpoint takes the call for as long as it is not too busy."""
    tried: Collection[Key] = ()
    caller: Caller = ANYBODY


class Decision(NamedTuple):
    endpoint: Endpoint
    verdict: Verdict


def decide(pool: Pool, ask: Ask, random: Random) -> Decision | None:
    """Where the call goes; None where nobody who was looked at may be asked.

    In a pool larger than the sample, one who is well may have been missed: whoever gets None and has to be
    sure looks at them all (`ranked`).
    """
    scheduling = pool.scheduling
    owner = _owner(pool, ask) if ask.session else None
    rows, pending_s, skipped = _looked_at(pool, ask, owner, random)
    if not rows:
        return None
    gated: Sequence[tuple[str, float]] = ()
    queued: Sequence[tuple[str, float]] = ()
    gate = gate_s(pending_s, scheduling)
    if gate is not None:
        rows, pending_s, gated = _parted(rows, pending_s, [s <= gate for s in pending_s])
    stays = _worth_queueing(rows, pending_s)
    if stays is not None:
        rows, pending_s, queued = _parted(rows, pending_s, stays)
    scores = _scores(pool, ask, owner, rows, pending_s)
    reason, row = _picked(owner if ask.sticks else None, rows, scores, scheduling.explore, random)
    verdict = Verdict(
        reason,
        [one.told for one in rows],
        pending_s,
        scores,
        owner,
        ask.held,
        ask.total,
        gate,
        gated,
        queued,
        skipped[:_MOST_SKIPPED],
        len(pool.rows),
        pool.left_out,
        scheduling,
    )
    return Decision(row.endpoint, verdict)


def ranked(pool: Pool, ask: Ask, random: Random) -> Sequence[Row]:
    """All who are well, the best first, then those where the call would have to wait for a slot, then those
    who have too much to do. Looks at every endpoint."""
    rows, pending_s, _ = _asked(pool, ask, pool.rows)
    if not rows:
        return ()
    gate = gate_s(pending_s, pool.scheduling)
    is_gated = [gate is not None and s > gate for s in pending_s]
    left = [i for i, is_out in enumerate(is_gated) if not is_out]
    stays = _worth_queueing([rows[i] for i in left], [pending_s[i] for i in left])
    queues = set() if stays is None else {i for i, stay in zip(left, stays, strict=True) if not stay}
    owner = _owner(pool, ask)
    home = owner if ask.sticks else None
    scores = _scores(pool, ask, owner, rows, pending_s)
    ranks = [
        (is_gated[i], i in queues, row.id != home, -scores[i], random.random()) for i, row in enumerate(rows)
    ]
    return [rows[i] for i in sorted(range(len(rows)), key=ranks.__getitem__)]


_Seen = tuple[Sequence[Row], Sequence[float], Sequence[str]]
"""Those who are well, the seconds after which each would be done with this call too, and the ids of those
who are not asked."""


def _looked_at(pool: Pool, ask: Ask, owner: str | None, random: Random) -> _Seen:
    """Some at random, those that know the prompt, and the session's own."""
    if not pool.circle:
        return _asked(pool, ask, pool.rows)
    held, by_id = ask.held, pool.by_id
    known = [by_id[id_] for id_ in held if id_ in by_id]
    if owner is not None and owner not in held:
        known.append(by_id[owner])
    for _ in range(_ROUNDS):
        rows = sample(pool.circle, pool.scheduling.sample, random)
        if known:
            rows = [*known, *[row for row in rows if row.id not in held and row.id != owner]]
        seen = _asked(pool, ask, rows)
        if seen[0]:
            break
    return seen


def _asked(pool: Pool, ask: Ask, rows: Iterable[Row]) -> _Seen:
    # Most of a decision's time goes here; a call of `pending_s` for each would double it.
    now_s, cost, tried, caller = ask.now_s, ask.cost, ask.tried, ask.caller
    usual, s_per_call = pool.usual_s_per_cost, pool.s_per_call
    well: list[Row] = []
    done_s: list[float] = []
    skipped: list[str] = []
    for row in rows:
        load = row.load
        s_per_cost = row.s_per_cost or usual
        if tried and row.key in tried:
            skipped.append(row.id)
        elif load.in_flight < load.sure:
            well.append(row)
            done_s.append((load.pending_cost + cost) * s_per_cost + (load.load + 1) * s_per_call)
        else:
            pending_s = load.pending_s(now_s, s_per_cost, s_per_call, caller)
            if pending_s is None:
                skipped.append(row.id)
            else:
                well.append(row)
                done_s.append(pending_s + cost * s_per_cost + s_per_call)
    return well, done_s, skipped


def _owner(pool: Pool, ask: Ask) -> str | None:
    """The session's own endpoint, or the next one on the ring that is in this pool and well."""
    if not ask.session or pool.ring is None:
        return None
    for id_ in pool.ring().owners(ask.session):
        row = pool.by_id.get(id_)
        if row is not None and _is_well(pool, ask, row):
            return id_
    return None


def _is_well(pool: Pool, ask: Ask, row: Row) -> bool:
    if row.key in ask.tried:
        return False
    load = row.load
    if load.in_flight < load.sure:
        return True
    s_per_cost = row.s_per_cost or pool.usual_s_per_cost
    return load.pending_s(ask.now_s, s_per_cost, pool.s_per_call, ask.caller) is not None


def _worth_queueing(rows: Sequence[Row], pending_s: Sequence[float]) -> Sequence[bool] | None:
    """Of each, whether the call would not queue there in vain; None where that is no reason to leave any out.

    A warm prompt is not worth a queue where somebody else, who is no suspect, has a free slot. A quick
    machine's queue is, where the call would be done sooner than in any free slot.
    """
    has_slot = [row.load.load < row.slots for row in rows]
    if all(has_slot) or not any(has_slot):
        return None
    soonest_s = min(
        (s for s, free, row in zip(pending_s, has_slot, rows, strict=True) if free and row.factor == 1.0),
        default=None,
    )
    if soonest_s is None:
        return None
    stays = [free or s < soonest_s for free, s in zip(has_slot, pending_s, strict=True)]
    return None if all(stays) else stays


def _parted(
    rows: Sequence[Row], pending_s: Sequence[float], stays: Sequence[bool]
) -> tuple[Sequence[Row], Sequence[float], Sequence[tuple[str, float]]]:
    """Who stays, their seconds, and the ids and seconds of the others."""
    return (
        list(compress(rows, stays)),
        list(compress(pending_s, stays)),
        [(row.id, s) for row, s, is_in in zip(rows, pending_s, stays, strict=True) if not is_in],
    )


def _scores(
    pool: Pool, ask: Ask, owner: str | None, rows: Sequence[Row], pending_s: Sequence[float]
) -> Sequence[float]:
    """The sum of the terms by their weights. What is the same for everybody is added once."""
    weights = pool.scheduling.weights
    most_s = max(pending_s)
    slope = weights.pending / most_s if most_s > 0 else 0.0
    shares = prefix.terms(ask.total)
    usual = weights.pending
    if shares is None:
        usual += weights.prefix * NEUTRAL
    if owner is None:
        usual += weights.session * NEUTRAL
    if owner is None and (shares is None or not ask.held):
        return [row.factor * (row.base + usual - slope * s) for row, s in zip(rows, pending_s, strict=True)]
    held, for_prefix, for_session = ask.held, weights.prefix, weights.session
    scores = []
    for row, s in zip(rows, pending_s, strict=True):
        id_, score = row.id, row.base + usual - slope * s
        if shares is not None and id_ in held:
            score += for_prefix * shares[held[id_]]
        if id_ == owner:
            score += for_session
        scores.append(row.factor * score)
    return scores


def _picked(
    home: str | None, rows: Sequence[Row], scores: Sequence[float], explore: float, random: Random
) -> tuple[str, Row]:
    """Why, and who; `home` takes the call whatever the others score."""
    if home is not None:
        for row in rows:
            if row.id == home:
                return "session", row
    if len(rows) > 1 and random.random() < explore:
        well = [row for row in rows if row.factor == 1.0] or rows
        return "explored", well[int(random.random() * len(well))]
    return "best", best(rows, scores, random)
