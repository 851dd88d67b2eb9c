"""The script a request carries to the scripted upstream, and the bytes of HTTP it is answered with.

Pure functions. What is said inside is the business of `testing.upstream_dialects`; when it goes out, and
how it goes wrong, of `testing.upstream_player`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from email.utils import formatdate
from functools import cache
from time import time
from typing import Any

import msgspec

PROMPT_TOKENS = 7
"""Reported for every prompt and every embedded input, so that tests can name the number."""

CREATED = 1_700_000_000
"""When every answer was made."""

SCRIPT_MARK = "script:"
_CONVERSATION = (
    *("system", "instructions", "systemInstruction", "system_instruction"),
    *("messages", "contents", "input", "prompt", "query", "instances"),
)
"""Where dialects have what was said to the model."""
_BOM = "\ufeff".encode()


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
    bad_tools: str = ""
    """How the tool deltas of a stream are wrong: a key of `upstream_bad_tools.BAD_TOOLS`."""
    think: int = 0
    """Pieces of thought before the answer."""
    finish: str = ""
    """Why the answer ends, in OpenAI's words, instead of `stop` or `tool_calls`."""
    fail_at: int | None = None
    """Strike when this many pieces went out; default: before anything."""
    times: int = 0
    """Misbehave (`mode`) only the first so many times that a request is seen; 0: always."""
    mode: str = ""
    """A fault, see `testing.upstream_player`; or an HTTP status."""
    split: int = 0
    """Write bodies and event streams in pieces of this many bytes."""
    drip_ms: float = 0
    """Wait between those pieces."""
    odd: bool = False
    """Legal but unusual framing: BOM, CRLF, comments, `event:` and `id:` lines, no space after `data:`."""
    retry_after_s: str = ""
    retry_after_ms: str = ""
    retry_date_s: int = 0
    """Send `retry-after` as an HTTP date this far ahead."""
    code: str = ""
    """The error's `code`, or what the dialect has for one."""
    param: str = ""
    """The error's `param`."""
    leak: bool = False
    """Put the request's key and control characters into the error's message."""
    unasked: bool = False
    """Report usage in streams that did not ask for it."""
    cached: int = 3
    """Tokens of the prompt that are reported as read from a cache."""
    reasoning: int = 0
    """Of the answer's tokens, how many are reported as thought."""
    dim: int = 8
    """Length of embedding vectors."""


def read_script(header: str, said: str | None) -> Script | None:
    """The header wins over what the body says; None when neither has one. Raises ValidationError."""
    text = header or (said[len(SCRIPT_MARK) :] if said and said.startswith(SCRIPT_MARK) else "")
    if not text:
        return None
    pairs = (pair.partition("=") for pair in text.split(",") if pair)
    # A trailing `;…` only serves to tell two requests with the same script apart.
    return msgspec.convert({key.strip(): _value(value) for key, _, value in pairs}, Script, strict=False)


def _value(text: str) -> str:
    return text.partition(";")[0].strip()


def named(request: Mapping[str, Any]) -> str | None:
    """What the body calls its user: the name in the log and, when it begins with `script:`, the script.

    Dialects without such a field are scripted by a line of the conversation.
    """
    metadata = request.get("metadata")
    candidates = [
        request.get("user"),
        request.get("safety_identifier"),
        metadata.get("user_id") if isinstance(metadata, dict) else None,
    ]
    known = [name for name in candidates if isinstance(name, str)]
    scripts = (name for name in known if name.startswith(SCRIPT_MARK))
    return next(scripts, None) or _scripted_line(request) or next(iter(known), None)


def _scripted_line(request: Mapping[str, Any]) -> str | None:
    for place in _CONVERSATION:
        for text in _texts(request.get(place)):
            if text.startswith(SCRIPT_MARK):
                return text.partition("\n")[0]
    return None


def _texts(value: Any) -> Iterator[str]:
    """Every string somewhere inside."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)


def pieces(script: Script, said: str) -> list[str]:
    """What the answer consists of; `said` is the last thing the user said."""
    return list(said) if script.echo else [f"word{number} " for number in range(script.n)]


def thoughts(script: Script) -> list[str]:
    return [f"thought{number} " for number in range(script.think)]


def tool_calls(script: Script) -> list[tuple[str, str, dict[str, Any]]]:
    """(id, name, arguments) of each tool the answer calls."""
    return [(f"call_{number}", f"tool{number}", {"x": number}) for number in range(script.tools)]


# --- bytes on the wire ------------------------------------------------------------------------


def stream_head(kind: str = "text/event-stream; charset=utf-8") -> bytes:
    return (
        f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n"
        "cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
    ).encode()


STREAM_HEAD = stream_head()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def frame(payload: bytes, name: str, script: Script, is_first: bool) -> bytes:
    """One event as it goes over the wire."""
    if not script.odd:
        line = b"event: %b\n" % name.encode() if name else b""
        return line + b"data: " + payload + b"\n\n"
    start = _BOM if is_first else b""
    line = b"event: %b\r\n" % (name or "message").encode()
    return start + b": note\r\n" + line + b"id: 1\r\nretry: 10\r\ndata:" + payload + b"\r\n\r\n"


def parse_head(head: bytes) -> tuple[str, str, str, dict[str, str]]:
    """(method, path, query, headers)."""
    lines = head.decode("latin-1").split("\r\n")
    method, _, rest = lines[0].partition(" ")
    headers = {}
    for line in lines[1:]:
        key, _, value = line.partition(":")
        headers[key.lower()] = value.strip()
    path, _, query = rest.partition(" ")[0].partition("?")
    return method, path, query, headers


def response(status: int, body: bytes, kind: str = "application/json", headers: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status} Scripted\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode() + body


def refusal(status: int, message: str) -> bytes:
    """The upstream's own refusal, of what no dialect of it could answer."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return response(status, msgspec.json.encode({"error": error}))


def problem_headers(script: Script) -> str:
    """The headers that belong to the error a script asks for."""
    headers = ""
    if script.retry_after_s:
        headers += f"retry-after: {script.retry_after_s}\r\n"
    if script.retry_after_ms:
        headers += f"retry-after-ms: {script.retry_after_ms}\r\n"
    if script.retry_date_s:
        headers += f"retry-after: {formatdate(time() + script.retry_date_s, usegmt=True)}\r\n"
    if script.mode.startswith("3"):
        headers += "location: /v1/models\r\n"
    return headers


def problem_message(script: Script, request_headers: Mapping[str, str]) -> str:
    message = "The scripted upstream says no."
    if script.leak:
        keys = ("authorization", "x-api-key", "x-goog-api-key", "api-key")
        key = next((request_headers[name] for name in keys if name in request_headers), None)
        message += f" Key: {key}\r\n\x1b[31mred\x00 at 0x7f3a9c0012d0"
    return message


@cache
def bomb() -> bytes:
    """64 MiB of spaces in about 64 KiB of gzip."""
    packer = zlib.compressobj(wbits=31)
    mebibyte = b" " * (1 << 20)
    packed = b"".join(packer.compress(mebibyte) for _ in range(64)) + packer.flush()
    return response(200, packed, headers="content-encoding: gzip\r\n")
