"""The parts of the llama.cpp backend that need no engine: schemas, forced calls, file headers, turns."""

from __future__ import annotations

import asyncio
import json
import struct
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from inferhub.backends.llamacpp.gguf import read_header
from inferhub.backends.llamacpp.schemas import check_enforceable
from inferhub.backends.llamacpp.slots import Channel, Ended, Event, Slots
from inferhub.backends.llamacpp.tools import CallReader
from inferhub.core.errors import InternalError, Invalid, WeightsCorrupt
from inferhub.modalities.chat import ChatDelta

PATIENCE_S = 30.0


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():
            await asyncio.sleep(0.02)


# --- schemas -----------------------------------------------------------------------------------

UNENFORCEABLE = [
    ({"not": {"type": "string"}}, "'not'"),
    ({"type": "object", "properties": {"a": {"multipleOf": 3}}}, "schema.properties.a"),
    ({"type": "object", "patternProperties": {"^x": {}}}, "'patternProperties'"),
    ({"type": "array", "uniqueItems": True, "items": {}}, "'uniqueItems'"),
    ({"allOf": [{"type": "object"}]}, "'allOf'"),
    ({"type": "number", "minimum": 1}, "'minimum'"),
    ({"maximum": 1}, "'maximum'"),
    ({"anyOf": [{"type": "null"}], "properties": {}}, "beside 'anyOf'"),
    ({"type": "object", "required": ["b"], "properties": {"a": {}}}, "'b'"),
    ({"type": "object", "properties": {"a": False}}, "schema.properties.a"),
    ({"type": "array", "items": False}, "schema.items"),
    ({"type": "array", "prefixItems": [{"type": "null"}], "minItems": 2}, "'prefixItems'"),
    ({"type": "string", "minLength": 5000}, "5000"),
    ({"type": "string", "pattern": "abc"}, "must begin with"),
    ({"type": "string", "pattern": r"^\d+$"}, "beyond the engine"),
    ({"type": "string", "pattern": "^(?i)a$"}, "pattern"),
    ({"type": "string", "pattern": "^.$"}, "beyond the engine"),
    ({"type": "string", "pattern": "^[^a]$"}, "beyond the engine"),
    ({"type": "string", "pattern": "^[ -~]$"}, "beyond the engine"),
    ({"type": "string", "pattern": '^"$'}, "beyond the engine"),
    ({"type": "string", "pattern": r"^a\\$"}, "beyond the engine"),
    ({"type": "string", "pattern": "^a^b$"}, "beyond the engine"),
    ({"type": "string", "pattern": "^[z-a]$"}, "not valid"),
    ({"type": "string", "pattern": "^a$", "maxLength": 3}, "beside 'pattern'"),
    ({"type": "string", "format": "date", "maxLength": 3}, "beside 'pattern' or 'format'"),
    ({"type": "integer", "enum": ["a"]}, "'a'"),
    ({"type": "integer", "const": 1.5}, "1.5"),
]


@pytest.mark.parametrize(("schema", "said"), UNENFORCEABLE)
def test_what_cannot_be_enforced_is_refused(schema: dict[str, Any], said: str) -> None:
    with pytest.raises(Invalid) as caught:
        check_enforceable(schema, "response_format")
    assert caught.value.param == "response_format"
    assert said in caught.value.message


def test_schemas_as_clients_make_them_are_accepted() -> None:
    node = {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/N"}}}}
    for schema in (
        {},
        {
            "type": "object",
            "properties": {"a": {"enum": [1]}},
            "required": ["a"],
            "additionalProperties": False,
        },
        {"$ref": "#/$defs/N", "$defs": {"N": node}},
        {"title": "T", "type": ["string", "null"], "default": None, "format": "email", "maxLength": 3},
        {"type": "string", "pattern": r"^(a|b\.)[\]x-]+\$?$"},
        {"type": ["integer", "null"], "minimum": 1},
        {"const": {"a": [1, None]}},
    ):
        check_enforceable(schema, "response_format")


# --- forced tool calls -------------------------------------------------------------------------

SPOKEN = '{\n  "name": "f",\n  "arguments": {"a": {"b": "}"}, "c": [1, {}] }\n}'


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(SPOKEN)])
def test_a_forced_call_is_read_however_it_is_cut(size: int) -> None:
    reader = CallReader()
    pieces = [SPOKEN[i : i + size] for i in range(0, len(SPOKEN), size)]
    deltas = [delta for piece in pieces for delta in reader.read(piece)] + reader.end("stop")
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert calls[0].function is not None
    assert calls[0].function.name == "f"
    arguments = "".join(call.function.arguments or "" for call in calls if call.function)
    assert json.loads(arguments) == {"a": {"b": "}"}, "c": [1, {}]}
    assert deltas[-1] == ChatDelta(finish_reason="tool_calls")


