-- One row per call. Rows that came twice are the same place in the order, and FINAL, or a merge, keeps the
-- one with the greatest version: the first that came. A month is a partition, so that
-- ALTER TABLE … DROP PARTITION or a TTL forgets it at once.
CREATE TABLE IF NOT EXISTS usage_events (
    id               String,
    request_id       String,
    at_ms            Int64 CODEC(Delta, ZSTD),
    tenant_id        String,
    project_id       String,
    key_id           String,
    modality         LowCardinality(String),
    model            LowCardinality(String),
    requested_model  LowCardinality(String),
    endpoint         LowCardinality(String),
    status           LowCardinality(String),
    attempts         Int64,
    is_stream        Bool,
    cache            LowCardinality(String),
    source           LowCardinality(String),
    input_tokens     Int64,
    cached_tokens    Int64,
    output_tokens    Int64,
    reasoning_tokens Int64,
    total_tokens     Int64,
    audio_ms         Int64,
    characters       Int64,
    images           Int64,
    pixels           Int64,
    latency_ms       Float64,
    first_token_ms   Nullable(Float64),
    cost_usd         Decimal(38, 18),
    price_version    LowCardinality(String),
    version          UInt64 DEFAULT 18446744073709551615 - toUInt64(toUnixTimestamp64Nano(now64(9))),
    INDEX by_id id TYPE bloom_filter GRANULARITY 4,
    INDEX by_key key_id TYPE bloom_filter GRANULARITY 4
) ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(fromUnixTimestamp64Milli(at_ms, 'UTC'))
ORDER BY (tenant_id, at_ms, id)
SETTINGS non_replicated_deduplication_window = 10000;

-- How calls went, ready added up per minute. No bill is made of these: a row that comes twice in spite of
-- everything is counted twice here.
CREATE TABLE IF NOT EXISTS usage_by_minute (
    tenant_id   String,
    model       LowCardinality(String),
    bucket_ms   Int64 CODEC(Delta, ZSTD),
    calls       SimpleAggregateFunction(sum, UInt64),
    errors      SimpleAggregateFunction(sum, UInt64),
    latency     AggregateFunction(quantilesTDigestIf(0.5, 0.95), Float64, UInt8),
    first_token AggregateFunction(quantilesTDigestIf(0.5, 0.95), Float64, UInt8)
) ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(fromUnixTimestamp64Milli(bucket_ms, 'UTC'))
ORDER BY (tenant_id, bucket_ms, model)
SETTINGS non_replicated_deduplication_window = 10000;

CREATE MATERIALIZED VIEW IF NOT EXISTS usage_into_minutes TO usage_by_minute AS
SELECT
    tenant_id,
    model,
    intDiv(at_ms, 60000) * 60000 AS bucket_ms,
    count() AS calls,
    countIf(status NOT IN ('ok', 'cancelled')) AS errors,
    quantilesTDigestIfState(0.5, 0.95)(latency_ms, toUInt8(status = 'ok')) AS latency,
    quantilesTDigestIfState(0.5, 0.95)(
        ifNull(first_token_ms, 0), toUInt8(status = 'ok' AND first_token_ms IS NOT NULL)
    ) AS first_token
FROM usage_events
GROUP BY tenant_id, model, bucket_ms;

-- And per hour.
CREATE TABLE IF NOT EXISTS usage_by_hour AS usage_by_minute
ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(fromUnixTimestamp64Milli(bucket_ms, 'UTC'))
ORDER BY (tenant_id, bucket_ms, model)
SETTINGS non_replicated_deduplication_window = 10000;

CREATE MATERIALIZED VIEW IF NOT EXISTS usage_into_hours TO usage_by_hour AS
SELECT
    tenant_id,
    model,
    intDiv(at_ms, 3600000) * 3600000 AS bucket_ms,
    count() AS calls,
    countIf(status NOT IN ('ok', 'cancelled')) AS errors,
    quantilesTDigestIfState(0.5, 0.95)(latency_ms, toUInt8(status = 'ok')) AS latency,
    quantilesTDigestIfState(0.5, 0.95)(
        ifNull(first_token_ms, 0), toUInt8(status = 'ok' AND first_token_ms IS NOT NULL)
    ) AS first_token
FROM usage_events
GROUP BY tenant_id, model, bucket_ms;
