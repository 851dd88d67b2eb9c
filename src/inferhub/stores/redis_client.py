"""One client of Redis for stores that ask it in single questions: bounded, impatient, connected on first use.

`counters` has a pipe of its own, which its rate needs.
"""

from __future__ import annotations

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from inferhub.core.errors import SetupError


def open_redis(url: str, *, setting: str, timeout_s: float, max_connections: int) -> Redis:
    """For `redis://…` and `rediss://…`. Raises `SetupError` naming the setting if it cannot be read."""
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=max_connections,
            timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            socket_timeout=timeout_s,
            # Once, at once: an idle connection may have been closed by a server that was restarted.
            retry=Retry(NoBackoff(), 1),
            client_name="inferhub",
        )
    except (ValueError, TypeError) as error:
        # Not the driver's words: they may hold a password.
        raise SetupError(
            f"{setting} cannot be read; write redis://[USER:PASSWORD@]HOST:PORT/DATABASE, "
            "or rediss:// for TLS.",
            param=setting,
        ) from error
    return Redis.from_pool(pool)
