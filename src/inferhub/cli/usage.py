"""`inferhub usage`: asks the usage store itself, so it needs no running server and no key."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferhub.cli._billing import open_usage, usd
from inferhub.cli._context import load
from inferhub.cli._flags import Json, new_app, with_settings
from inferhub.cli._output import print_json, table, working
from inferhub.cli._records import key_id_of

if TYPE_CHECKING:
    from inferhub.settings import Settings
    from inferhub.stores.usage.base import Dimension, UsageFilter, UsageRow

app = new_app()

MAX_ROWS = 1_000_000


@app.command(
    epilog="""\b
Examples:
  inferhub usage                                   this month, by day
  inferhub usage --by tenant,model --from 2026-10-01 --until 2026-11-01
  inferhub usage --by key --tenant ten_4f09c1d2 --csv > usage.csv
  inferhub usage --by status --model assistant --json"""
)
@with_settings(("config", "data_dir", "usage_url"))
def usage(
    *,
    by: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Up to four of tenant, project, key, modality, model, day, status, source, with commas.",
        ),
    ] = "day",
    begin: Annotated[
        str | None,
        typer.Option("--from", metavar="WHEN", help="Day or time in UTC; else this month's start."),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Day or time in UTC, not included; else now.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(metavar="ID", help="Only of this tenant.")] = None,
    project: Annotated[str | None, typer.Option(metavar="ID", help="Only of this project.")] = None,
    key_id: Annotated[str | None, typer.Option(metavar="ID", help="Only of this API key.")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Only of this model.")] = None,
    modality: Annotated[str | None, typer.Option(metavar="NAME", help="Only of this modality.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_ROWS, help="Most rows that are shown.")] = 1000,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV, for spreadsheets.")] = False,
    json: Json = False,
    flags: Mapping[str, Any],
) -> None:
    """Sum up who used how much, and what it cost.

    A running server's last second may still be on its way to the store.
    """
    from inferhub.stores.usage.base import UsageFilter
    from inferhub.stores.usage.words import dimensions_of, period_ms

    if csv and json:
        raise typer.BadParameter("Choose one of --csv and --json.", param_hint="'--csv'")
    names = dimensions_of(by)
    owner = (tenant, project, key_id and key_id_of(key_id))
    where = UsageFilter(*period_ms(begin, until), *owner, model, modality)
    with working("Reading the usage…", silent=json or csv):
        rows, has_more = asyncio.run(_rows(load(flags).settings, where, names, limit))
    _print(names, rows, as_csv=csv, as_json=json)
    if has_more:
        typer.echo(f"There are more than {limit} rows; --limit shows more.", err=True)


async def _rows(
    settings: Settings, where: UsageFilter, names: Sequence[Dimension], limit: int
) -> tuple[list[UsageRow], bool]:
    from inferhub.stores.usage.base import MAX_PAGE

    found: list[UsageRow] = []
    after: tuple[str, ...] | None = None
    async with open_usage(settings) as store:
        while True:
            size = min(MAX_PAGE, limit - len(found))
            page = await store.summary(where, names, after=after, limit=size)
            found += page.rows
            after = page.next_after
            if after is None or len(found) >= limit:
                return found, after is not None


def _print(names: Sequence[str], rows: Sequence[UsageRow], *, as_csv: bool, as_json: bool) -> None:
    if as_csv:
        from inferhub.gateway.admin.sheets import csv_sheet

        sys.stdout.write(csv_sheet(names, rows))
    elif as_json:
        print_json([_card(names, row) for row in rows])
    elif not rows:
        print("No call in this time.")
    else:
        head = (*(name.upper() for name in names), *_COLUMNS)
        print(table(head, [(*row.keys, *_figures(row)) for row in rows]))
        print(f"\n{sum(row.calls for row in rows)} calls, {usd(sum(row.cost_usd for row in rows))} USD.")


_COLUMNS = ("CALLS", "ERRORS", "INPUT", "CACHED", "OUTPUT", "REASONING", "P50 MS", "P95 MS", "COST USD")


def _figures(row: UsageRow) -> tuple[str, ...]:
    counts = (
        row.calls, row.errors, row.input_tokens, row.cached_tokens, row.output_tokens, row.reasoning_tokens
    )  # fmt: skip
    times = ("-" if ms is None else f"{ms:.0f}" for ms in (row.latency_ms_p50, row.latency_ms_p95))
    return (*map(str, counts), *times, usd(row.cost_usd))


def _card(names: Sequence[str], row: UsageRow) -> dict[str, Any]:
    from msgspec import to_builtins

    card = to_builtins(row)
    return {**dict(zip(names, card.pop("keys"), strict=True)), **card}
