"""A limit and its amount, as people write and read them and as the catalog keeps them. Pure.

Used by the admin API and the CLI, so that both take and show the same.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from inferhub.core.errors import Invalid
from inferhub.core.quota import NANO_USD, Quota, Reading, Unit

MAX_USD = 1_000_000
MAX_AMOUNT = 10**12

_USD = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


def amount_of(given: int | str, unit: Unit) -> int:
    """In whole units, or nano-dollars. Raises `Invalid` naming what is allowed."""
    if unit is Unit.USD:
        text = str(given)
        dollars = Decimal(text) if _USD.fullmatch(text) else Decimal(0)
        if not 0 < dollars <= MAX_USD:
            raise Invalid(
                f"A budget is more than 0 and at most {MAX_USD} US dollars, as text with at most nine "
                f"decimals, such as '12.50'; got {text[:40]!r}.",
                param="limit",
            )
        return int(dollars * NANO_USD)
    if isinstance(given, str) or not 1 <= given <= MAX_AMOUNT:
        raise Invalid(
            f"A limit of {unit} is a whole number from 1 to {MAX_AMOUNT}; got {str(given)[:40]!r}. To allow "
            "nothing, revoke the key or disable the project.",
            param="limit",
        )
    return given


def shown_amount(amount: int, unit: Unit) -> int | str:
    """Dollars as exact text, everything else as it is."""
    return f"{Decimal(amount) / NANO_USD:f}" if unit is Unit.USD else amount


def limit_card(quota: Quota, reading: Reading | None) -> dict[str, Any]:
    """A limit and how full it is; `reading` is None where the counters cannot be asked."""
    return {
        "id": quota.id,
        "tenant_id": quota.tenant_id,
        "level": quota.level,
        "subject_id": quota.subject_id,
        "unit": quota.unit.value,
        "window": quota.window.value,
        "limit": shown_amount(quota.limit, quota.unit),
        "mode": quota.mode,
        "created_at": quota.created_at,
        "used": None if reading is None else shown_amount(reading.used, quota.unit),
        "remaining": None if reading is None else shown_amount(reading.remaining, quota.unit),
        "reset_s": None if reading is None else round(reading.reset_s, 3),
    }
