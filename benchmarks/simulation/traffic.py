"""What is asked of a simulated fleet, and when: made once from a seed, the same for every policy. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import NamedTuple

PREFILL_TOKENS_PER_S = 2000.0
DECODE_TOKENS_PER_S = 40.0
"""Of one slot of a GPU of speed 1."""


@dataclass(frozen=True, slots=True)
class Mix:
    """What kind of calls come."""

    systems: int = 400
    """Different system prompts, drawn by Zipf's law."""
    zipf: float = 1.1
    system_tokens: float = 1200
    """Median of a system prompt."""
    turns: float = 3.0
    """Mean number of calls of a session; each has all of the former ones as its beginning."""
    think_s: float = 4.0
    """Mean time between two calls of a session."""
    user_tokens: float = 120
    output_tokens: float = 90
    """Mean; 0: an answer without tokens, such as an embedding."""


CHAT = Mix()
PREFIXES = Mix(systems=150, system_tokens=3500, turns=5.0, output_tokens=40)
SHORT = Mix(systems=0, turns=1.0, user_tokens=100, output_tokens=0)


class Prompt(NamedTuple):
    """What a call asks."""

    prefixes: tuple[int, ...]
    """Hashes of ever longer beginnings, the shortest first."""
    prefix_tokens: tuple[int, ...]
    """How long each of these is."""
    tokens: int
    """All of it."""


class Request:
    """One call; the fields at the end are the simulation's own notes."""

    __slots__ = (
        "at_s", "cached_tokens", "cost", "first_s", "gateway", "number", "output_tokens", "prefix_tokens",
        "prefixes", "prompt_tokens", "session", "tried",
    )  # fmt: skip

    def __init__(self, at_s: float, session: str, prompt: Prompt, output_tokens: int) -> None:
        self.at_s = at_s
        self.session = session
        self.prefixes, self.prefix_tokens, self.prompt_tokens = prompt
        self.output_tokens = output_tokens
        self.cost = float(prompt.tokens + output_tokens)
        self.number = self.gateway = self.cached_tokens = 0
        self.tried: list[int] = []
        self.first_s: float | None = None

    @property
    def work_s(self) -> float:
        """On a slot of speed 1 that has nothing of its prompt yet."""
        return self.prompt_tokens / PREFILL_TOKENS_PER_S + self.output_tokens / DECODE_TOKENS_PER_S


@dataclass(frozen=True, slots=True)
class Rhythm:
    """When calls come: a Poisson process whose rate is multiplied for the first second of every period."""

    peak: float = 1.0
    period_s: float = 10.0
    peak_s: float = 1.0

    def at(self, now_s: float) -> float:
        return self.peak if now_s % self.period_s < self.peak_s else 1.0

    @property
    def mean(self) -> float:
        return 1 + (self.peak - 1) * self.peak_s / self.period_s


STEADY = Rhythm()


def traffic(
    mix: Mix, rhythm: Rhythm, *, capacity: float, load: float, duration_s: float, gateways: int, seed: int
) -> list[Request]:
    """In the order of their coming. `load`: the share of `capacity` (slots of speed 1) that their work takes
    where no prompt is known anywhere."""
    random = Random(seed)
    systems = _Systems(mix, random)
    sample = [r for _ in range(400) for r in _session(mix, systems, 0.0, random)]
    sessions_per_s = capacity * load / (sum(r.work_s for r in sample) / 400)
    found: list[Request] = []
    now_s = -_span_s(mix)  # Sessions that began earlier go on.
    ceiling = sessions_per_s / rhythm.mean * rhythm.peak
    while (now_s := now_s + random.expovariate(ceiling)) < duration_s:
        if random.random() * rhythm.peak < rhythm.at(now_s):
            found += _session(mix, systems, now_s, random)
    found = sorted((r for r in found if 0 <= r.at_s < duration_s), key=lambda r: r.at_s)
    for number, request in enumerate(found):
        request.number = number
        request.gateway = random.randrange(gateways)
    return found


def _span_s(mix: Mix) -> float:
    return 0.0 if mix.turns <= 1 else 4 * mix.turns * mix.think_s


class _Systems:
    """The system prompts: how often each is used, and how long it is."""

    def __init__(self, mix: Mix, random: Random) -> None:
        self._shares = list(accumulate(1 / rank**mix.zipf for rank in range(1, mix.systems + 1)))
        self._tokens = [int(mix.system_tokens * math.exp(random.gauss(0, 0.6))) for _ in range(mix.systems)]

    def draw(self, random: Random) -> tuple[int, int]:
        """(number, tokens)."""
        if not self._shares:
            return 0, 0
        number = random.choices(range(len(self._shares)), cum_weights=self._shares)[0]
        return number, self._tokens[number]


def _session(mix: Mix, systems: _Systems, begin_s: float, random: Random) -> Iterator[Request]:
    system, tokens = systems.draw(random)
    name = f"{random.getrandbits(48):012x}"
    prefixes: tuple[int, ...] = ((system + 1) * _ODD & _MASK,) if tokens else ()
    lengths: tuple[int, ...] = (tokens,) if tokens else ()
    at_s = begin_s
    goes_on = 1 - 1 / mix.turns
    while True:
        prompt = tokens + max(8, int(random.expovariate(1 / mix.user_tokens)))
        output = 1 + int(random.expovariate(1 / mix.output_tokens)) if mix.output_tokens else 0
        # Its own end is the beginning of what the session asks next.
        prefixes, lengths = (*prefixes, random.getrandbits(63)), (*lengths, prompt)
        yield Request(at_s, name, Prompt(prefixes, lengths, prompt), output)
        if random.random() >= goes_on:
            return
        tokens = prompt + output
        at_s += random.expovariate(1 / mix.think_s)


_MASK = (1 << 63) - 1
_ODD = 0x9E3779B97F4A7C15
