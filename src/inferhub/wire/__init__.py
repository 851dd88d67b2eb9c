"""Foreign wire formats, parsed and written in one place; used by gateway and backends alike."""
