"""How much of each unit a usage is, and what a call claims of its caller's meters. Pure arithmetic.

On the path of every call: units are numbered here, for an enumeration's hash is a function of Python.
"""

from __future__ import annotations

from collections.abc import Sequence

from inferhub.core.quota import Claim, Meter, Unit
from inferhub.core.usage import Usage

Amounts = tuple[int, ...]
"""One number for each unit, in the order of `Unit`."""

_UNITS = tuple(Unit)
_ONE_EACH = (Unit.REQUESTS, Unit.CONCURRENT)
# Asked for even when the estimate is nothing: what was used may turn out to be more.
_ALWAYS = (Unit.TOKENS, Unit.USD)


def amounts(usage: Usage, cost_nano_usd: int) -> Amounts:
    tokens = usage.input_tokens + usage.output_tokens
    audio_s = -(-usage.audio_ms // 1000)
    return (1, tokens, 1, audio_s, usage.characters, usage.images, usage.pixels, cost_nano_usd)


assert _UNITS == (  # noqa: S101 - `amounts` writes them down in this order
    Unit.REQUESTS,
    Unit.TOKENS,
    Unit.CONCURRENT,
    Unit.AUDIO_SECONDS,
    Unit.CHARACTERS,
    Unit.IMAGES,
    Unit.PIXELS,
    Unit.USD,
)


class Plan:
    """What every call of one caller is held against, worked out once."""

    __slots__ = ("_rows", "meters")

    def __init__(self, meters: Sequence[Meter]) -> None:
        self.meters = tuple(meters)
        self._rows = [
            (m, _UNITS.index(m.unit), m.unit in _ALWAYS, Claim(m, 1) if m.unit in _ONE_EACH else None)
            for m in meters
        ]

    def claims(self, wanted: Amounts) -> tuple[Claim, ...]:
        """Units that the estimate does not mention are left alone: an image limit does not bind a chat."""
        claims = []
        for meter, unit, is_always, one in self._rows:
            if one is not None:
                claims.append(one)
            elif is_always or wanted[unit]:
                claims.append(Claim(meter, wanted[unit]))
        return tuple(claims)

    def used(self, real: Amounts) -> dict[str, int]:
        return {meter.key: real[unit] for meter, unit, _, _ in self._rows}
