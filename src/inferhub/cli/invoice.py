"""`inferhub invoice`: the bill of a month, from the usage store itself."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferhub.cli._billing import open_usage, usd
from inferhub.cli._context import load, open_catalog
from inferhub.cli._flags import STORAGE, Json, new_app, with_settings
from inferhub.cli._output import print_json, table, working
from inferhub.cli._records import find
from inferhub.core.tenancy import DEFAULT_TENANT

if TYPE_CHECKING:
    from inferhub.settings import Settings
    from inferhub.stores.usage.billing import Invoice

app = new_app()


@app.command(
    epilog="""\b
Examples:
  inferhub invoice 2026-10
  inferhub invoice 2026-10 --tenant ten_4f09c1d2 --csv > acme-2026-10.csv
  inferhub invoice 2026-10 --json"""
)
@with_settings((*STORAGE, "usage_url"))
def invoice(
    month: Annotated[str, typer.Argument(metavar="YYYY-MM", help="Of the UTC calendar.")],
    *,
    tenant: Annotated[str, typer.Option(metavar="ID", help="Whose bill.")] = DEFAULT_TENANT,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV, for spreadsheets.")] = False,
    json: Json = False,
    flags: Mapping[str, Any],
) -> None:
    """Print the bill of a month.

    Lines are exact; only the total is rounded, half up, to cents.
    """
    if csv and json:
        raise typer.BadParameter("Choose one of --csv and --json.", param_hint="'--csv'")
    with working("Reading the usage…", silent=json or csv):
        bill = asyncio.run(_invoice(load(flags).settings, tenant, month))
    if json:
        from msgspec import to_builtins

        print_json(to_builtins(bill))
    elif csv:
        from inferhub.gateway.admin.sheets import invoice_sheet

        sys.stdout.write(invoice_sheet(bill))
    else:
        _print(bill)
    if not bill.is_final:
        typer.echo(f"{month} is not over: this is the bill so far.", err=True)
    if bill.uncounted_calls:
        typer.echo(
            f"{bill.uncounted_calls} calls are billed at nothing: nobody could count or estimate them.",
            err=True,
        )


async def _invoice(settings: Settings, tenant_id: str, month: str) -> Invoice:
    from inferhub.stores.usage.billing import invoice as bill_of
    from inferhub.stores.usage.billing import whole_month

    # Before a store is asked for anything.
    whole_month(month)
    async with open_catalog(settings) as catalog:
        find(await catalog.tenants(), tenant_id, "tenant", param="tenant")
    async with open_usage(settings) as store:
        return await bill_of(store, tenant_id, month)


def _print(bill: Invoice) -> None:
    print(f"Tenant {bill.tenant_id}, {bill.month}\n")
    rows = [
        (
            line.project_id,
            line.model,
            str(line.calls),
            str(line.input_tokens),
            str(line.cached_tokens),
            str(line.output_tokens),
            str(line.reasoning_tokens),
            usd(line.cost_usd),
        )
        for line in bill.lines
    ]
    head = ("PROJECT", "MODEL", "CALLS", "INPUT", "CACHED", "OUTPUT", "REASONING", "COST USD")
    print(table(head, rows))
    print(f"\nTotal {bill.total_usd} USD (exact: {usd(bill.cost_usd)}).")
