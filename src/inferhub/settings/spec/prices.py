"""The `prices` of a hub.yaml → price rows. Called by `spec.load`; decimal arithmetic only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

from inferhub.core.prices import version_of
from inferhub.core.usage import Price
from inferhub.settings.spec.reader import Path
from inferhub.settings.spec.types import PriceEntry

_ZERO = Decimal(0)


def load_prices(entries: Sequence[PriceEntry]) -> tuple[Price, ...]:
    return tuple(_row(entry) for entry in entries)


def repeated(entries: Sequence[PriceEntry]) -> list[tuple[Path, str]]:
    """Problems: two rows of one model that begin on the same day."""
    first: dict[tuple[str, int], int] = {}
    problems: list[tuple[Path, str]] = []
    for i, entry in enumerate(entries):
        key = (entry.model, _begin(entry))
        if first.setdefault(key, i) != i:
            when = f"from {entry.valid_from}" if entry.valid_from else "without 'from'"
            path: Path = ("prices", i, "from" if entry.valid_from else "model")
            problems.append((path, f"model {entry.model!r} has a price {when} already: prices[{first[key]}]"))
    return problems


def _begin(entry: PriceEntry) -> int:
    """Unix seconds; 0 for a row that has always been valid."""
    day = entry.valid_from
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) if day else 0


def _row(entry: PriceEntry) -> Price:
    cached, reasoning = entry.cached_input_per_mtok, entry.reasoning_per_mtok
    row = Price(
        model=entry.model,
        version="",
        valid_from=_begin(entry),
        input_token=_millionth(entry.input_per_mtok),
        cached_token=_millionth(entry.input_per_mtok if cached is None else cached),
        output_token=_millionth(entry.output_per_mtok),
        reasoning_token=_millionth(entry.output_per_mtok if reasoning is None else reasoning),
        audio_minute=entry.per_audio_minute or _ZERO,
        character=_millionth(entry.per_million_characters),
        image=entry.per_image or _ZERO,
        pixel=_millionth(entry.per_megapixel),
        request=entry.per_request or _ZERO,
    )
    return replace(row, version=version_of(row))


def _millionth(amount: Decimal | None) -> Decimal:
    """Only the point moves: exact."""
    return amount.scaleb(-6) if amount else _ZERO
