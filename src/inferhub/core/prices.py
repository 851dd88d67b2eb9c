"""What calls cost: an immutable price book, exact to the last decimal. Pure; no floats.

Read by the meter ring, admission and the spool; made from `hub.yaml` by `settings/spec`.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Context, Decimal

from inferhub.core.errors import SetupError
from inferhub.core.quota import NANO_USD
from inferhub.core.usage import Price, Usage

SCALE = Decimal(1).scaleb(-18)
"""A price of 12 decimals per million has 18 per token; nothing finer exists but a share of a minute."""

# The default context would round the sum of a large count and a fine price.
_EXACT = Context(prec=60, rounding=ROUND_HALF_EVEN)
_UP = Context(prec=60, rounding=ROUND_CEILING)
_DAY_S = 86_400


class PriceBook:
    """Price rows by model and date. Swapped as a whole; never changed."""

    def __init__(self, prices: Iterable[Price] = ()) -> None:
        rows: dict[str, list[Price]] = {}
        for price in sorted(prices, key=lambda p: p.valid_from):
            rows.setdefault(price.model, []).append(price)
        self._rows = {model: (tuple(p.valid_from for p in of), tuple(of)) for model, of in rows.items()}

    def at(self, model: str, unix_s: float) -> Price | None:
        """The row that is valid then: the latest that began."""
        found = self._rows.get(model)
        if found is None:
            return None
        begins, rows = found
        place = bisect_right(begins, unix_s)
        return rows[place - 1] if place else None

    def bill(self, model: str, usage: Usage, unix_s: float) -> tuple[Decimal, str]:
        """(cost, price version); nothing and an empty version for a model without a price."""
        price = self.at(model, unix_s)
        return (cost(price, usage), price.version) if price else (Decimal(0), "")


def cost(price: Price, usage: Usage) -> Decimal:
    """US dollars for one answered call, exact; only a minute's share is rounded, to 18 decimals.

    `usage` must be consistent (`Usage.checked`): each token is billed in exactly one class.
    """
    add, multiply = _EXACT.add, _EXACT.multiply
    total = price.request
    for unit, count in (
        (price.input_token, usage.input_tokens - usage.cached_tokens),
        (price.cached_token, usage.cached_tokens),
        (price.output_token, usage.output_tokens - usage.reasoning_tokens),
        (price.reasoning_token, usage.reasoning_tokens),
        (price.character, usage.characters),
        (price.image, usage.images),
        (price.pixel, usage.pixels),
    ):
        if count and unit:
            total = add(total, multiply(unit, Decimal(count)))
    if usage.audio_ms and price.audio_minute:
        sound = _EXACT.divide(multiply(price.audio_minute, Decimal(usage.audio_ms)), Decimal(60_000))
        total = add(total, sound.quantize(SCALE, context=_EXACT))
    return total


def nano_usd(dollars: Decimal) -> int:
    """Billionths of a dollar, rounded up: a budget is never undercounted."""
    return int(_UP.multiply(dollars, Decimal(NANO_USD)).to_integral_value(ROUND_CEILING))


def cost_nano_usd(price: Price, usage: Usage) -> int:
    return nano_usd(cost(price, usage))


def version_of(price: Price) -> str:
    """A short hash of everything the row says; its `version` is not looked at."""
    said = [f"{f.name}={_plain(getattr(price, f.name))}" for f in fields(price) if f.name != "version"]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:12]


def _plain(value: object) -> str:
    """`0.10` and `0.1` are one price."""
    return str(value.normalize()) if isinstance(value, Decimal) else str(value)


def check_price_dates(
    old: Sequence[Price], new: Sequence[Price], now_s: float, places: Sequence[str] = ()
) -> None:
    """Refuse rows, new or changed, that begin before today (UTC): calls since then are billed already.

    A row without a date is no date in the past: it is valid since ever where the model had no price, and
    where it changes a price it changes it from now on. Events keep what they were billed. Raises
    `SetupError` naming every such row, and its place where `places` has one for each of `new`.
    """
    known = {(price.model, price.valid_from, price.version) for price in old}
    today_s = int(now_s) // _DAY_S * _DAY_S
    late = [
        f"{place}{price.model!r} from {_day(price.valid_from)}"
        for price, place in zip(new, [f"{p}: " for p in places] or [""] * len(new), strict=True)
        if 0 < price.valid_from < today_s and (price.model, price.valid_from, price.version) not in known
    ]
    if late:
        raise SetupError(
            f"prices: {', '.join(late[:10])}: a price cannot begin in the past (today is {_day(today_s)}, "
            "UTC), because calls since then are billed already; write a later date, or leave 'from' out.",
            param="prices",
        )


def _day(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).date().isoformat()
