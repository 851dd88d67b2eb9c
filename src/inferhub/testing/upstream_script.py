"""What the scripted upstream says: the script a request carries, and the answer made from it.

Pure functions over one request; `testing.upstream` puts their bytes on the wire and misbehaves there.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator
from email.utils import formatdate
from functools import cache
from time import time
from typing import Any

import msgspec

PROMPT_TOKENS = 7
"""Reported for every prompt and every embedded input, so that tests can name the number."""

_CREATED = 1_700_000_000
_SCRIPT = "script:"
_BOM = "\ufeff".encode()
_encode = msgspec.json.encode


class Script(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`ttft_ms=200,gap_ms=20,n=50,…`: every key is optional."""

    hdr_ms: float = 0
    """Wait before the response's head."""
    ttft_ms: float = 0
    """Wait between the head and the first piece (a whole answer: before its head)."""
    gap_ms: float = 0
    """Wait between pieces."""
    n: int = 8
    """Pieces, each counted as one token."""
    echo: bool = False
    """Answer with the last user message (or the prompt), one code point a piece, instead of `n` words."""
    tools: int = 0
    """Call this many tools instead of speaking."""
    fail_at: int | None = None
    """The piece before which `mode` strikes; default: before the first."""
    mode: str = ""
    """rst, hang, garbage, html, half_json, error, slowhdr, keepalive, noterm, usage_missing, endless,
    bad_chunk, gzip, bomb, floats, short, or an HTTP status. noterm without `fail_at` omits only [DONE]."""
    split: int = 0
    """Write the event stream in pieces of this many bytes."""
    odd: bool = False
    """Legal but unusual framing: BOM, CRLF, comments, `event:` and `id:` lines, no space after `data:`."""
    retry_after_s: str = ""
    retry_after_ms: str = ""
    retry_date_s: int = 0
    """Send `retry-after` as an HTTP date this far ahead."""
    code: str = ""
    """The error's `code`."""
    param: str = ""
    """The error's `param`."""
    leak: bool = False
    """Put the Authorization header and control characters into the error's message."""
    cached: int = 3
    """Tokens of the prompt that are reported as read from a cache."""
    reasoning: int = 0
    """Of the answer's tokens, how many are reported as thought."""
    dim: int = 8
    """Length of embedding vectors."""


class UpstreamRequest(msgspec.Struct):
    """The few fields of a request body that shape the answer."""

    model: str = "scripted"
    messages: list[dict[str, Any]] = []
    prompt: Any = ""
    input: Any = ""
    n: int | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    encoding_format: str | None = None
    user: str | None = None


def read_script(header: str, user: str | None) -> Script | None:
    """The header wins over the body's `user`; None when neither has a script. Raises ValidationError."""
    text = header or (user[len(_SCRIPT) :] if user and user.startswith(_SCRIPT) else "")
    if not text:
        return None
    pairs = (pair.partition("=") for pair in text.split(",") if pair)
    # A trailing `;…` only serves to tell two requests with the same script apart.
    return msgspec.convert({key.strip(): _value(value) for key, _, value in pairs}, Script, strict=False)


def _value(text: str) -> str:
    return text.partition(";")[0].strip()


def pieces(script: Script, request: UpstreamRequest) -> list[str]:
    if not script.echo:
        return [f"word{number} " for number in range(script.n)]
    said = next((m.get("content") for m in reversed(request.messages) if m.get("role") == "user"), None)
    return list(said if isinstance(said, str) else str(request.prompt))


def usage(tokens: int, script: Script) -> dict[str, Any]:
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": tokens,
        "total_tokens": PROMPT_TOKENS + tokens,
        "prompt_tokens_details": {"cached_tokens": script.cached},
        "completion_tokens_details": {"reasoning_tokens": script.reasoning},
    }


# --- whole answers -----------------------------------------------------------------------------


def chat_answer(script: Script, request: UpstreamRequest) -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": "".join(pieces(script, request))}
    if script.tools:
        message = {"role": "assistant", "content": None, "tool_calls": _tool_calls(script.tools)}
    finish = "tool_calls" if script.tools else "stop"
    choices = [{"index": i, "message": message, "finish_reason": finish} for i in range(request.n or 1)]
    return _answer("chat.completion", choices, script, request)


def completion_answer(script: Script, request: UpstreamRequest) -> bytes:
    text = "".join(pieces(script, request))
    choices = [{"index": i, "text": text, "finish_reason": "stop"} for i in range(_choices(request))]
    return _answer("text_completion", choices, script, request)


def _answer(kind: str, choices: list[dict[str, Any]], script: Script, request: UpstreamRequest) -> bytes:
    answer = {"id": "up-1", "object": kind, "created": _CREATED, "model": request.model, "choices": choices}
    if script.mode != "usage_missing":
        answer["usage"] = usage(len(pieces(script, request)) * len(choices), script)
    return _encode(answer)


def embedding_answer(script: Script, request: UpstreamRequest) -> bytes:
    """Component k of input i is (i + 1) / (k + 1), which base64 carries as little-endian float32."""
    is_one = isinstance(request.input, str) or (request.input and isinstance(request.input[0], int))
    count = 1 if is_one else len(request.input)
    is_base64 = request.encoding_format == "base64" and script.mode != "floats"
    data = []
    for index in range(count - (script.mode == "short")):
        vector = [(index + 1) / (k + 1) for k in range(script.dim)]
        packed = base64.b64encode(struct.pack(f"<{script.dim}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": packed if is_base64 else vector})
    tokens = {"prompt_tokens": PROMPT_TOKENS * count, "total_tokens": PROMPT_TOKENS * count}
    # Highest index first: nobody may rely on the order.
    return _encode({"object": "list", "model": request.model, "data": data[::-1], "usage": tokens})


