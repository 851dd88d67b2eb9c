"""Times as people type them: `30d`, `12h`, a day or a time in UTC. Pure; used by the verbs about keys."""

from __future__ import annotations

import re

from inferhub.core.errors import Invalid

DAY_S = 24 * 3600
MAX_OVERLAP_S = 90 * DAY_S
MAX_LIFE_S = 10 * 366 * DAY_S

_DURATION = re.compile(r"([0-9]{1,9})([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": DAY_S}


def overlap_s(text: str) -> int:
    """`24h` in seconds; `0` means at once. Raises `Invalid`."""
    found = 0 if text == "0" else _duration_s(text)
    if found is None or found > MAX_OVERLAP_S:
        raise Invalid(
            f"--overlap is 0, or a time of at most 90d such as 30m, 24h or 7d; got {text[:40]!r}.",
            param="overlap",
        )
    return found


def expiry(text: str, now_s: int) -> int:
    """`30d` from now, or a day or time, as Unix seconds. Raises `Invalid`."""
    from inferhub.stores.usage.words import moment_of

    lasts_s = _duration_s(text)
    at_s = int(moment_of(text, "expires").timestamp()) if lasts_s is None else now_s + lasts_s
    if not now_s < at_s <= now_s + MAX_LIFE_S:
        raise Invalid(
            "--expires is a time from now such as 12h or 30d, or a later day such as 2027-01-31, at most ten "
            f"years off; got {text[:40]!r}.",
            param="expires",
        )
    return at_s


def _duration_s(text: str) -> int | None:
    match = _DURATION.fullmatch(text)
    return int(match[1]) * _UNITS[match[2]] if match else None
