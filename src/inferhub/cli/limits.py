"""`inferhub limits`: quotas and budgets in the catalog; how full they are, from the counters."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from inferhub.cli._context import load, open_catalog
from inferhub.cli._flags import STORAGE, Json, new_app, with_settings
from inferhub.cli._output import day, print_json, table
from inferhub.cli._records import OfTenant, act, find, key_id_of, subject_of
from inferhub.core.clock import new_id, unix_s
from inferhub.core.errors import Invalid, SetupError, StoreFailed
from inferhub.core.quota import WINDOWS, Quota, Reading, Unit, Window

if TYPE_CHECKING:
    from typer._click import Context

    from inferhub.settings import Settings

app = new_app(
    no_args_is_help=True,
    help="Set and list limits and budgets of tenants, projects and keys.\n\n"
    "They are kept in the catalog of this machine; a running server follows within a second. A call is held "
    "against those of its key, its project and its tenant at once.",
)

COUNTED = (*STORAGE, "counters_url")
Mode = Literal["auto", "exact", "lease"]

_READ_TIMEOUT_S = 5.0
_WHOLE = re.compile(r"-?[0-9]{1,20}")
_NEGATIVE = re.compile(r"-[0-9.]+")


class _TakesNegativeNumbers(TyperCommand):
    """So that `-5` is told to be no limit, instead of being an unknown flag."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        if any(_NEGATIVE.fullmatch(argument) for argument in args):
            ctx.ignore_unknown_options = True
        return super().parse_args(ctx, args)


@app.command(
    "list",
    epilog="""\b
Examples:
  inferhub limits list
  inferhub limits list --tenant ten_4f09c1d2
  inferhub limits list --subject ih_4fA09bQzX1c2 --json""",
)
@with_settings(COUNTED)
def list_limits(
    *,
    tenant: OfTenant = None,
    subject: Annotated[
        str | None, typer.Option(metavar="ID", help="Only those of this tenant, project or key.")
    ] = None,
    json: Json = False,
    flags: Mapping[str, Any],
) -> None:
    """List the limits, and how full each is."""
    settings = load(flags).settings
    quotas, readings, trouble = asyncio.run(_list(settings, tenant, subject and key_id_of(subject)))
    if json:
        print_json([_card(quota, readings) for quota in quotas])
    else:
        head = ("ID", "SUBJECT", "LIMIT", "MODE", "USED", "LEFT", "EMPTY AGAIN")
        print(table(head, [_row(_card(quota, readings)) for quota in quotas]))
    if trouble:
        typer.echo(f"How full they are is not known: {trouble}", err=True)


@app.command(
    "set",
    cls=_TakesNegativeNumbers,
    epilog="""\b
Examples:
  inferhub limits set ten_4f09c1d2 50000 tokens/minute
  inferhub limits set prj_77b0 5.00 usd/day
  inferhub limits set ih_4fA09bQzX1c2 100 requests/minute --mode exact
  inferhub limits set ih_4fA09bQzX1c2 8 concurrent""",
)
@with_settings(STORAGE)
def set_limit(
    subject: Annotated[
        str, typer.Argument(metavar="SUBJECT", help="Id of the tenant, project or key that it binds.")
    ],
    amount: Annotated[
        str, typer.Argument(metavar="AMOUNT", help="A whole number; dollars for `usd`, such as 12.50.")
    ],
    kind: Annotated[
        str,
        typer.Argument(
            metavar="UNIT/WINDOW",
            help="requests, tokens, audio_seconds, tts_characters, images or pixels, over minute, day or "
            "month; usd over day or month; or concurrent.",
        ),
    ],
    *,
    mode: Annotated[
        Mode,
        typer.Option(
            help="How gateways share it: `exact` asks the counters for every call, `lease` takes blocks, "
            "`auto` goes by size."
        ),
    ] = "auto",
    json: Json = False,
    flags: Mapping[str, Any],
) -> None:
    """Set a limit or budget; replaces the one of the same subject, unit and window."""
    quota = asyncio.run(_set(load(flags).settings, key_id_of(subject), amount, kind, mode))
    if json:
        print_json(_card(quota, {}))
    else:
        print(f"Limit {quota.id}: {quota.subject_id} may use {_said(_card(quota, {}))}.")


@app.command(epilog="\b\nExamples:\n  inferhub limits delete quo_91c2")
@with_settings(STORAGE)
def delete(
    limit_id: Annotated[str, typer.Argument(metavar="ID", help="As `inferhub limits list` shows it.")],
    *,
    json: Json = False,
    flags: Mapping[str, Any],
) -> None:
    """Remove a limit."""
    quota = asyncio.run(_delete(load(flags).settings, limit_id))
    if json:
        print_json({**_card(quota, {}), "deleted": True})
    else:
        print(f"Limit {quota.id} of {quota.subject_id} is removed: {_said(_card(quota, {}))}.")


