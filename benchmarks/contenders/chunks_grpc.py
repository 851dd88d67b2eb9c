"""A worker that answers with as many chunks as it is asked for, as fast as they are taken, and its caller.

Both ends are the production transport, codec and coalescing; behind them is nothing. `--raw` sends the same
chunks one a message over bare grpc.aio instead. `--ask` prints chunks, seconds and its own CPU time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from benchmarks.processes import Processes, Running, module, run_json
from inferhub.core.call import Call, Chunk, Delta, Emit, Finished
from inferhub.core.errors import Unsupported
from inferhub.core.models import ModelSpec, ModelStatus
from inferhub.core.serving import WorkerStatus
from inferhub.core.usage import Usage
from inferhub.modalities import modalities
from inferhub.modalities.chat import ChatDelta
from inferhub.testing.calls import make_call
from inferhub.transport.codec import Codec
from inferhub.transport.grpc import GrpcTransport
from inferhub.transport.grpc_server import serve

STREAMS = 8
_MODULE = "benchmarks.contenders.chunks_grpc"
_DELTA = Delta(ChatDelta(content=" word"))
_METHOD = "bench.Chunks/Count"
_WARM_UP = 500


def start_source(processes: Processes, *, is_raw: bool) -> Running:
    name = "raw-chunks" if is_raw else "chunks"
    return processes.start(name, module(_MODULE, "--serve", *(["--raw"] if is_raw else [])))


def ask_source(source: Running, chunks: int, *, is_raw: bool) -> dict[str, float]:
    """`STREAMS` streams at once, so many chunks in each."""
    arguments = ["--ask", source.url, "--chunks", str(chunks), *(["--raw"] if is_raw else [])]
    found: dict[str, float] = run_json("the caller", module(_MODULE, *arguments))
    return found


class _Source:
    """A `Transport` as the gRPC server has it behind itself."""

    async def infer(self, call: Call, emit: Emit) -> None:
        for _ in range(call.request.max_tokens):
            await emit(_DELTA)
        await emit(Finished(Usage(1, call.request.max_tokens)))

    async def load(self, spec: ModelSpec) -> ModelStatus:
        raise Unsupported("This worker has one model.")

    async def unload(self, name: str) -> None:
        pass

    async def status(self) -> WorkerStatus:
        return WorkerStatus("chunks", ())

    async def drain(self, grace_s: float) -> None:
        pass

    async def close(self) -> None:
        pass


async def _serve() -> None:
    server = await serve(_Source(), "127.0.0.1:0", Codec(modalities()))
    print(json.dumps({"url": f"127.0.0.1:{server.port}"}), flush=True)
    await server.wait()


async def _serve_raw() -> None:
    """What one chunk weighs in a message of its own."""
    message = Codec(modalities()).encode_chunk(_DELTA).SerializeToString()

    async def count(request: bytes, _context: Any) -> AsyncIterator[bytes]:
        for _ in range(int(request)):
            yield message

    server = grpc.aio.server()
    service, method = _METHOD.split("/")
    handler = grpc.method_handlers_generic_handler(
        service, {method: grpc.unary_stream_rpc_method_handler(count)}
    )
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"url": f"127.0.0.1:{port}"}), flush=True)
    await server.wait_for_termination()


async def _ask(target: str, chunks: int) -> dict[str, float]:
    transport = GrpcTransport(target, Codec(modalities()))

    async def one(chunks: int) -> int:
        seen = 0

        async def count(chunk: Chunk) -> None:
            nonlocal seen
            seen += isinstance(chunk, Delta)

        await transport.infer(make_call("chat", "m", stream=True, max_tokens=chunks), count)
        return seen

    try:
        return await _timed(one, chunks)
    finally:
        await transport.close()


async def _ask_raw(target: str, chunks: int) -> dict[str, float]:
    async with grpc.aio.insecure_channel(target) as channel:
        method: Any = channel.unary_stream(f"/{_METHOD}")

        async def one(chunks: int) -> int:
            seen = 0
            async for _ in method(str(chunks).encode()):
                seen += 1
            return seen

        return await _timed(one, chunks)


async def _timed(one: Callable[[int], Awaitable[int]], chunks: int) -> dict[str, float]:
    await one(_WARM_UP)
    begin, cpu_begin = time.perf_counter(), time.process_time()
    seen = await asyncio.gather(*(one(chunks) for _ in range(STREAMS)))
    elapsed_s, cpu_s = time.perf_counter() - begin, time.process_time() - cpu_begin
    return {"chunks": sum(seen), "elapsed_s": elapsed_s, "cpu_s": cpu_s}


def main() -> None:
    import uvloop

    parser = argparse.ArgumentParser()
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--ask", metavar="URL")
    parser.add_argument("--raw", action="store_true")
    parser.add_argument("--chunks", type=int, default=1000)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if options.serve:
            runner.run(_serve_raw() if options.raw else _serve())
        else:
            asked = _ask_raw if options.raw else _ask
            print(json.dumps(runner.run(asked(options.ask, options.chunks))))


if __name__ == "__main__":
    main()
