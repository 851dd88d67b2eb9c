"""`/admin/v1/usage`, `…/invoices`, `…/prices`, `…/reconciliation`: who used how much, and what it costs.

Reads the usage store and changes nothing. What was used a moment ago is in the ledger's spool and arrives
within a second.
"""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field

from inferhub.core.errors import Invalid
from inferhub.core.tenancy import Principal
from inferhub.core.usage import Price, UsageEvent
from inferhub.gateway.access import Caller, GuardedRoute
from inferhub.gateway.admin.desk import Body, Desk, Limit, act, tenant_for
from inferhub.gateway.admin.sheets import csv_sheet, invoice_sheet
from inferhub.stores.usage.base import UsageFilter, UsageRow, UsageStore
from inferhub.stores.usage.billing import Difference, Reported, invoice, reconcile
from inferhub.stores.usage.words import DIMENSIONS, dimensions_of, period_ms

MAX_REPORTED = 10_000
_MOMENT_MS = re.compile(r"[0-9]{1,15}")

Format = Literal["json", "csv"]


class ReportedRow(Body):
    """One row of a provider's own usage report."""

    day: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    model: str = Field(min_length=1, max_length=128)
    input_tokens: int = Field(0, ge=0, le=10**15, description="Cached ones included.")
    output_tokens: int = Field(0, ge=0, le=10**15, description="Reasoning included.")
    calls: int | None = Field(None, ge=0, le=10**12)


class Report(Body):
    rows: list[ReportedRow] = Field(min_length=1, max_length=MAX_REPORTED)
    tolerance: float = Field(0.01, ge=0, le=1, description="Share by which counts may differ.")


def usage_router(desk: Desk, store: UsageStore, prices: Callable[[], Sequence[Price]]) -> APIRouter:
    router = APIRouter(route_class=GuardedRoute, tags=["usage"])

    async def summary(
        *,
        caller: Caller,
        where: Annotated[UsageFilter, Depends(_where)],
        by: Annotated[
            str, Query(max_length=100, description=f"Up to four of {', '.join(DIMENSIONS)}.")
        ] = "day",
        after: Annotated[str | None, Query(max_length=2000)] = None,
        limit: Limit = 100,
        format: Format = "json",  # noqa: A002 - the parameter's public name
    ) -> Response:
        dimensions = dimensions_of(by)
        page = await store.summary(where, dimensions, after=_cursor(after, len(dimensions)), limit=limit)
        if format == "csv":
            return _csv(csv_sheet(dimensions, page.rows), "usage.csv", page.next_after)
        return _json(
            {
                "object": "list",
                "data": [usage_card(dimensions, row) for row in page.rows],
                "has_more": page.next_after is not None,
                "next_after": _opaque(page.next_after),
            }
        )

    for path in ("/admin/v1/usage", "/admin/usage"):
        router.add_api_route(
            path,
            summary,
            methods=["GET"],
            summary="Usage and cost, summed up",
            response_class=Response,
            include_in_schema=path == "/admin/v1/usage",
        )

    @router.get("/admin/v1/usage/events", summary="Single calls of the ledger", response_class=Response)
    async def events(
        caller: Caller,
        where: Annotated[UsageFilter, Depends(_where)],
        after: Annotated[str | None, Query(max_length=2000)] = None,
        limit: Limit = 100,
    ) -> Response:
        start = _cursor(after, 2) or ("0", "")
        if not _MOMENT_MS.fullmatch(start[0]):
            raise _not_a_cursor()
        found = await store.events(where, after=(int(start[0]), start[1]), limit=limit)
        last = (str(found[-1].at_ms), found[-1].id) if len(found) == limit else None
        return _json(
            {
                "object": "list",
                "data": [_event_card(event) for event in found],
                "has_more": last is not None,
                "next_after": _opaque(last),
            }
        )

    @router.get("/admin/v1/invoices/{month}", summary="The bill of a month", response_class=Response)
    async def get_invoice(
        month: str,
        caller: Caller,
        tenant_id: str | None = None,
        format: Format = "json",  # noqa: A002 - the parameter's public name
    ) -> Response:
        bill = await invoice(store, tenant_for(caller, tenant_id), month)
        if format == "csv":
            return _csv(invoice_sheet(bill), f"invoice-{month}.csv", None)
        return _json({"object": "invoice", **msgspec.to_builtins(bill)})

    @router.get("/admin/v1/prices", summary="The prices that calls are billed at")
    async def list_prices(caller: Caller) -> Mapping[str, Any]:
        return {"object": "list", "data": [msgspec.to_builtins(price) for price in prices()]}

    @router.post("/admin/v1/reconciliation", summary="Hold the ledger against a provider's own report")
    async def post_report(body: Report, request: Request, caller: Caller) -> Mapping[str, Any]:
        rows = [Reported(r.day, r.model, r.input_tokens, r.output_tokens, r.calls) for r in body.rows]
        differences = await reconcile(store, rows, body.tolerance)
        made = act(request, caller, "usage.reconcile", "usage", None, rows=str(len(rows)))
        await desk.catalog.record(made)
        return {
            "object": "reconciliation",
            "agrees": not any(d.is_beyond for d in differences),
            "data": [_difference_card(d) for d in differences],
        }

    return router


