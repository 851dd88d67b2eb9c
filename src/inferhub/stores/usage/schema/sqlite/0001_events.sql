-- One row per call. A cost is whole nano-dollars plus billionths of one, because SQLite adds whole numbers
-- exactly and has no decimals: attodollars in one column would overflow at nine dollars.
CREATE TABLE usage_events (
    id               TEXT PRIMARY KEY NOT NULL,
    request_id       TEXT NOT NULL,
    at_ms            INTEGER NOT NULL,
    tenant_id        TEXT NOT NULL,
    project_id       TEXT NOT NULL,
    key_id           TEXT NOT NULL,
    modality         TEXT NOT NULL,
    model            TEXT NOT NULL,
    requested_model  TEXT NOT NULL,
    endpoint         TEXT NOT NULL,
    status           TEXT NOT NULL,
    attempts         INTEGER NOT NULL,
    is_stream        INTEGER NOT NULL,
    cache            TEXT NOT NULL,
    source           TEXT NOT NULL,
    input_tokens     INTEGER NOT NULL,
    cached_tokens    INTEGER NOT NULL,
    output_tokens    INTEGER NOT NULL,
    reasoning_tokens INTEGER NOT NULL,
    total_tokens     INTEGER NOT NULL,
    audio_ms         INTEGER NOT NULL,
    characters       INTEGER NOT NULL,
    images           INTEGER NOT NULL,
    pixels           INTEGER NOT NULL,
    latency_ms       REAL NOT NULL,
    first_token_ms   REAL,
    cost_nano        INTEGER NOT NULL,
    cost_atto        INTEGER NOT NULL,
    price_version    TEXT NOT NULL
) STRICT;

-- The bill of a tenant, the bill of a key, and the events of everybody page by page.
CREATE INDEX usage_events_by_tenant ON usage_events (tenant_id, at_ms, id);
CREATE INDEX usage_events_by_key ON usage_events (key_id, at_ms, id);
CREATE INDEX usage_events_by_time ON usage_events (at_ms, id);
