"""Time and identifiers. Deadlines use the monotonic clock, records the wall clock."""

from __future__ import annotations

import secrets
import time


def new_id(prefix: str) -> str:
    """A random id such as `call_9f2c…`: 96 bits, safe in a header, a log line and a path."""
    return f"{prefix}_{secrets.token_hex(12)}"


def unix_s() -> int:
    """Whole seconds since the epoch, as OpenAI's `created` wants them."""
    return int(time.time())
