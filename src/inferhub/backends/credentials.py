"""The keys of one upstream: which one the next request takes, and which ones have to rest.

Remote backends hold a `KeyRing` each. Keys come from the operator's spec or from a file that is read again
when it changes, never from a request; no key is ever written to a log or an error.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from inferhub.core.errors import (
    InferHubError,
    SetupError,
    UpstreamDenied,
    UpstreamExhausted,
    UpstreamRateLimited,
)

_log = logging.getLogger(__name__)

MAX_KEYS = 1000
RATE_LIMIT_REST_S = 5.0
"""After a 429 that names no time."""
MAX_RATE_LIMIT_REST_S = 600.0
DENIED_REST_S = 300.0
_CHECK_FILE_S = 1.0
_MAX_FILE_BYTES = 256 * 1024
_MINUTE_S = 60.0


class KeyOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One key with limits of its own."""

    key: str
    requests_per_minute: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    max_concurrent: Annotated[int, Meta(ge=1, le=65_536)] | None = None

    def __repr__(self) -> str:
        """Without the key."""
        return f"KeyOptions({self.requests_per_minute=}, {self.max_concurrent=})"


def is_key(text: str) -> bool:
    """Whether a header can carry it, as one word."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


class Lease:
    """A key in use by one request. Give it back with `release`, once, however the request ended."""

    __slots__ = ("_ring", "_slot")

    def __init__(self, ring: KeyRing, slot: _Slot) -> None:
        self._ring = ring
        self._slot = slot

    @property
    def key(self) -> str:
        return self._slot.key

    def release(self) -> None:
        self._slot.busy -= 1

    def refused(self, error: InferHubError) -> None:
        """The upstream answered nothing but this: let the key rest where it is to blame."""
        self._ring.refused(self._slot, error)


class KeyRing:
    """Picks the least busy key that does not rest. Used from one event loop.

    A ring of one key never rests it: there is no other to take, and the caller hears the upstream itself.
    """

    def __init__(
        self,
        keys: Sequence[KeyOptions],
        *,
        name: str,
        file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        """What log lines call the ring."""
        self._clock = clock
        self._file = KeyFile(file) if file is not None else None
        self._slots: list[_Slot] = []
        self._check_at_s = 0.0
        self._set(self._file.read() if self._file is not None else keys)

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def secrets(self) -> tuple[str, ...]:
        return tuple(slot.key for slot in self._slots)

    async def take(self, tried: Collection[str] = ()) -> Lease:
        """A key that this request has not tried. Raises `UpstreamRateLimited` with the smallest wait, or
        `UpstreamDenied`, where there is none."""
        await self._refresh()
        now_s = self._clock()
        best: _Slot | None = None
        waits_s: list[float] = []
        for slot in self._slots:
            slot_wait_s = slot.wait_s(now_s)
            if slot_wait_s > 0:
                if slot.why is not UpstreamDenied:
                    waits_s.append(slot_wait_s)
            elif slot.key not in tried and (best is None or slot.load < best.load):
                best = slot
        if best is not None:
            best.taken(now_s)
            return Lease(self, best)
        if not waits_s:
            raise UpstreamDenied
        if all(slot.why is not None and slot.why is not UpstreamRateLimited for slot in self._slots):
            raise UpstreamExhausted
        raise UpstreamRateLimited("Every key of the upstream is at its limit.", retry_after_s=min(waits_s))

    def refused(self, slot: _Slot, error: InferHubError) -> None:
        if isinstance(error, UpstreamDenied) and self._file is not None:
            # Perhaps it was replaced a moment ago.
            self._check_at_s = 0.0
        if len(self._slots) < 2:
            return
        if isinstance(error, UpstreamDenied | UpstreamExhausted):
            rest_s = DENIED_REST_S
        elif isinstance(error, UpstreamRateLimited):
            given_s = RATE_LIMIT_REST_S if error.retry_after_s is None else error.retry_after_s
            rest_s = min(given_s, MAX_RATE_LIMIT_REST_S)
        else:
            return
        slot.why = type(error)
        slot.rests_until_s = max(slot.rests_until_s, self._clock() + rest_s)
        position = self._slots.index(slot) + 1 if slot in self._slots else 0
        _log.warning(
            "Key %d of %d (%s) of %r rests for %.0f s: %s",
            position,
            len(self._slots),
            hint(slot.key),
            self._name,
            rest_s,
            error.wire_code,
        )

    async def _refresh(self) -> None:
        """Read the file again where it has changed; a file that cannot be read changes nothing."""
        now_s = self._clock()
        if self._file is None or now_s < self._check_at_s:
            return
        self._check_at_s = now_s + _CHECK_FILE_S
        try:
            keys = await asyncio.to_thread(self._file.read_changed)
        except SetupError as error:
            _log.warning("The keys of %r stay as they are: %s", self._name, error.message)
            return
        if keys is not None:
            self._set(keys)
            _log.info("Read %d keys of %r again", len(keys), self._name)

    def _set(self, keys: Sequence[KeyOptions]) -> None:
        known = {slot.key: slot for slot in self._slots}
        unique = {key.key: key for key in keys}
        self._slots = [known.get(key.key) or _Slot(key) for key in unique.values()]


class _Slot:
    """What is known about one key."""

    __slots__ = (
        "_max_concurrent",
        "_per_minute",
        "_sent_s",
        "_used_at_s",
        "busy",
        "key",
        "rests_until_s",
        "why",
    )

    def __init__(self, options: KeyOptions) -> None:
        self.key = options.key
        self.busy = 0
        self.rests_until_s = 0.0
        self.why: type[InferHubError] | None = None
        """What sent it to rest."""
        self._used_at_s = 0.0
        self._max_concurrent = options.max_concurrent or math.inf
        self._per_minute = options.requests_per_minute
        self._sent_s: deque[float] = deque(maxlen=options.requests_per_minute or 1)

    @property
    def load(self) -> tuple[int, float]:
        """Among equally busy ones, the one that was used longest ago."""
        return self.busy, self._used_at_s

    def taken(self, now_s: float) -> None:
        self.busy += 1
        self.why = None
        self._used_at_s = now_s
        if self._per_minute is not None:
            self._sent_s.append(now_s)

    def wait_s(self, now_s: float) -> float:
        """Until it may be used; a second where that depends on other requests."""
        wait_s = max(0.0, self.rests_until_s - now_s)
        if self._per_minute is not None and len(self._sent_s) == self._per_minute:
            wait_s = max(wait_s, self._sent_s[0] + _MINUTE_S - now_s)
        return max(wait_s, 1.0) if self.busy >= self._max_concurrent else wait_s


class KeyFile:
    """Keys in a file, one a line. A secret that is mounted and rotated is such a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None

    def read(self) -> list[KeyOptions]:
        """Raises `SetupError` with the reason, and without what the file holds."""
        try:
            self._seen = self._mark()
            with self._path.open("rb") as file:
                data = file.read(_MAX_FILE_BYTES + 1)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise SetupError(f"'api_key_file' {str(self._path)!r}: {reason}.", param="options") from error
        lines = [line.strip() for line in data.decode("latin-1").splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys or len(keys) > MAX_KEYS or len(data) > _MAX_FILE_BYTES or not all(map(is_key, keys)):
            raise SetupError(
                f"'api_key_file' {str(self._path)!r} must hold 1 to {MAX_KEYS} keys, one a line.",
                param="options",
            )
        return [KeyOptions(key=key) for key in keys]

    def read_changed(self) -> list[KeyOptions] | None:
        """None while the file is the one that was read last."""
        try:
            if self._mark() == self._seen:
                return None
        except OSError:
            # Replaced at this moment, perhaps; `read` knows the reason if it stays away.
            pass
        return self.read()

    def _mark(self) -> tuple[int, int, int]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino


def hint(key: str) -> str:
    """At most its last four characters, and of a short key nothing."""
    return f"…{key[-4:]}" if len(key) >= 16 else "…"
