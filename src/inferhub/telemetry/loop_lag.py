"""How late the event loop runs: the one number that tells a blocked loop from a slow upstream."""

from __future__ import annotations

import asyncio
import logging

from inferhub.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)
_INTERVAL_S = 0.1


async def watch_loop_lag(metrics: Metrics, warn_s: float) -> None:
    """Sleep, see how much later it became, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _INTERVAL_S
        await asyncio.sleep(_INTERVAL_S)
        lag_s = max(0.0, loop.time() - due)
        metrics.loop_lag.set(lag_s)
        if lag_s > warn_s:
            _log.warning("the event loop was blocked for %.2f s", lag_s)
