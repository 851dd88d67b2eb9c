"""How one endpoint is, as this gateway process knows it: load, history, breaker, rest. Kept by `router`.

Mutable, and the only place that is; `facts` turns it into what the choice is made from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from itertools import islice

from inferhub.core.errors import InferHubError
from inferhub.core.serving import Endpoint
from inferhub.core.traffic import Cause
from inferhub.routing import breaker as breakers
from inferhub.routing.breaker import Breaker, BreakerLimits
from inferhub.routing.causes import Blame, blame_of, cause_of, rest_s
from inferhub.routing.concurrency import Bounds, Caller
from inferhub.routing.history import History, predict_first_token_s
from inferhub.routing.room import Room

ANYBODY = Caller()

Key = tuple[str, str]
"""(deployment, endpoint): a worker serves several models, and a changed model starts with a clean record."""


def key_of(endpoint: Endpoint) -> Key:
    return endpoint.model.spec.name, endpoint.id


class Standing(Enum):
    WELL = auto()
    FULL = auto()
    """Said so a moment ago; asked only where nobody well is left."""
    LIMITED = auto()
    """Named a time before which it is not asked."""
    OPEN = auto()
    """Its circuit breaker is open."""
    CROWDED = auto()
    """Has as many calls of this process as it can answer soon: not asked, so refusing costs it nothing."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Of one endpoint, at one moment."""

    standing: Standing = Standing.WELL
    until_s: float = 0.0
    """When that ends, on the monotonic clock."""
    cause: Cause | None = None
    """Why it is not well."""
    load: int = 0
    first_token_s: float | None = None
    """Predicted for a call that begins now; None without enough history, or where nobody asked."""
    waited_s: float = 0.0
    """How long half of the calls that have no content yet have waited for it: a prediction cannot be less."""


_NO_REST: tuple[float, Standing, Cause | None] = (0.0, Standing.WELL, None)


