"""The bare gRPC echo: grpc.aio with nothing in it, as the yardstick for our worker hop.

`--serve` answers one unary and one server-streaming method with the bytes it was given; `--ask URL`
calls them one at a time and prints the times as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from typing import Any

# As InferHub sets it, before gRPC is imported: fork handlers make every call dearer.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc

from benchmarks.processes import Processes, Running, module, run_json

_SERVICE = "bench.Echo"
_PAYLOAD = b"x" * 300
"""About what one of our calls weighs."""
_MODULE = "benchmarks.contenders.echo_grpc"


def start_echo(processes: Processes) -> Running:
    return processes.start("grpc-echo", module(_MODULE, "--serve"))


def ask_echo(echo: Running, count: int, pause_s: float = 0.0) -> dict[str, list[float]]:
    """Seconds a call: `unary`, and `stream` of three messages. A pause before each lets both processes fall
    asleep, as they do between the calls of a client that waits for something else."""
    arguments = ["--ask", echo.url, "--count", str(count), "--pause-s", str(pause_s)]
    found: dict[str, list[float]] = run_json("the gRPC client", module(_MODULE, *arguments))
    return found


async def _unary(request: bytes, _context: Any) -> bytes:
    return request


async def _stream(request: bytes, _context: Any) -> AsyncIterator[bytes]:
    for _ in range(3):
        yield request


async def serve() -> None:
    server = grpc.aio.server()
    methods: dict[str, Any] = {
        "Unary": grpc.unary_unary_rpc_method_handler(_unary),
        "Stream": grpc.unary_stream_rpc_method_handler(_stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"url": f"127.0.0.1:{port}"}), flush=True)
    await server.wait_for_termination()


async def measure(target: str, count: int, pause_s: float) -> dict[str, list[float]]:
    async with grpc.aio.insecure_channel(target) as channel:
        unary: Any = channel.unary_unary(f"/{_SERVICE}/Unary")
        stream: Any = channel.unary_stream(f"/{_SERVICE}/Stream")
        times: dict[str, list[float]] = {"unary": [], "stream": []}
        for _ in range(count + 20):
            await asyncio.sleep(pause_s)
            begin = time.perf_counter()
            await unary(_PAYLOAD)
            times["unary"].append(time.perf_counter() - begin)
            await asyncio.sleep(pause_s)
            begin = time.perf_counter()
            async for _message in stream(_PAYLOAD):
                pass
            times["stream"].append(time.perf_counter() - begin)
    return {name: seconds[20:] for name, seconds in times.items()}


def main() -> None:
    import uvloop

    parser = argparse.ArgumentParser()
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--ask", metavar="URL")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--pause-s", type=float, default=0.0)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if options.serve:
            runner.run(serve())
        else:
            print(json.dumps(runner.run(measure(options.ask, options.count, options.pause_s))))


if __name__ == "__main__":
    main()
