"""How long a hang-up of the client takes to reach the upstream, in each phase of a call.

The client and the scripted upstream read the same clock, `time.monotonic()`.
"""

from __future__ import annotations

import asyncio
import json
import time
from urllib.parse import urlsplit

from benchmarks.contenders.gateway import remote_model, start_serve
from benchmarks.measure import CannotMeasureError, Figure, Measure, Options, Outcome, at_most
from benchmarks.processes import Processes, Running
from benchmarks.stats import percentile
from inferhub.testing.upstream_process import Upstream, trace_of

_PATIENCE_S = 10.0
_PHASES = {
    "before the head": ("hdr_ms=60000", True),
    "before the first token": ("ttft_ms=60000", True),
    "within the stream": ("gap_ms=20,n=10000", True),
    "within an answer that is not streamed": ("ttft_ms=60000", False),
}


def run(options: Options) -> Outcome:
    count = int(options.scaled(100))
    return asyncio.run(_measure(count))


async def _measure(count: int) -> Outcome:
    async with Upstream() as upstream:
        with Processes() as processes:
            gateway = start_serve(processes, "serve", [remote_model(upstream.url)])
            found = {
                phase: [
                    await _cancel(gateway, upstream, f"{phase[:6]}{number}", said, is_stream=is_stream)
                    for number in range(count)
                ]
                for phase, (said, is_stream) in _PHASES.items()
            }
    everything = [ms for readings in found.values() for ms in readings]
    figures = (
        Figure("a hang-up reaches the upstream, p99", percentile(everything, 99), "ms", at_most(100)),
        *(Figure(f"p50 {phase}", percentile(readings, 50), "ms") for phase, readings in found.items()),
    )
    return Outcome(figures, {phase: sorted(readings) for phase, readings in found.items()})


async def _cancel(gateway: Running, upstream: Upstream, name: str, said: str, *, is_stream: bool) -> float:
    """Milliseconds from the hang-up to the moment when the upstream saw it."""
    parts = urlsplit(gateway.url)
    request_id = f"{name.replace(' ', '_')}_{time.monotonic_ns()}"
    body = {
        "model": "mock",
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "stream": is_stream,
        "user": f"script:{said}",
    }
    data = json.dumps(body).encode()
    head = {
        "host": parts.netloc,
        "content-type": "application/json",
        "content-length": str(len(data)),
        "traceparent": trace_of(request_id),
        **gateway.headers,
    }
    lines = "".join(f"{key}: {value}\r\n" for key, value in head.items())
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(f"POST /v1/chat/completions HTTP/1.1\r\n{lines}\r\n".encode() + data)
    if "n=" in said:
        await reader.readuntil(b"word2")
    else:
        await upstream.wait_for(request_id, within_s=_PATIENCE_S)
    begin_s = time.monotonic()
    writer.close()
    try:
        record = await upstream.wait_for(request_id, lambda r: r.abort_s is not None, _PATIENCE_S)
    except TimeoutError as error:
        raise CannotMeasureError("a hang-up never reached the upstream") from error
    assert record.abort_s is not None
    return (record.abort_s - begin_s) * 1000


MEASURE = Measure("cancel", "from a client's hang-up to the upstream", run, order=3)