# --- streams -----------------------------------------------------------------------------------


def chat_events(script: Script, request: UpstreamRequest) -> Iterator[bytes]:
    """Payloads of `data:` lines: the pieces first, then what ends the stream."""
    head = {"id": "up-1", "object": "chat.completion.chunk", "created": _CREATED, "model": request.model}
    indices = range(request.n or 1)
    deltas = _tool_deltas(script.tools) if script.tools else [{"content": p} for p in pieces(script, request)]
    for position, delta in enumerate(deltas):
        for index in indices:
            said = {"role": "assistant", **delta} if position == 0 else delta
            yield _encode({**head, "choices": [{"index": index, "delta": said, "finish_reason": None}]})
    for index in indices:
        finish = "tool_calls" if script.tools else "stop"
        yield _encode({**head, "choices": [{"index": index, "delta": {}, "finish_reason": finish}]})
    yield from _last_events(head, script, request, len(deltas) * len(indices))


def completion_events(script: Script, request: UpstreamRequest) -> Iterator[bytes]:
    head = {"id": "up-1", "object": "text_completion", "created": _CREATED, "model": request.model}
    said = pieces(script, request)
    indices = range(_choices(request))
    for piece in said:
        for index in indices:
            yield _encode({**head, "choices": [{"index": index, "text": piece, "finish_reason": None}]})
    for index in indices:
        yield _encode({**head, "choices": [{"index": index, "text": "", "finish_reason": "stop"}]})
    yield from _last_events(head, script, request, len(said) * len(indices))


def _last_events(
    head: dict[str, Any], script: Script, request: UpstreamRequest, tokens: int
) -> Iterator[bytes]:
    if (request.stream_options or {}).get("include_usage") and script.mode != "usage_missing":
        yield _encode({**head, "choices": [], "usage": usage(tokens, script)})
    if script.mode != "noterm":
        yield b"[DONE]"


def frame(payload: bytes, script: Script, is_first: bool) -> bytes:
    """One event as it goes over the wire."""
    if not script.odd:
        return b"data: " + payload + b"\n\n"
    start = _BOM if is_first else b""
    return start + b": note\r\nevent: message\r\nid: 1\r\nretry: 10\r\ndata:" + payload + b"\r\n\r\n"


def is_plain(request: UpstreamRequest) -> bool:
    """Whether the one answer that was made beforehand fits."""
    return not request.stream and _choices(request) == 1


def _choices(request: UpstreamRequest) -> int:
    prompt = request.prompt
    is_many = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
    return (len(prompt) if is_many else 1) * (request.n or 1)


def _tool_calls(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": f"tool{number}", "arguments": f'{{"x":{number}}}'},
        }
        for number in range(count)
    ]


def _tool_deltas(count: int) -> list[dict[str, Any]]:
    deltas: list[dict[str, Any]] = []
    for index, call in enumerate(_tool_calls(count)):
        whole = call["function"]
        opening = {"name": whole["name"], "arguments": ""}
        deltas.append({"tool_calls": [{"index": index, **call, "function": opening}]})
        deltas += [
            {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
            for piece in whole["arguments"]
        ]
    return deltas


# --- bytes on the wire ------------------------------------------------------------------------

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def parse_head(head: bytes) -> tuple[str, str, dict[str, str]]:
    lines = head.decode("latin-1").split("\r\n")
    method, _, rest = lines[0].partition(" ")
    headers = {}
    for line in lines[1:]:
        key, _, value = line.partition(":")
        headers[key.lower()] = value.strip()
    return method, rest.partition(" ")[0].partition("?")[0], headers


def response(status: int, body: bytes, kind: str = "application/json", headers: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status} Scripted\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode() + body


def envelope(message: str, kind: str, param: str | None, code: str | None) -> bytes:
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def problem(status: int, message: str) -> bytes:
    return response(status, envelope(message, "invalid_request_error", None, None))


def problem_of(script: Script, request_headers: dict[str, str]) -> bytes:
    """The error a script asks for, with the headers that belong to it."""
    headers = ""
    if script.retry_after_s:
        headers += f"retry-after: {script.retry_after_s}\r\n"
    if script.retry_after_ms:
        headers += f"retry-after-ms: {script.retry_after_ms}\r\n"
    if script.retry_date_s:
        headers += f"retry-after: {formatdate(time() + script.retry_date_s, usegmt=True)}\r\n"
    if script.mode.startswith("3"):
        headers += "location: /v1/models\r\n"
    message = "The scripted upstream says no."
    if script.leak:
        message += f" Key: {request_headers.get('authorization')}\r\n\x1b[31mred\x00 at 0x7f3a9c0012d0"
    body = envelope(message, "invalid_request_error", script.param or None, script.code or None)
    return response(int(script.mode), body, headers=headers)


@cache
def bomb() -> bytes:
    """64 MiB of spaces in about 64 KiB of gzip."""
    packer = zlib.compressobj(wbits=31)
    mebibyte = b" " * (1 << 20)
    packed = b"".join(packer.compress(mebibyte) for _ in range(64)) + packer.flush()
    return response(200, packed, headers="content-encoding: gzip\r\n")
