"""Counts what workers were refused and why, and logs it without letting a mad worker fill the disk."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from inferhub.core.errors import InferHubError

_log = logging.getLogger(__name__)
_LOG_EVERY_S = 10.0
"""One line for each reason; there are some twenty reasons."""


class Refusals:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._logged_s: dict[str, float] = {}
        self._unsaid: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    def note(self, what: str, worker: str, error: InferHubError) -> None:
        reason = error.wire_code
        self.counts[reason] += 1
        now_s = self._clock()
        if now_s - self._logged_s.get(reason, float("-inf")) < _LOG_EVERY_S:
            self._unsaid[reason] += 1
            return
        self._logged_s[reason] = now_s
        more = f" (and {self._unsaid.pop(reason)} more such)" if self._unsaid[reason] else ""
        # A restart of this orchestrator makes every worker register again; that is no fault of theirs.
        level = logging.INFO if reason == "unknown_worker" else logging.WARNING
        _log.log(level, "%s refused: %s%s", what, error.message, more, extra={"worker": worker[:80]})
