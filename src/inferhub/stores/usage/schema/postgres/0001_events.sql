-- One row per call. Texts sort by code point (COLLATE "C"), as in the other stores: pages follow that order.
-- The key is the id alone, not (at_ms, id) as declarative partitions would need: that an id is taken once is
-- worth more than dropping months; old rows are deleted by usage_events_by_time.
CREATE TABLE usage_events (
    id               text COLLATE "C" PRIMARY KEY,
    request_id       text COLLATE "C" NOT NULL,
    at_ms            bigint NOT NULL,
    tenant_id        text COLLATE "C" NOT NULL,
    project_id       text COLLATE "C" NOT NULL,
    key_id           text COLLATE "C" NOT NULL,
    modality         text COLLATE "C" NOT NULL,
    model            text COLLATE "C" NOT NULL,
    requested_model  text COLLATE "C" NOT NULL,
    endpoint         text COLLATE "C" NOT NULL,
    status           text COLLATE "C" NOT NULL,
    attempts         bigint NOT NULL,
    is_stream        boolean NOT NULL,
    cache            text COLLATE "C" NOT NULL,
    source           text COLLATE "C" NOT NULL,
    input_tokens     bigint NOT NULL,
    cached_tokens    bigint NOT NULL,
    output_tokens    bigint NOT NULL,
    reasoning_tokens bigint NOT NULL,
    total_tokens     bigint NOT NULL,
    audio_ms         bigint NOT NULL,
    characters       bigint NOT NULL,
    images           bigint NOT NULL,
    pixels           bigint NOT NULL,
    latency_ms       double precision NOT NULL,
    first_token_ms   double precision,
    cost_usd         numeric(38, 18) NOT NULL,
    price_version    text COLLATE "C" NOT NULL
);

-- The bill of a tenant, the bill of a key, and the events of everybody page by page.
CREATE INDEX usage_events_by_tenant ON usage_events (tenant_id, at_ms, id);
CREATE INDEX usage_events_by_key ON usage_events (key_id, at_ms, id);
CREATE INDEX usage_events_by_time ON usage_events (at_ms, id);
