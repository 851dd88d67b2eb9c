"""Who used how much, for how much: `base` is the question; SQLite, PostgreSQL and ClickHouse answer it."""
