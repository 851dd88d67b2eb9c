"""docs/reference/websockets.md has an example of every message and event, and each is what the code reads or writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import msgspec
import pytest
from openai.types.realtime.realtime_client_event import RealtimeClientEvent
from openai.types.realtime.realtime_server_event import RealtimeServerEvent
from pydantic import TypeAdapter

from inferhub.gateway.access import ACCESS
from inferhub.gateway.limits import GatewayLimits
from inferhub.gateway.sockets import asr_events, llm
from inferhub.gateway.sockets.asr import read_message
from inferhub.gateway.sockets.realtime import events as realtime_events

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "websockets.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```json (\w+) (\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = [(dialect, who, json.loads(text)) for dialect, who, text in BLOCK.findall(PAGE)]


def examples(dialect: str, who: str) -> list[dict[str, Any]]:
    return [found for d, w, found in EXAMPLES if (d, w) == (dialect, who)]


def tags(union: Any) -> set[str]:
    return {str(kind.__struct_config__.tag) for kind in get_args(union)}


def kinds(found: Iterable[dict[str, Any]]) -> set[str]:
    return {example["type"] for example in found}


@pytest.mark.parametrize(
    ("dialect", "union"),
    [("asr", asr_events.Event), ("llm", llm.Event), ("realtime", realtime_events.Event)],
)
def test_every_event_has_an_example_and_every_example_is_one(dialect: str, union: UnionType) -> None:
    shown = examples(dialect, "server")
    assert kinds(shown) == tags(union)
    for example in shown:
        event = msgspec.json.decode(json.dumps(example), type=union)
        # All of its fields are shown, and no other.
        assert json.loads(msgspec.json.encode(event)).keys() == example.keys(), example["type"]


def test_every_message_of_asr_has_an_example_that_is_read() -> None:
    shown = examples("asr", "client")
    assert kinds(shown) == tags(asr_events.Said)
    for example in shown:
        read_message(json.dumps(example), 64)
    assert set(shown[0]) - {"type"} == set(asr_events.Start.__struct_fields__)


def test_openais_client_understands_what_is_shown_of_its_api() -> None:
    for example in examples("realtime", "server"):
        TypeAdapter(RealtimeServerEvent).validate_python(example)
    for example in examples("realtime", "client"):
        TypeAdapter(RealtimeClientEvent).validate_python(example)


def test_the_addresses_and_settings_of_the_page_exist() -> None:
    sockets = {address.partition(" ")[2] for address in ACCESS if address.startswith("WS ")}
    assert set(re.findall(r"^\| \[`(/\S+)`\]", PAGE, re.MULTILINE)) == sockets
    of_sockets = {
        name for name in GatewayLimits.__dataclass_fields__ if "socket" in name or "session" in name
    }
    assert of_sockets <= set(re.findall(r"`([a-z_]+)`", PAGE))
