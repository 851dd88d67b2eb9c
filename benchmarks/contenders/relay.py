"""The bare relay: raw ASGI on uvicorn, uvloop and httptools, one upstream client, nothing else on.

It reads a body, posts it, and hands back what comes. `--client` chooses aiohttp or pyreqwest.
The measures compare the gateway with it; it is the least that Python can do in this place.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Any

import aiohttp
import pyreqwest.client
import uvicorn

from benchmarks.processes import Processes, Running, module

CLIENTS = ("aiohttp", "pyreqwest")

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Post = Callable[[str, bytes, Send], Awaitable[None]]

_TIMEOUT_S = 60.0
_JSON_HEADERS = {"content-type": "application/json"}


def start_relay(processes: Processes, client: str, upstream: str) -> Running:
    return processes.start(
        f"relay-{client}", module("benchmarks.contenders.relay", "--client", client, "--upstream", upstream)
    )


def application(post: Post, upstream: str) -> Callable[[Message, Receive, Send], Awaitable[None]]:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        pieces = []
        while True:
            message = await receive()
            pieces.append(message.get("body", b""))
            if not message.get("more_body"):
                break
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        await post(upstream + scope["path"], body, send)

    return app


def _head(status: int, content_type: str, length: int | None) -> Message:
    headers = [(b"content-type", content_type.encode())]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    return {"type": "http.response.start", "status": status, "headers": headers}


@asynccontextmanager
async def aiohttp_post() -> AsyncIterator[Post]:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:

        async def post(url: str, body: bytes, send: Send) -> None:
            async with session.post(url, data=body, headers=_JSON_HEADERS) as response:
                if response.content_type == "text/event-stream":
                    await send(_head(response.status, response.content_type, None))
                    async for piece in response.content.iter_any():
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                    answer = b""
                else:
                    answer = await response.read()
                    await send(_head(response.status, response.content_type, len(answer)))
                await send({"type": "http.response.body", "body": answer})

        yield post


@asynccontextmanager
async def pyreqwest_post() -> AsyncIterator[Post]:
    builder = pyreqwest.client.ClientBuilder().timeout(timedelta(seconds=_TIMEOUT_S))
    async with builder.build() as client:

        async def post(url: str, body: bytes, send: Send) -> None:
            request = client.post(url).headers(_JSON_HEADERS).body_bytes(body)
            # Streaming has to be chosen before the answer is known.
            if b'"stream":true' not in body:
                response = await request.build().send()
                answer = bytes(await response.bytes())
                content_type = response.get_header("content-type") or "application/json"
                await send(_head(response.status, content_type, len(answer)))
                await send({"type": "http.response.body", "body": answer})
                return
            # Its default buffers 64 KiB before it hands anything on.
            async with request.streamed_read_buffer_limit(0).build_streamed() as response:
                await send(_head(response.status, response.get_header("content-type") or "", None))
                reader = response.body_reader
                while (piece := await reader.read_chunk()) is not None:
                    await send({"type": "http.response.body", "body": bytes(piece), "more_body": True})
            await send({"type": "http.response.body"})

        yield post


_POSTS: dict[str, Callable[[], AbstractAsyncContextManager[Post]]] = {
    "aiohttp": aiohttp_post,
    "pyreqwest": pyreqwest_post,
}


async def serve(client: str, upstream: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    async with _POSTS[client]() as post:
        config = uvicorn.Config(
            application(post, upstream),
            loop="uvloop",
            http="httptools",
            lifespan="off",
            access_log=False,
            log_level="error",
            server_header=False,
            date_header=False,
        )
        print(json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}"}), flush=True)
        await uvicorn.Server(config).serve(sockets=[listener])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--client", choices=CLIENTS, required=True)
    parser.add_argument("--upstream", required=True)
    options = parser.parse_args()
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options.client, options.upstream))


if __name__ == "__main__":
    main()
