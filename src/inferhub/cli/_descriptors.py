"""How many files and sockets this process may open, and how many it needs."""

from __future__ import annotations

import resource
from dataclasses import dataclass

_SPARE = 128
_PER_CALL = 2
"""One socket to the client, one to a worker or upstream."""


@dataclass(frozen=True, slots=True)
class Descriptors:
    """A limit of `resource.RLIM_INFINITY` is shown as a very large number."""

    allowed: int
    """What this process could raise its limit to."""
    needed: int

    @property
    def is_enough(self) -> bool:
        return self.allowed >= self.needed

    @property
    def calls(self) -> int:
        """How many calls at once the limit allows."""
        return max(1, (self.allowed - _SPARE) // _PER_CALL)


def descriptors(max_inflight: int) -> Descriptors:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Descriptors(_finite(hard), _PER_CALL * max_inflight + _SPARE)


def raise_limit(max_inflight: int) -> None:
    """Most systems start processes with 1024, which is meant to be raised, and allow far more."""
    wanted = descriptors(max_inflight)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _finite(soft) < wanted.needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted.needed, wanted.allowed), hard))


def _finite(limit: int) -> int:
    return 2**31 if limit == resource.RLIM_INFINITY else limit
