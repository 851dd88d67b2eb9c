"""Which prompts a model has read lately, as far as gateways need to know it. Kept by the loaded model.

Only numbers come in, made by gateways; what a prompt said is not known here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

MAX_TOLD = 256
_MAX_KNOWN = 4096
_LONGEST = 2


class RecentPrefixes:
    """Remembers every beginning for a while, and tells the few that say most.

    Of each call these are its longest beginnings, with which its conversation goes on, and the longest one
    that an earlier call had too, such as a system prompt that many share.
    """

    __slots__ = ("_digest", "_known", "_told")

    def __init__(self) -> None:
        self._known: OrderedDict[int, None] = OrderedDict()
        self._told: OrderedDict[int, None] = OrderedDict()
        self._digest: tuple[int, ...] | None = ()

    def add(self, prefixes: Sequence[int]) -> None:
        """Those of a call that begins; the shortest first."""
        if not prefixes:
            return
        known, told = self._known, self._told
        shared = next((prefix for prefix in reversed(prefixes) if prefix in known), None)
        for prefix in prefixes:
            known[prefix] = None
            known.move_to_end(prefix)
        for prefix in (*(() if shared is None else (shared,)), *prefixes[-_LONGEST:]):
            told[prefix] = None
            told.move_to_end(prefix)
        while len(known) > _MAX_KNOWN:
            known.popitem(last=False)
        while len(told) > MAX_TOLD:
            told.popitem(last=False)
        self._digest = None

    def clear(self) -> None:
        """The engine has forgotten everything."""
        self._known.clear()
        self._told.clear()
        self._digest = ()

    def digest(self) -> tuple[int, ...]:
        """For `ModelStatus.prefixes`; the same object until a call changes it."""
        if self._digest is None:
            self._digest = tuple(self._told)
        return self._digest
