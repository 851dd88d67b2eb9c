"""What one choice among endpoints was made by, kept as it was: the scheduler writes it, `decisions` tells it.

One is made for every call and read for hardly any, so the terms are worked out again when somebody asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from inferhub.core.scheduling import Scheduling
from inferhub.routing.scorers import NEUTRAL, pending, prefix, session

Told = tuple[str, tuple[float, ...]]
"""Of an endpoint: its id and its terms of `BY_ENDPOINT`. No more, because reports would pile up."""
Scored = tuple[str, tuple[float, ...], float, float, float, float, float]
"""One candidate: id, its terms of `BY_ENDPOINT`, pending seconds, the terms `prefix`, `pending` and
`session`, and the score."""
SCORE: Final = 6


class Verdict(NamedTuple):
    reason: str
    """`best`, `explored`, or `session`."""
    told: Sequence[Told]
    """Of those who were compared; `pending_s` and `scores` have the same order."""
    pending_s: Sequence[float]
    scores: Sequence[float]
    owner: str | None
    """The session's own."""
    held: Mapping[str, int]
    """Endpoint id → how many hashes of the prompt it has."""
    total: int
    """Hashes of the prompt."""
    gate_s: float | None
    gated: Sequence[tuple[str, float]]
    """Who had too much to do, and how many seconds of it."""
    queued: Sequence[tuple[str, float]]
    """Where it would have waited for a slot, while another had one free."""
    skipped: Sequence[str]
    """Who was looked at and was not well, or had been tried."""
    size: int
    """Endpoints of the pool."""
    left_out: tuple[tuple[str, int], ...]
    scheduling: Scheduling

    @property
    def scored(self) -> Sequence[Scored]:
        shares, most_s = prefix.terms(self.total), max(self.pending_s)
        found = []
        for (id_, terms), pending_s, score in zip(self.told, self.pending_s, self.scores, strict=True):
            read = NEUTRAL if shares is None else shares[self.held.get(id_, 0)]
            home = session.term(id_, self.owner)
            home = NEUTRAL if home is None else home
            found.append((id_, terms, pending_s, read, pending.term(pending_s, most_s), home, score))
        return found
