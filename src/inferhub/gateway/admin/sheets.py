"""Usage and invoices as CSV. Pure; a cell that a spreadsheet would take for a formula is disarmed."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import astuple, fields
from decimal import Decimal

from inferhub.stores.usage.base import UsageRow
from inferhub.stores.usage.billing import Invoice, InvoiceLine

_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""And their full-width forms, which some spreadsheets read alike."""
_BREAKS = ("\t", "\r", "\n")


def csv_sheet(dimensions: Sequence[str], rows: Iterable[UsageRow]) -> str:
    names = [field.name for field in fields(UsageRow) if field.name != "keys"]
    return _sheet(
        [*dimensions, *names], ([*row.keys, *(getattr(row, name) for name in names)] for row in rows)
    )


def invoice_sheet(invoice: Invoice) -> str:
    names = [field.name for field in fields(InvoiceLine)]
    empty = [""] * (len(names) - 3)
    total = ["total", *empty, "", invoice.total_usd]
    return _sheet(names, [*(list(astuple(line)) for line in invoice.lines), total])


def _sheet(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(head)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    # Spreadsheets pass over blanks in front of a formula.
    if isinstance(value, str) and (value.lstrip()[:1] in _FORMULA or value[:1] in _BREAKS):
        return f"'{value}"
    if isinstance(value, Decimal):
        # Not `1E-7`: every digit.
        return f"{value:f}"
    return "" if value is None else value
