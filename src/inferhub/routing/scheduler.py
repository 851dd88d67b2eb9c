"""Which endpoint of one model takes a call: filter, score, pick. Pure, over snapshots that `pools` keeps.

Looks at a handful of endpoints however many there are, so that a decision costs the same in a large fleet.
It knows nothing of routes (`choose`), remembers nothing, and asks nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import median
from typing import Final, NamedTuple, Protocol

from inferhub.core.scheduling import Scheduling
from inferhub.core.serving import Endpoint
from inferhub.routing.affinity import Ring
from inferhub.routing.concurrency import Caller
from inferhub.routing.condition import ANYBODY, Key, key_of
from inferhub.routing.filters import gate_s
from inferhub.routing.pickers import best, sample
from inferhub.routing.scorers import BY_ENDPOINT, NEUTRAL, pending, prefix, session

ASSUMED_S_PER_CALL = 0.25
"""What a call counts while no endpoint of a model has measured anything: the gate then means eight calls."""
SUSPECT = 0.2
"""What is left of the score of one whose worker has missed heartbeats."""
_MOST_SKIPPED = 8
_ROUNDS = 4
"""So often others are looked at where nobody was well."""


class Load(Protocol):
    """How busy an endpoint is by the latest knowledge, and the only thing here that moves: a `Condition`."""

    @property
    def load(self) -> int:
        """Calls that wait or run there."""

    def pending_s(self, now_s: float, s_per_cost: float, s_per_call: float, caller: Caller) -> float | None:
        """None where it is not well: resting, full, or behind an open breaker."""


class Row(NamedTuple):
    """An endpoint as of one report."""

    id: str
    endpoint: Endpoint
    key: Key
    load: Load
    terms: tuple[float, ...]
    """Those of `BY_ENDPOINT`, in its order."""
    base: float
    """What they come to with their weights."""
    s_per_cost: float
    """0 where it is not known."""
    factor: float
    """Of the whole score."""
    slots: int
    """How many calls run at once; further ones wait."""


def row_of(endpoint: Endpoint, load: Load, scheduling: Scheduling, region: str = "") -> Row:
    terms, base = [], 0.0
    for name, term in BY_ENDPOINT.items():
        known = term(endpoint, scheduling, region)
        value = NEUTRAL if known is None else known
        terms.append(value)
        base += getattr(scheduling.weights, name) * value
    factor = SUSPECT if endpoint.is_suspect else 1.0
    key, s_per_cost = key_of(endpoint), endpoint.model.s_per_cost
    slots = endpoint.model.spec.slots
    return Row(endpoint.id, endpoint, key, load, tuple(terms), base, s_per_cost, factor, slots)


@dataclass(frozen=True, slots=True)
class Pool:
    """The endpoints of a model that can do one kind of call, as of one revision."""

    rows: tuple[Row, ...]
    scheduling: Scheduling
    places: Mapping[str, int]
    """Endpoint id → place in `rows`."""
    usual_s_per_cost: float
    """Of those that have measured it, the middle: who is new is taken to be no different."""
    s_per_call: float
    """What each call counts beside its cost: nothing, where anybody has measured costs."""
    left_out: tuple[tuple[str, int], ...] = ()
    """Reason → how many endpoints of the model are not in this pool for it."""
    ring: Callable[[], Ring] | None = None
    """Whose a session is. Made when the first session asks."""

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
            {row.id: place for place, row in enumerate(rows)},
            median(measured) if measured else 0.0,
            0.0 if measured else ASSUMED_S_PER_CALL,
            left_out,
            ring,
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


Scored = tuple[str, tuple[float, ...], float, float, float, float, float]
"""One candidate's figures, kept for `inferhub why`: id, its terms of `BY_ENDPOINT`, pending seconds, the
terms `prefix`, `pending` and `session`, and the score. A plain tuple: eight are made for every call."""
SCORE: Final = 6
_Seen = Sequence[tuple[Row, float]]
"""With the seconds after which it would be done."""


class Verdict(NamedTuple):
    """Everything that a choice was made by; without the endpoints, whose reports would pile up."""

    id: str
    reason: str
    """`best`, `explored`, or `session`."""
    scored: Sequence[Scored]
    gate_s: float | None
    gated: Sequence[tuple[str, float]]
    """Who had too much to do, and how many seconds of it."""
    skipped: Sequence[str]
    """Who was looked at and was not well, or had been tried."""
    size: int
    """Endpoints of the pool."""
    left_out: tuple[tuple[str, int], ...]
    scheduling: Scheduling


class Decision(NamedTuple):
    endpoint: Endpoint
    verdict: Verdict


def decide(pool: Pool, ask: Ask, random: Random) -> Decision | None:
    """Where the call goes; None where nobody who was looked at may be asked.

    In a pool larger than the sample, one who is well may have been missed: whoever gets None and has to be
    sure looks at them all (`ranked`).
    """
    scheduling = pool.scheduling
    owner = _owner(pool, ask)
    seen, skipped = _looked_at(pool, ask, owner, random)
    if not seen:
        return None
    gate = gate_s([pair[1] for pair in seen], scheduling)
    gated: Sequence[tuple[str, float]] = ()
    if gate is not None:
        gated = [(row.id, pending_s) for row, pending_s in seen if pending_s > gate]
        seen = [pair for pair in seen if pair[1] <= gate]
    if len(seen) > 1:
        # A warm prompt is not worth a queue where somebody else could begin at once.
        free = [pair for pair in seen if pair[0].load.load < pair[0].slots and pair[0].factor == 1.0]
        if free and len(free) < len(seen):
            gated = [*gated, *((row.id, pending_s) for row, pending_s in seen if (row, pending_s) not in free)]
            seen = free
    scored = _scored(pool, ask, owner, seen)
    reason, row = _picked(owner if ask.sticks else None, seen, scored, scheduling.explore, random)
    verdict = Verdict(
        row.id,
        reason,
        scored,
        gate,
        gated,
        skipped[:_MOST_SKIPPED],
        len(pool.rows),
        pool.left_out,
        scheduling,
    )
    return Decision(row.endpoint, verdict)


def ranked(pool: Pool, ask: Ask, random: Random) -> Sequence[Row]:
    """All who are well, the best first, then those who have too much to do. Looks at every endpoint."""
    seen, _ = _asked(pool, ask, pool.rows)
    if not seen:
        return ()
    gate = gate_s([pending_s for _, pending_s in seen], pool.scheduling)
    owner = _owner(pool, ask) if ask.sticks else None
    ranks = [
        (gate is not None and pending_s > gate, row.id != owner, -one[SCORE], random.random())
        for (row, pending_s), one in zip(seen, _scored(pool, ask, owner, seen), strict=True)
    ]
    return [seen[i][0] for i in sorted(range(len(seen)), key=ranks.__getitem__)]


def _looked_at(pool: Pool, ask: Ask, owner: str | None, random: Random) -> tuple[_Seen, Sequence[str]]:
    """Those who are well among some at random, those that know the prompt, and the session's own; and the
    ids of those who are not."""
    rows, size = pool.rows, pool.scheduling.sample
    if len(rows) <= size:
        return _asked(pool, ask, rows)
    places = pool.places
    known = [places[id_] for id_ in ask.held if id_ in places]
    if owner is not None:
        known.append(places[owner])
    for _ in range(_ROUNDS):
        found = _asked(pool, ask, [rows[i] for i in sample(len(rows), size, known, random)])
        if found[0]:
            break
    return found


def _asked(pool: Pool, ask: Ask, rows: Sequence[Row]) -> tuple[_Seen, Sequence[str]]:
    """When each of these would be done with this call too; and the ids of those who are not asked."""
    now_s, cost, tried, caller = ask.now_s, ask.cost, ask.tried, ask.caller
    usual, s_per_call = pool.usual_s_per_cost, pool.s_per_call
    seen, skipped = [], []
    for row in rows:
        s_per_cost = row.s_per_cost or usual
        pending_s = None
        if not tried or row.key not in tried:
            pending_s = row.load.pending_s(now_s, s_per_cost, s_per_call, caller)
        if pending_s is None:
            skipped.append(row.id)
        else:
            seen.append((row, pending_s + cost * s_per_cost + s_per_call))
    return seen, skipped


def _owner(pool: Pool, ask: Ask) -> str | None:
    """The session's own endpoint, or the next one on the ring that is in this pool and well."""
    if not ask.session or pool.ring is None:
        return None
    for id_ in pool.ring().owners(ask.session):
        place = pool.places.get(id_)
        if place is not None and _asked(pool, ask, (pool.rows[place],))[0]:
            return id_
    return None