def kind_of(text: str) -> tuple[Unit, Window]:
    """`requests/minute` → both. Raises `Invalid` naming what there is."""
    from inferhub.settings.nearest import did_you_mean

    name, _, over = text.partition("/")
    units = [unit.value for unit in Unit]
    if name not in units:
        raise Invalid(
            f"There is no unit {name[:40]!r}; a limit is of one of {', '.join(units)}."
            f"{did_you_mean(name, units)}",
            param="unit",
        )
    unit = Unit(name)
    windows = [window.value for window in WINDOWS[unit]]
    if not over and len(windows) == 1:
        over = windows[0]
    if over not in windows:
        allowed = name if unit is Unit.CONCURRENT else " or ".join(f"{name}/{window}" for window in windows)
        raise Invalid(
            f"A limit of {name} is written {allowed}; got {text[:60]!r}.{did_you_mean(over, windows)}",
            param="window",
        )
    return unit, Window(over)


async def _list(
    settings: Settings, tenant_id: str | None, subject_id: str | None
) -> tuple[list[Quota], Mapping[str, Reading], str | None]:
    async with open_catalog(settings) as catalog:
        if tenant_id is not None:
            find(await catalog.tenants(), tenant_id, "tenant", param="tenant")
        if subject_id is not None:
            await subject_of(catalog, subject_id)
        quotas = [
            quota
            for quota in await catalog.quotas()
            if tenant_id in (None, quota.tenant_id) and subject_id in (None, quota.subject_id)
        ]
    return quotas, *await _readings(settings.counters_url, quotas)


async def _readings(url: str, quotas: Sequence[Quota]) -> tuple[Mapping[str, Reading], str | None]:
    """By the meter's key, or why they are not known: limits can be seen and set all the same."""
    from inferhub.pipeline.limiter.book import meter_for
    from inferhub.stores import open_counters

    if not quotas:
        return {}, None
    if url.startswith("memory:"):
        return {}, "counters_url is memory://, so only the server itself knows."
    try:
        counters = await open_counters(url)
    except SetupError as error:
        return {}, error.message
    try:
        async with asyncio.timeout(_READ_TIMEOUT_S):
            found = await counters.read([meter_for(quota) for quota in quotas])
    except StoreFailed as error:
        return {}, f"{error.message} `inferhub doctor` looks closer."
    except TimeoutError:
        return {}, f"the counters did not answer in {_READ_TIMEOUT_S:g} s. `inferhub doctor` looks closer."
    finally:
        await counters.close()
    return {reading.meter.key: reading for reading in found}, None


async def _set(settings: Settings, subject_id: str, amount: str, kind: str, mode: Mode) -> Quota:
    from inferhub.stores.catalog.amounts import amount_of

    unit, window = kind_of(kind)
    is_number = unit is not Unit.USD and _WHOLE.fullmatch(amount)
    limit = amount_of(int(amount) if is_number else amount, unit)
    async with open_catalog(settings) as catalog:
        level, tenant_id = await subject_of(catalog, subject_id)
        # The one that it replaces keeps its id: the audit log shall name that.
        same = (
            q.id
            for q in await catalog.quotas()
            if (q.subject_id, q.unit, q.window) == (subject_id, unit, window)
        )
        limit_id = next(same, None) or new_id("quo")
        quota = Quota(limit_id, tenant_id, level, subject_id, unit, window, limit, mode, unix_s())
        made = act("limit.set", limit_id, tenant_id, subject=subject_id, limit=f"{amount} {kind}", mode=mode)
        return await catalog.set_quota(quota, made)


async def _delete(settings: Settings, limit_id: str) -> Quota:
    async with open_catalog(settings) as catalog:
        quota = find(await catalog.quotas(), limit_id, "limit")
        made = act("limit.delete", quota.id, quota.tenant_id, subject=quota.subject_id)
        return await catalog.delete_quota(quota.id, made)


def _card(quota: Quota, readings: Mapping[str, Reading]) -> dict[str, Any]:
    """The same names as the admin API's."""
    from inferhub.pipeline.limiter.book import meter_for
    from inferhub.stores.catalog.amounts import limit_card

    return limit_card(quota, readings.get(meter_for(quota).key))


def _row(card: Mapping[str, Any]) -> tuple[str, ...]:
    used, left, reset_s = card["used"], card["remaining"], card["reset_s"]
    empty_again = "-"
    if reset_s and card["window"] != Window.NOW:
        empty_again = day(unix_s() + round(reset_s)) if reset_s > 120 else f"in {reset_s:.0f} s"
    return (
        card["id"],
        card["subject_id"],
        _said(card),
        card["mode"],
        "?" if used is None else str(used),
        "?" if left is None else str(left),
        empty_again,
    )


def _said(card: Mapping[str, Any]) -> str:
    over = "" if card["window"] == Window.NOW else f"/{card['window']}"
    return f"{card['limit']} {card['unit']}{over}"
