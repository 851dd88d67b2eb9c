"""One worker of the simulation: slots that answer at the speed of its GPU, a bounded queue, a bounded cache
of prompts, and the reports it makes of itself. Driven by `world`."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from itertools import islice

from benchmarks.simulation.traffic import DECODE_TOKENS_PER_S, PREFILL_TOKENS_PER_S, Request

QUEUE_PER_SLOT = 8
CACHE_TOKENS = 40_000
"""For every slot."""
REPORTED_PREFIXES = 128
_NEWEST = 0.1
"""Weight of the newest call in what a cost unit takes."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A GPU."""

    name: str
    speed: float
    slots: int

    @property
    def capacity(self) -> float:
        """In slots of speed 1."""
        return self.speed * self.slots


KINDS = (Kind("small", 1.0, 2), Kind("medium", 2.0, 2), Kind("large", 4.0, 4))


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker said of itself, some time ago."""

    running: int = 0
    queued: int = 0
    pending_cost: float = 0.0
    s_per_cost: float = 0.0
    prefixes: tuple[int, ...] = ()
    at_s: float = 0.0
    id: tuple[int, int] = (0, 0)
    """(life, sequence)."""
    slots: int = 4

    @property
    def calls(self) -> int:
        return self.running + self.queued

    @property
    def pending_s(self) -> float:
        return self.pending_cost * self.s_per_cost


class Machine:
    __slots__ = (
        "_cache", "_cached_tokens", "_seq", "is_alive", "kind", "life", "number", "pending_cost", "queue",
        "running", "s_per_cost",
    )  # fmt: skip

    def __init__(self, number: int, kind: Kind) -> None:
        self.number = number
        self.kind = kind
        self.life = 0
        self._seq = 0
        self.begin()

    def begin(self) -> None:
        """A new life: nothing is running, and nothing is remembered."""
        self.is_alive = True
        self.running: dict[int, Request] = {}
        self.queue: deque[Request] = deque()
        self.pending_cost = 0.0
        self.s_per_cost = 0.0
        self._cache: OrderedDict[int, int] = OrderedDict()
        self._cached_tokens = 0

    def end(self) -> list[Request]:
        """Killed. Returns what was lost with it."""
        lost = [*self.running.values(), *self.queue]
        self.is_alive = False
        self.life += 1
        self.running, self.queue = {}, deque()
        return lost

    def takes(self, request: Request) -> bool:
        """Whether it accepts the call, which then waits for a slot."""
        if len(self.queue) >= QUEUE_PER_SLOT * self.kind.slots:
            return False
        self.queue.append(request)
        self.pending_cost += request.cost
        return True

    def starts(self) -> tuple[Request, float, float] | None:
        """The next call that gets a slot, the seconds to its first token, and the seconds after that."""
        if not self.queue or len(self.running) >= self.kind.slots:
            return None
        request = self.queue.popleft()
        self.running[request.number] = request
        request.cached_tokens = self._known(request)
        first_s = (request.prompt_tokens - request.cached_tokens) / PREFILL_TOKENS_PER_S / self.kind.speed
        return request, first_s, request.output_tokens / DECODE_TOKENS_PER_S / self.kind.speed

    def ends(self, request: Request, took_s: float) -> None:
        del self.running[request.number]
        self.pending_cost = max(0.0, self.pending_cost - request.cost) if self.running or self.queue else 0.0
        found = took_s / request.cost / self.kind.slots
        self.s_per_cost += _NEWEST * (found - self.s_per_cost) if self.s_per_cost else found

    def report(self, now_s: float) -> Report:
        self._seq += 1
        return Report(
            len(self.running),
            len(self.queue),
            self.pending_cost,
            self.s_per_cost,
            tuple(islice(reversed(self._cache), REPORTED_PREFIXES)),
            now_s,
            (self.life, self._seq),
            self.kind.slots,
        )

    def _known(self, request: Request) -> int:
        """Tokens of its prompt that are here already; all of it is here from now on."""
        cache, known, before = self._cache, 0, 0
        is_known = True
        for prefix, tokens in zip(request.prefixes, request.prefix_tokens, strict=True):
            is_known = is_known and prefix in cache
            if is_known:
                known = tokens
            if prefix not in cache:
                cache[prefix] = tokens - before
                self._cached_tokens += tokens - before
            before = tokens
        for prefix in reversed(request.prefixes):  # A beginning outlives what follows it.
            cache.move_to_end(prefix)
        while self._cached_tokens > CACHE_TOKENS * self.kind.slots and len(cache) > 1:
            self._cached_tokens -= cache.popitem(last=False)[1]
        return known