# --- GGUF headers ------------------------------------------------------------------------------


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(*pairs: bytes, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(pairs)) + b"".join(pairs)


ARCHITECTURE = text("general.architecture") + struct.pack("<I", 8) + text("llama")
CONTEXT = text("llama.context_length") + struct.pack("<II", 4, 2048)
WIDTH = text("llama.embedding_length") + struct.pack("<II", 4, 640)
HEADS = text("llama.attention.head_count") + struct.pack("<II", 4, 8)
TOKENS = text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 3) + text("a") + text("bc") + text("")
SCORES = text("tokenizer.ggml.scores") + struct.pack("<IIQ", 9, 6, 3) + bytes(12)
TEMPLATE = text("tokenizer.chat_template") + struct.pack("<I", 8) + text("{{ messages }}")


def test_a_header_tells_what_loading_needs(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(ARCHITECTURE, CONTEXT, TOKENS, SCORES, WIDTH, HEADS, TEMPLATE))
    header = read_header(path)
    assert (header.context_tokens, header.vocabulary, header.key_length) == (2048, 3, 80)
    assert header.chat_template == "{{ messages }}"


WHOLE = gguf(ARCHITECTURE, TOKENS, TEMPLATE)
DAMAGED = [
    b"",
    b"GGUX" + WHOLE[4:],
    gguf(version=1),
    gguf(version=99),
    *(WHOLE[:size] for size in range(4, len(WHOLE), 17)),
    b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60),
    gguf(struct.pack("<Q", 2**60)),
    gguf(text("k") + struct.pack("<I", 77)),
    gguf(text("k") + struct.pack("<IIQ", 9, 8, 2**60)),
    gguf(text("k") + struct.pack("<IIQ", 9, 9, 1)),
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_header_is_an_error_with_a_remedy(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(WeightsCorrupt, match=r"m\.gguf is not a readable GGUF file.*models pull"):
        read_header(path)


# --- slots and channel -------------------------------------------------------------------------


async def test_a_slow_reader_stops_the_thread_and_closing_frees_it() -> None:
    channel = Channel()
    sent = 0
    results: list[bool] = []

    def speak() -> None:
        nonlocal sent
        while channel.put(Event(0, b"x")):
            sent += 1
        results.append(False)

    thread = threading.Thread(target=speak)
    thread.start()

    async def is_blocked() -> bool:
        before = sent
        await asyncio.sleep(0.05)
        return before == sent > 0

    await until(is_blocked)
    assert sent <= 256
    assert len(await channel.take()) <= 256
    await until(is_blocked)
    channel.close()
    await asyncio.to_thread(thread.join, PATIENCE_S)
    assert results == [False]


async def test_calls_take_turns() -> None:
    slots = Slots(1)
    order: list[str] = []
    first, second = Channel(), Channel()
    gate = threading.Event()

    def serve(name: str) -> Callable[[int, Any], None]:
        def run(index: int, on_event: Any) -> None:
            gate.wait(PATIENCE_S)
            order.append(f"{name}{index}")

        return run

    slots.start(first, range(4), serve("a"))
    slots.start(second, range(1), serve("b"))
    gate.set()
    ended: list[Any] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(ended) < 4:
            ended += await first.take()
    # The thread may have begun the second of `a` before `b` asked.
    assert order in (["a0", "b0", "a1", "a2", "a3"], ["a0", "a1", "b0", "a2", "a3"])
    assert all(isinstance(item, Ended) and item.error is None for item in ended)
    await slots.close()


async def test_a_bug_in_an_engine_thread_reaches_the_reader() -> None:
    slots, channel = Slots(1), Channel()

    def serve(index: int, on_event: Any) -> None:
        raise ZeroDivisionError

    slots.start(channel, [0], serve)
    async with asyncio.timeout(PATIENCE_S):
        (item,) = await channel.take()
    assert isinstance(item, Ended)
    assert isinstance(item.error, InternalError)
    await slots.close()
