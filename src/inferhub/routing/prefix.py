"""How prompts begin: hashes of their beginnings, and which endpoint has read one lately.

Hashes are made by the attempt ring and compared by the scheduler; workers only store and report them. No
prompt can be read from them, and those of one tenant are never those of another.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from hashlib import blake2b
from random import Random

MAX_BYTES = 64 * 1024
_FIRST_BYTES = 256
_GROWTH = 1.25


def _marks() -> tuple[int, ...]:
    marks, at = [], float(_FIRST_BYTES)
    while at < MAX_BYTES:
        marks.append(int(at))
        at *= _GROWTH
    return (*marks, MAX_BYTES)


MARKS = _marks()
"""Bytes after which a beginning is hashed. The same for all prompts, so that two that begin alike share the
hashes up to where they part; ever further apart, because only the share of the prompt matters."""

OWN_S = 10.0
"""How long this process goes by what it sent itself; then the worker has reported, and knows better."""
MAX_OWN = 40_000
"""Beginnings that this process remembers having sent: about 8 MiB."""


def hashes(pieces: Iterable[bytes], *seed: str) -> tuple[int, ...]:
    """Of ever longer beginnings of a text, the shortest first; each stands for all that comes before it.

    `seed` is who and what the text is for: the same text hashes differently for another.
    """
    state = blake2b("\0".join(seed).encode("utf-8", "surrogatepass"), digest_size=8)
    state.update(b"\0")
    found: list[int] = []
    at = 0
    for piece in pieces:
        rest = memoryview(piece)
        while at + len(rest) >= MARKS[len(found)]:
            step = MARKS[len(found)] - at
            state.update(rest[:step])
            rest, at = rest[step:], at + step
            found.append(int.from_bytes(state.copy().digest(), "big"))
            if len(found) == len(MARKS):
                return tuple(found)
        state.update(rest)
        at += len(rest)
    return tuple(found)


def share(matched: int, total: int) -> float:
    """How much of a prompt with `total` hashes is known where `matched` of them are, by its bytes."""
    if matched <= 0 or total <= 0:
        return 0.0
    last = len(MARKS) - 1
    return MARKS[min(matched, total) - 1 if matched <= last else last] / MARKS[min(total - 1, last)]


class PrefixIndex:
    """Which endpoint has read which beginning: what workers report, and what was sent since."""

    def __init__(self, *, max_own: int = MAX_OWN) -> None:
        self._told: dict[int, tuple[str, ...]] = {}
        self._reports: dict[tuple[str, str], tuple[int, ...]] = {}
        """(model, endpoint) → what it said last."""
        self._own: OrderedDict[int, tuple[str, float]] = OrderedDict()
        self._max_own = max_own

    def told(self, endpoint: str, prefixes: tuple[int, ...], model: str = "") -> None:
        """All that the endpoint reports of a model, instead of what it reported before."""
        key = model, endpoint
        before = self._reports.get(key, ())
        if before == prefixes:
            return
        old, new = set(before), set(prefixes)
        for prefix in old - new:
            rest = tuple(id_ for id_ in self._told.get(prefix, ()) if id_ != endpoint)
            if rest:
                self._told[prefix] = rest
            else:
                self._told.pop(prefix, None)
        for prefix in new - old:
            self._told[prefix] = (*self._told.get(prefix, ()), endpoint)
        if prefixes:
            self._reports[key] = prefixes
        else:
            del self._reports[key]

    def keep(self, keys: Collection[tuple[str, str]]) -> None:
        """Forget who is not among these: (model, endpoint)."""
        for model, endpoint in self._reports.keys() - keys:
            self.told(endpoint, (), model)

    def sent(self, endpoint: str, prefixes: Sequence[int], now_s: float) -> None:
        """A call of this process went there."""
        own, entry = self._own, (endpoint, now_s)
        for prefix in prefixes:
            own[prefix] = entry
        while len(own) > self._max_own:
            own.popitem(last=False)

    def held(self, prefixes: Sequence[int], now_s: float, most: int, random: Random) -> dict[str, int]:
        """Endpoint → how many of these hashes it has, of at most `most` endpoints, the best first.

        Of a beginning that many have read, such as a system prompt, any of them are named.
        """
        found: dict[str, int] = {}
        if not (self._own or self._told):
            return found
        for matched in range(len(prefixes), 0, -1):
            prefix = prefixes[matched - 1]
            own = self._own.get(prefix)
            if own is not None and now_s - own[1] < OWN_S:
                found.setdefault(own[0], matched)
            ids = self._told.get(prefix)
            if ids is None:
                continue
            for id_ in ids if len(ids) <= most else _some(ids, most, random):
                found.setdefault(id_, matched)
            if len(found) >= most:
                break
        return found


def _some(ids: tuple[str, ...], most: int, random: Random) -> tuple[str, ...]:
    """So many neighbours, around the end."""
    first = int(random.random() * len(ids))
    some = ids[first : first + most]
    return some if len(some) == most else some + ids[: most - len(some)]