class Condition:
    __slots__ = (
        "_breaker", "_foreign", "_foreign_cost", "_history", "_limits", "_peak", "_peak_cost", "_rest",
        "_told_s", "_waiting", "cost_in_flight", "in_flight", "load", "pending_cost", "room", "sure",
    )  # fmt: skip

    def __init__(self, limits: BreakerLimits) -> None:
        self._limits = limits
        self._history = History()
        self._breaker: Breaker = breakers.CLOSED
        self._rest = _NO_REST
        self._waiting: dict[int, float] = {}
        """Trial → when it began; those without content, oldest first."""
        self._foreign = 0
        self._peak = 0
        self.in_flight = 0
        self.room = Room()
        self._foreign_cost = 0.0
        self._peak_cost = 0.0
        self.cost_in_flight = 0.0
        self._told_s = 0.0
        """Depth that came with a refusal; until the next report says better."""
        self.load = 0
        """All calls there: of this process, and of others."""
        self.pending_cost = 0.0
        """Theirs."""
        self.sure = self.room.sure
        """While fewer calls of this process are there, it is well, and `load` and `pending_cost` say all of
        it; 0 where `pending_s` has to be asked. The scheduler looks at this for every candidate."""

    @property
    def breaker(self) -> Breaker:
        return self._breaker

    def size(self, bounds: Bounds) -> None:
        self.room.size(bounds)
        self._note_well()

    def reported(self, running: int, pending_cost: float = 0.0) -> None:
        """A worker's report of all its calls, each report once. It is late, and has calls that ended since:
        only what is more than this process had there at any time since the last one is somebody else's."""
        self._foreign = max(0, running - self._peak)
        self._peak = self.in_flight
        self._foreign_cost = max(0.0, pending_cost - self._peak_cost)
        self._peak_cost = self.cost_in_flight
        self._told_s = 0.0
        self._note_well()
        self._weigh()

    def pending_s(
        self, now_s: float, s_per_cost: float, s_per_call: float, caller: Caller = ANYBODY
    ) -> float | None:
        """How long what waits and runs there will take: all that was reported, and what this process sent
        since. None where it is not well."""
        if self._rest[0] > now_s:
            return None
        if self._rest is not _NO_REST:
            self._rest = _NO_REST
            self._note_well()
        breaker = self._breaker
        if breaker is not breakers.CLOSED and not breakers.may_ask(breaker, now_s):
            return None
        if self.in_flight >= self.room.sure and not self.room.has_place(caller, now_s):
            return None
        return max(self.pending_cost * s_per_cost + self.load * s_per_call, self._told_s)

    def may_take(self, caller: Caller, now_s: float) -> bool:
        """Whether this process may give it one more such call."""
        return self.room.has_place(caller, now_s)

    def may_be_asked(self, now_s: float, caller: Caller = ANYBODY) -> bool:
        """Whether it is well, or full, which it is best asked about itself; `facts` in short."""
        if not self.room.has_place(caller, now_s):
            return False
        if self._rest[0] > now_s and self._rest[1] is Standing.LIMITED:
            return False
        return breakers.may_ask(self._breaker, now_s)

    def facts(self, now_s: float, *, predicts: bool, caller: Caller = ANYBODY) -> Facts:
        standing, until_s, cause = Standing.WELL, 0.0, None
        if not breakers.may_ask(self._breaker, now_s):
            standing, until_s, cause = Standing.OPEN, max(self._breaker.until_s, now_s), Cause.FAILURE
        elif now_s < self._rest[0] and self._rest[1] is Standing.LIMITED:
            until_s, standing, cause = self._rest
        elif not self.room.has_place(caller, now_s):
            until_s = now_s + self.room.retry_after_s(caller.criticality)
            standing, cause = Standing.CROWDED, Cause.OVERLOAD
        elif now_s < self._rest[0]:
            until_s, standing, cause = self._rest
        if not predicts:
            return Facts(standing, until_s, cause, self.load)
        first_token_s = self.predict_s(now_s, self.load)
        return Facts(standing, until_s, cause, self.load, first_token_s, self._waited_s(now_s))

    def predict_s(self, now_s: float, load: int) -> float | None:
        """Time to the first token beside `load` other calls."""
        return predict_first_token_s(self._history.snapshot(now_s), load)

    def began(self, trial: int, now_s: float, cost: float = 0.0) -> bool:
        """True where the call is a probe of the breaker."""
        self.in_flight += 1
        self._peak = max(self._peak, self.in_flight)
        self.cost_in_flight += cost
        self._peak_cost = max(self._peak_cost, self.cost_in_flight)
        self._weigh()
        self._waiting[trial] = now_s
        before, self._breaker = self._breaker, breakers.asked(self._breaker, now_s)
        return self._breaker.is_probing and not before.is_probing

    def answers(self, trial: int) -> None:
        self._waiting.pop(trial, None)

    def sampled(self, now_s: float, load: int, first_token_s: float) -> None:
        self._history.began(now_s, load, first_token_s)

    def ended(self, trial: int, cost: float = 0.0) -> None:
        self.in_flight -= 1
        # Sums of fractions leave a rest behind, which must not stay.
        self.cost_in_flight = self.cost_in_flight - cost if self.in_flight else 0.0
        self._weigh()
        self._waiting.pop(trial, None)

    def succeeded(self, now_s: float, *, is_probe: bool) -> None:
        self._history.succeeded(now_s)
        if is_probe:
            self._breaker = breakers.probe_succeeded(self._breaker, self._limits)
            if self._breaker is breakers.CLOSED:
                self._history.forgive()
                self._note_well()

    def failed(
        self, error: InferHubError, now_s: float, chance: Callable[[], float], *, is_probe: bool
    ) -> None:
        blame = blame_of(error)
        if blame is Blame.FULL and error.pending_s is not None:
            self._told_s = error.pending_s
        if blame is Blame.FAULT:
            self._history.failed(now_s)
            if is_probe:
                self._breaker = breakers.probe_failed(self._breaker, self._limits, now_s, chance())
            else:
                tally = self._history.tally(now_s)
                self._breaker = breakers.failed(self._breaker, tally, self._limits, now_s, chance())
            self._note_well()
            return
        if blame is not Blame.NOTHING:
            standing = Standing.LIMITED if blame is Blame.LIMITED else Standing.FULL
            self._rest = max(
                self._rest, (now_s + rest_s(error), standing, cause_of(error)), key=lambda r: r[0]
            )
        self._note_well()
        if is_probe:
            self.abandoned(is_probe=True)

    def abandoned(self, *, is_probe: bool) -> None:
        """A call that ended without saying anything about the endpoint."""
        if is_probe:
            self._breaker = breakers.probe_ended(self._breaker)

    def _weigh(self) -> None:
        self.load = self.in_flight + self._foreign
        self.pending_cost = self.cost_in_flight + self._foreign_cost

    def _note_well(self) -> None:
        is_well = self._breaker is breakers.CLOSED and self._rest is _NO_REST and not self._told_s
        self.sure = self.room.sure if is_well else 0

    def _waited_s(self, now_s: float) -> float:
        if not self._waiting:
            return 0.0
        # The younger half, so that one prompt that takes long does not speak for two.
        middle = len(self._waiting) // 2
        return now_s - next(islice(self._waiting.values(), middle, None))
