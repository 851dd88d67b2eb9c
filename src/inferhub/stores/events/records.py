"""Turns the ledger's records into messages. Pure; `docs/explanation/event-stream.md` describes the payloads.

A message holds no prompt, no answer and no secret: the records have none.
"""

from __future__ import annotations

from typing import Any

import msgspec

from inferhub.core.usage import Begin, UsageEvent
from inferhub.stores.events.base import Event
from inferhub.stores.usage.rows import COLUMNS, MAX_COUNT, clip, plain, to_row

SCHEMA = 1
"""Grows when a field changes its meaning or goes. A new field is no new schema."""

_MONEY = ("cost_usd", "price_version")
# How a call went is for `inference.completed` alone.
_COURSE = (
    "request_id", "requested_model", "endpoint", "attempts", "is_stream", "cache",
    "latency_ms", "first_token_ms",
)  # fmt: skip


def to_events(record: Begin | UsageEvent) -> tuple[Event, ...]:
    """One for a call that begins, two for one that has ended."""
    if isinstance(record, Begin):
        return (begun(record),)
    return (completed(record), billed(record))


def begun(record: Begin) -> Event:
    payload = {
        "schema": SCHEMA,
        "id": clip(record.id),
        "request_id": clip(record.request_id),
        "at_ms": record.at_ms,
        "tenant_id": clip(record.tenant_id),
        "project_id": clip(record.project_id),
        "key_id": clip(record.key_id),
        "modality": clip(record.modality),
        "model": clip(record.model),
        "is_stream": record.is_stream,
        "input_tokens_estimated": min(max(record.input_tokens, 0), MAX_COUNT),
    }
    return _event("inference.requests", payload)


def completed(event: UsageEvent) -> Event:
    """What happened, without money: for those who watch the service."""
    fields = _fields(event)
    return _event("inference.completed", {name: fields[name] for name in fields if name not in _MONEY})


def billed(event: UsageEvent) -> Event:
    """What it costs, exactly: for those who write invoices."""
    fields = _fields(event)
    fields["cost_usd"] = format(plain(fields["cost_usd"]), "f")
    return _event("billing.events", {name: fields[name] for name in fields if name not in _COURSE})


def _fields(event: UsageEvent) -> dict[str, Any]:
    return {"schema": SCHEMA, **dict(zip(COLUMNS, to_row(event), strict=True))}


def _event(topic: Any, payload: dict[str, Any]) -> Event:
    return Event(
        topic=topic, key=payload["tenant_id"], id=payload["id"], payload=msgspec.json.encode(payload)
    )
