"""Invoices, sheets and reconciliation, over a real usage store."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from inferhub.core.errors import Invalid
from inferhub.core.usage import UsageEvent
from inferhub.gateway.admin.sheets import csv_sheet, invoice_sheet
from inferhub.stores.usage.base import UsageFilter, UsageRow, UsageStore
from inferhub.stores.usage.billing import (
    Difference,
    Invoice,
    InvoiceLine,
    Reported,
    invoice,
    reconcile,
    whole_month,
)
from inferhub.stores.usage.sqlite import open_usage
from inferhub.testing.ledgers import make_begin, make_event


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[UsageStore]:
    opened = await open_usage(f"sqlite:///{tmp_path}/usage.db")
    yield opened
    await opened.close()


def at(text: str) -> int:
    return int(datetime.fromisoformat(f"{text}+00:00").timestamp() * 1000)


_numbers = iter(range(10**9))


def event(when: str = "2026-05-10T12:00:00", output: int = 5, **fields: object) -> UsageEvent:
    begin = make_begin(f"c{next(_numbers)}", at_ms=at(when))
    return make_event(begin, output, **{"cost_usd": Decimal("0.005"), **fields})


# --- a month and its invoice -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("month", "first", "following"),
    [
        ("2026-02", "2026-02-01", "2026-03-01"),
        ("2028-02", "2028-02-01", "2028-03-01"),
        ("2026-12", "2026-12-01", "2027-01-01"),
        ("2026-01", "2026-01-01", "2026-02-01"),
    ],
)
def test_a_month_ends_where_the_next_begins(month: str, first: str, following: str) -> None:
    assert whole_month(month) == (at(f"{first}T00:00:00"), at(f"{following}T00:00:00"))


@pytest.mark.parametrize(
    "text", ["2026-13", "2026-00", "2026-1", "26-01", "2026-01-01", "", "1999-01", "x" * 99]
)
async def test_what_is_no_month_is_refused(store: UsageStore, text: str) -> None:
    with pytest.raises(Invalid, match="YYYY-MM") as caught:
        await invoice(store, "ten_a", text)
    assert caught.value.param == "month"


async def test_an_invoice_has_the_calls_of_its_month_and_tenant_and_no_others(store: UsageStore) -> None:
    await store.write([
        event("2026-05-01T00:00:00"),
        event("2026-05-31T23:59:59.999"),
        event("2026-04-30T23:59:59.999"),
        event("2026-06-01T00:00:00"),
        event(tenant_id="ten_b"),
    ])  # fmt: skip
    bill = await invoice(store, "ten_a", "2026-05")
    assert [(line.project_id, line.model, line.calls) for line in bill.lines] == [("prj_a", "m", 2)]
    assert (bill.cost_usd, bill.total_usd) == (Decimal("0.010"), Decimal("0.01"))


async def test_lines_add_up_exactly_and_only_the_total_is_rounded(store: UsageStore) -> None:
    tiny = Decimal("0.000000000000000001")
    costs = [Decimal("0.0049") + tiny, Decimal("0.0001"), Decimal("1.10"), tiny]
    await store.write([event(model=f"m{i}", cost_usd=cost) for i, cost in enumerate(costs)])
    bill = await invoice(store, "ten_a", "2026-05")
    assert [line.cost_usd for line in bill.lines] == costs
    assert bill.cost_usd == sum(costs)
    # Half a cent goes up: by lines it would have been 1.10.
    assert bill.total_usd == Decimal("1.11")


async def test_calls_that_nobody_counted_are_said(store: UsageStore) -> None:
    await store.write([event(output=0, source="unknown"), event(), event()])
    assert (await invoice(store, "ten_a", "2026-05")).uncounted_calls == 1


async def test_a_month_is_final_when_it_is_over(store: UsageStore) -> None:
    this_month = f"{datetime.now(UTC):%Y-%m}"
    assert (await invoice(store, "ten_a", "2026-05")).is_final
    assert not (await invoice(store, "ten_a", this_month)).is_final


async def test_an_invoice_of_more_lines_than_a_page(store: UsageStore) -> None:
    await store.write([event(model=f"m{i:04d}") for i in range(1500)])
    bill = await invoice(store, "ten_a", "2026-05")
    assert len(bill.lines) == 1500
    assert bill.cost_usd == Decimal("7.5")


# --- reconciliation ----------------------------------------------------------------------------------


def beyond(differences: tuple[Difference, ...]) -> list[tuple[str, str]]:
    return [(d.day, d.model) for d in differences if d.is_beyond]


async def test_cached_and_reasoning_tokens_are_part_of_what_a_provider_counts(store: UsageStore) -> None:
    await store.write([event(output=2, input_tokens=4, cached_tokens=3, reasoning_tokens=3, total_tokens=12)])
    (found,) = await reconcile(store, [Reported("2026-05-10", "m", 7, 5, 1)], 0)
    assert (found.ledger_input_tokens, found.ledger_output_tokens, found.is_beyond) == (7, 5, False)


@pytest.mark.parametrize(
    ("report", "is_beyond"),
    [
        (Reported("2026-05-10", "m", 700, 500, 100), False),
        (Reported("2026-05-10", "m", 707, 505, 101), False),
        (Reported("2026-05-10", "m", 708, 500), True),
        (Reported("2026-05-10", "m", 700, 494), True),
        (Reported("2026-05-10", "m", 700, 500, 102), True),
        (Reported("2026-05-10", "m", 700, 500, None), False),
        (Reported("2026-05-10", "m", 0, 0, 0), True),
    ],
)
async def test_what_differs_by_more_than_the_tolerance_is_named(
    store: UsageStore, report: Reported, is_beyond: bool
) -> None:
    await store.write([event() for _ in range(100)])
    assert beyond(await reconcile(store, [report], 0.01)) == ([("2026-05-10", "m")] if is_beyond else [])


async def test_a_day_that_only_one_side_knows_is_a_difference(store: UsageStore) -> None:
    await store.write([event("2026-05-10T00:00:00"), event("2026-05-11T23:59:59.999"), event(model="other")])
    report = [Reported("2026-05-10", "m", 7, 5), Reported("2026-05-12", "m", 7, 5)]
    found = await reconcile(store, report, 0)
    assert [(d.day, d.ledger_calls, d.is_beyond) for d in found] == [
        ("2026-05-10", 1, False),
        ("2026-05-11", 1, True),
        ("2026-05-12", 0, True),
    ]


async def test_rows_of_one_day_and_model_add_up(store: UsageStore) -> None:
    """A provider may report by key or by hour."""
    await store.write([event(), event()])
    rows = [Reported("2026-05-10", "m", 7, 5, 1), Reported("2026-05-10", "m", 7, 5, 1)]
    assert beyond(await reconcile(store, rows, 0)) == []
    (found,) = await reconcile(store, [rows[0], Reported("2026-05-10", "m", 7, 5)], 0)
    assert found.provider_calls is None


@pytest.mark.parametrize("day", ["2026-02-30", "2026-5-10", "yesterday", "2026-13-01", "2026-05-1 "])
async def test_a_day_that_is_none_is_refused_wherever_it_stands(store: UsageStore, day: str) -> None:
    good = [Reported("2020-01-01", "m", 0, 0), Reported("2030-01-01", "m", 0, 0)]
    with pytest.raises(Invalid, match="YYYY-MM-DD") as caught:
        await reconcile(store, [good[0], Reported(day, "m", 0, 0), good[1]], 0)
    assert caught.value.param == "rows.day"


async def test_an_empty_report_says_nothing(store: UsageStore) -> None:
    assert await reconcile(store, [], 0) == ()


# --- sheets ------------------------------------------------------------------------------------------


def read_sheet(text: str) -> list[list[str]]:
    assert text.endswith("\r\n")
    return list(csv.reader(io.StringIO(text, newline="")))


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "\uff1d1", '=cmd|" /C calc"!A0']


@pytest.mark.parametrize("name", FORMULAS)
async def test_a_name_that_looks_like_a_formula_is_disarmed(store: UsageStore, name: str) -> None:
    await store.write([event(model=name, status="model_not_found")])
    where = UsageFilter(at("2026-05-01T00:00:00"), at("2026-06-01T00:00:00"))
    page = await store.summary(where, ("model",))
    head, row = read_sheet(csv_sheet(["model"], page.rows))
    assert row[0] == f"'{name}"
    assert len(row) == len(head)
    assert read_sheet(invoice_sheet(await invoice(store, "ten_a", "2026-05")))[1][1] == f"'{name}"


def test_quotes_commas_and_lines_stay_in_their_cell() -> None:
    name = 'a,"b"\nc;d'
    head, row = read_sheet(csv_sheet(["model"], [_row(name)]))
    assert (row[0], len(row)) == (name, len(head))


def test_every_digit_of_a_cost_is_written() -> None:
    head, row = read_sheet(csv_sheet(["model"], [_row("m", Decimal("1E-18"))]))
    assert row[head.index("cost_usd")] == "0.000000000000000001"
    assert row[head.index("latency_ms_p50")] == ""


def test_an_invoice_s_sheet_ends_with_its_total() -> None:
    line = InvoiceLine("prj_a", "m", 3, 1, 2, 3, 4, Decimal("1.5"), 5, 6, Decimal("0.005"))
    bill = Invoice("ten_a", "2026-05", True, (line, line), Decimal("0.010"), Decimal("0.01"), 0)
    head, one, _, total = read_sheet(invoice_sheet(bill))
    assert dict(zip(head, one, strict=True))["audio_seconds"] == "1.5"
    assert len({len(row) for row in (head, one, total)}) == 1
    assert (total[0], total[head.index("cost_usd")]) == ("total", "0.01")


def _row(model: str, cost: Decimal = Decimal(0)) -> UsageRow:
    return UsageRow((model,), 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, cost)
