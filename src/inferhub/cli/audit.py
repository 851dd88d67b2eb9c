"""`inferhub audit`: who changed what, read from the catalog itself."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferhub.cli._context import load, open_catalog
from inferhub.cli._errors import printable
from inferhub.cli._flags import STORAGE, Json, new_app, with_settings
from inferhub.cli._output import day, print_json, table, working
from inferhub.cli._records import OfTenant, find
from inferhub.core.audit import AuditEntry

if TYPE_CHECKING:
    from inferhub.settings import Settings

app = new_app(
    no_args_is_help=True,
    help="Read and verify the log of every change of the catalog.\n\n"
    "Each entry holds a hash of the one before it, so that none can be changed or taken out later without a "
    "trace.",
)


@app.command(
    "list",
    epilog="""\b
Examples:
  inferhub audit list
  inferhub audit list --tenant ten_4f09c1d2 --limit 20
  inferhub audit list --before 1200 --json""",
)
@with_settings(STORAGE)
def list_acts(
    *,
    tenant: OfTenant = None,
    before: Annotated[
        int | None, typer.Option(min=1, metavar="NUMBER", help="Only entries older than this one.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most entries that are shown.")] = 100,
    json: Json = False,
    flags: Mapping[str, Any],
) -> None:
    """List what was changed by whom, newest first."""
    entries = asyncio.run(_list(load(flags).settings, tenant, before, limit))
    if json:
        print_json([_card(entry) for entry in entries])
        return
    rows = [
        (
            str(entry.seq),
            day(entry.at),
            entry.act.actor,
            entry.act.action,
            entry.act.target,
            entry.act.tenant_id or "-",
            printable(" ".join(f"{name}={value}" for name, value in entry.act.detail.items())),
        )
        for entry in entries
    ]
    print(table(("NUMBER", "AT", "ACTOR", "ACTION", "TARGET", "TENANT", "DETAIL"), rows))


@app.command(epilog="\b\nExamples:\n  inferhub audit verify\n  inferhub audit verify --json")
@with_settings(STORAGE)
def verify(*, json: Json = False, flags: Mapping[str, Any]) -> None:
    """Check every hash of the log, and show the last one.

    Keep number and hash of the last entry outside of this machine: who can replace the whole database can
    also write a log that fits, but not one that holds this hash.
    """
    with working("Checking the log…", silent=json):
        count, last = asyncio.run(_verify(load(flags).settings))
    if json:
        print_json({"entries": count, "last": None if last is None else _card(last)})
        return
    print(f"{count} entries; none was changed, removed or put in between.")
    if last is not None:
        print(f"Entry {last.seq} of {day(last.at)} has the hash {last.hash}.")


async def _list(
    settings: Settings, tenant_id: str | None, before: int | None, limit: int
) -> tuple[AuditEntry, ...]:
    async with open_catalog(settings) as catalog:
        if tenant_id is not None:
            find(await catalog.tenants(), tenant_id, "tenant", param="tenant")
        return await catalog.audit(tenant_id=tenant_id, before_seq=before, limit=limit)


async def _verify(settings: Settings) -> tuple[int, AuditEntry | None]:
    async with open_catalog(settings) as catalog:
        # First, so that what is shown is among what is checked.
        newest = await catalog.audit(limit=1)
        return await catalog.verify_audit(), newest[0] if newest else None


def _card(entry: AuditEntry) -> dict[str, Any]:
    said = asdict(entry)
    return {
        "seq": entry.seq,
        "at": entry.at,
        **said["act"],
        "previous_hash": entry.previous_hash,
        "hash": entry.hash,
    }