def _where(
    *,
    caller: Caller,
    start: Annotated[
        str | None, Query(alias="from", max_length=40, description="Day or time (UTC); this month's start.")
    ] = None,
    until: Annotated[str | None, Query(max_length=40, description="Not included; now.")] = None,
    tenant_id: Annotated[str | None, Query(max_length=60)] = None,
    project_id: Annotated[str | None, Query(max_length=60)] = None,
    key_id: Annotated[str | None, Query(max_length=60)] = None,
    model: Annotated[str | None, Query(max_length=128)] = None,
    modality: Annotated[str | None, Query(max_length=40)] = None,
) -> UsageFilter:
    """Whose and which usage is asked for: never another tenant's."""
    named = {"project_id": project_id, "key_id": key_id, "model": model, "modality": modality}
    for name, text in named.items():
        if text is not None and not text.isprintable():
            raise Invalid(f"'{name}' has characters that no name has.", param=name)
    from_ms, until_ms = period_ms(start, until)
    return UsageFilter(
        from_ms,
        until_ms,
        _tenant_seen(caller, tenant_id),
        project_id,
        key_id,
        model,
        modality,
    )


def _tenant_seen(caller: Principal, asked: str | None) -> str | None:
    """None, for every tenant, only for those who see them all."""
    return None if asked is None and caller.is_admin else tenant_for(caller, asked)


def _opaque(after: Sequence[str] | None) -> str | None:
    return None if after is None else urlsafe_b64encode(json.dumps(list(after)).encode()).decode()


def _cursor(text: str | None, length: int) -> tuple[str, ...] | None:
    if text is None:
        return None
    try:
        found = json.loads(urlsafe_b64decode(text.encode()))
    except (ValueError, RecursionError):
        found = None
    is_one = isinstance(found, list) and len(found) == length and all(isinstance(f, str) for f in found)
    if not is_one:
        raise _not_a_cursor()
    return tuple(found)


def _not_a_cursor() -> Invalid:
    return Invalid("'after' is not what this address gave as 'next_after'.", param="after")


def usage_card(dimensions: Sequence[str], row: UsageRow) -> Mapping[str, Any]:
    card = msgspec.to_builtins(row)
    keys = dict(zip(dimensions, card.pop("keys"), strict=True))
    return {"object": "usage", **keys, **card}


def _event_card(event: UsageEvent) -> Mapping[str, Any]:
    return {"object": "usage_event", **msgspec.to_builtins(event)}


def _difference_card(difference: Difference) -> Mapping[str, Any]:
    return {"object": "difference", **msgspec.to_builtins(difference)}


def _json(content: Any) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")


def _csv(text: str, name: str, next_after: Sequence[str] | None) -> Response:
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    if next_after is not None:
        headers["x-inferhub-next-after"] = str(_opaque(next_after))
    return Response(text, media_type="text/csv; charset=utf-8", headers=headers)
