"""Watches every call from outside: one set of metrics and, for failures, one log line each.

Also the last catch: whatever is not an `InferHubError` becomes `InternalError` here.
"""

from __future__ import annotations

import logging
import math
import time

from inferhub.core.call import Call, Chunk, Delta, Emit, Handler, Started
from inferhub.core.errors import Forbidden, InferHubError, InternalError, ModelNotFound, RequestError
from inferhub.core.usage import Usage
from inferhub.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)

_SHED = frozenset({"gateway_full", "concurrency_limit", "shed_batch"})
"""Why this process itself refuses calls when there are too many."""
_SHED_EVERY_S = 1.0


class Trace:
    """The outermost ring."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._shed_told_s = -math.inf

    async def __call__(self, call: Call, emit: Emit, inner: Handler) -> None:
        begin = time.perf_counter()
        first_token_s: float | None = None
        model = "unknown"
        usage: Usage | None = None
        outcome = "cancelled"

        async def watch(chunk: Chunk) -> None:
            nonlocal first_token_s, model, usage
            if isinstance(chunk, Delta):
                if first_token_s is None:
                    first_token_s = time.perf_counter() - begin
            elif isinstance(chunk, Started):
                model = chunk.model
            else:
                usage = chunk.usage
            await emit(chunk)

        self._metrics.inflight.inc()
        try:
            await inner(call, watch)
            outcome = "ok"
        except InferHubError as error:
            outcome = error.code
            self._report(call, error)
            raise
        except Exception as error:
            outcome = InternalError.code
            _log.exception("call failed unexpectedly", extra={"request_id": call.id})
            raise InternalError from error
        finally:
            self._metrics.inflight.dec()
            elapsed_s = time.perf_counter() - begin
            self._metrics.series(call.modality, model).record(outcome, elapsed_s, first_token_s, usage)

    def _report(self, call: Call, error: InferHubError) -> None:
        if error.reason:
            self._metrics.shed.labels(error.reason, call.criticality.name.lower()).inc()
        if error.reason in _SHED:
            return self._report_shed(error.reason)
        level = logging.INFO if isinstance(error, RequestError) else logging.WARNING
        fields = {"request_id": call.id}
        # Before a name is found to be a model's, it is text of the client's, which is nobody's to keep.
        if not isinstance(error, ModelNotFound | Forbidden):
            fields["model"] = call.model[:128]
        _log.log(level, "call failed: %s", error.code, extra=fields)
        return None

    def _report_shed(self, reason: str) -> None:
        """Now and then: refusing must cost less than serving, and a line for each would not."""
        now_s = time.monotonic()
        if now_s - self._shed_told_s >= _SHED_EVERY_S:
            self._shed_told_s = now_s
            _log.warning("calls are refused for want of room: %s", reason)
