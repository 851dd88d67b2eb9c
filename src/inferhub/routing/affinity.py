"""Which endpoint a session belongs to: weighted rendezvous hashing, breakable under load. Pure.

Called by `choose`. Nothing is stored, so every gateway process gives the same answer; when an endpoint
leaves, only its own sessions move.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")

SLACK_CALLS = 8
"""So many more calls than the least busy one, and half as many again, may an endpoint have before its
sessions go elsewhere: a warm prompt cache is worth some waiting, and not all of it."""
_SLACK_FACTOR = 1.5


def by_session(
    options: Sequence[T],
    session: str,
    *,
    name: Callable[[T], tuple[str, str]],
    weight: Callable[[T], int],
    load: Callable[[T], int],
) -> list[T]:
    """All options, the session's own first; `name` is (model, endpoint).

    Models are drawn by their weights and endpoints within a model evenly, so that a model's share does not
    depend on how often it is there. An endpoint that is too busy loses its sessions for as long as it is.
    """
    if not options:
        return []
    scores = {
        model: _score(session, model, w) for model, w in {name(o)[0]: weight(o) for o in options}.items()
    }
    ranked = sorted(options, key=lambda o: -scores[name(o)[0]])
    if len(scores) < len(options):
        ranked.sort(key=lambda o: (-scores[name(o)[0]], -_score(session, "\0".join(name(o)), 1)))
    least = min(map(load, options))
    most = max(least + SLACK_CALLS, int(least * _SLACK_FACTOR))
    return sorted(ranked, key=lambda o: load(o) > most)


def _score(session: str, name: str, weight: int) -> float:
    if weight == 0:
        return -math.inf
    digest = blake2b(f"{session}\0{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    # In (0, 1): never a whole one, whose logarithm is no divisor.
    chance = (int.from_bytes(digest, "big") >> 12) / 2**52 + 2**-53
    return -weight / math.log(chance)