def _scored(pool: Pool, ask: Ask, owner: str | None, seen: _Seen) -> Sequence[Scored]:
    weights = pool.scheduling.weights
    prefix_weight, pending_weight, session_weight = weights.prefix, weights.pending, weights.session
    usual_prefix, prefixes = prefix.terms(ask.held, ask.total)
    usual_session, sessions = session.terms(owner)
    unread = NEUTRAL if usual_prefix is None else usual_prefix
    away = NEUTRAL if usual_session is None else usual_session
    most_s = max([pending_s for _, pending_s in seen])
    scored = []
    for row, pending_s in seen:
        id_ = row.id
        read, home, soon = prefixes.get(id_, unread), sessions.get(id_, away), pending.term(pending_s, most_s)
        score = row.factor * (row.base + prefix_weight * read + pending_weight * soon + session_weight * home)
        scored.append((id_, row.terms, pending_s, read, soon, home, score))
    return scored


def _picked(
    home: str | None, seen: _Seen, scored: Sequence[Scored], explore: float, random: Random
) -> tuple[str, Row]:
    """Why, and who; `home` takes the call whatever the others score."""
    if home is not None:
        for row, _ in seen:
            if row.id == home:
                return "session", row
    if len(seen) > 1 and random.random() < explore:
        well = [pair for pair in seen if pair[0].factor == 1.0] or seen
        return "explored", well[int(random.random() * len(well))][0]
    return "best", best(seen, [one[SCORE] for one in scored], random)[0]
