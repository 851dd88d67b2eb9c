"""The parts of a socket without a network: bounded words, growing text, what a session is set to, ephemeral keys."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

from inferhub.core.call import Frame
from inferhub.core.errors import InferHubError, Invalid, Overloaded, Unauthenticated, Unsupported
from inferhub.core.tenancy import Principal, Role
from inferhub.gateway.sockets.asr import read_message
from inferhub.gateway.sockets.asr_events import Start
from inferhub.gateway.sockets.incoming import Incoming
from inferhub.gateway.sockets.realtime.config import Session, changed
from inferhub.gateway.sockets.realtime.growing import Growing
from inferhub.gateway.sockets.realtime.secrets import ClientSecrets

PIECE = Frame(bytes(100_000))


# --- what is said while it is answered --------------------------------------------------------------


async def test_frames_come_out_in_order_and_then_it_ends() -> None:
    incoming = Incoming(1.0)
    frames = [Frame(b"a"), Frame(event="commit"), Frame(b"b")]
    for frame in frames:
        await incoming.put(frame)
    await incoming.end()
    await incoming.put(Frame(b"too late"))
    assert [frame async for frame in incoming] == frames


async def test_who_talks_waits_for_room() -> None:
    incoming = Incoming(30.0)
    put = 0

    async def talk() -> None:
        nonlocal put
        for _ in range(20):
            await incoming.put(PIECE)
            put += 1
        await incoming.end()

    talking = asyncio.ensure_future(talk())
    await asyncio.sleep(0.05)
    assert put == 5
    assert len([frame async for frame in incoming]) == 20
    await talking


async def test_one_frame_larger_than_the_room_passes_alone() -> None:
    incoming = Incoming(1.0)
    await incoming.put(Frame(bytes(2_000_000)))
    assert len((await anext(incoming)).data) == 2_000_000


async def test_a_listener_that_takes_nothing_is_overloaded() -> None:
    incoming = Incoming(0.05)
    for _ in range(5):
        await incoming.put(PIECE)
    with pytest.raises(Overloaded):
        await incoming.put(PIECE)


async def test_who_waits_for_room_is_let_go_at_the_end() -> None:
    incoming = Incoming(30.0)

    await incoming.put(Frame(bytes(600_000)))
    waiting = asyncio.ensure_future(incoming.put(PIECE))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    await incoming.end()
    await asyncio.wait_for(waiting, 5)


# --- text that only grows -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("partials", "final", "told"),
    [
        ([], "all at once", ["all at once"]),
        (["one"], "one two", ["", "one two"]),
        (["one two", "one two three"], "one two three four", ["", "one two", " three four"]),
        (["one two", "one too", "one too far"], "one too far", ["", "one", " too", " far"]),
        (["it was", "it was the", "that was"], "it was the end", ["", "it was", "", " the end"]),
        (["a b", "a b c"], "x y", ["", "a b", ""]),
        (["", ""], "", ["", "", ""]),
    ],
)
def test_what_two_partials_agree_on_is_told_once(
    partials: Sequence[str], final: str, told: Sequence[str]
) -> None:
    growing = Growing()
    assert [growing.partial(text) for text in partials] + [growing.final(final)] == told


# --- what a session is set to ------------------------------------------------------------------------


def test_a_session_makes_the_request_it_describes() -> None:
    session = changed(
        Session(id="s"),
        {
            "type": "transcription",
            "audio": {
                "input": {
                    "format": {"type": "audio/pcma"},
                    "transcription": {"model": "m", "language": "fr", "prompt": "p"},
                    "turn_detection": None,
                }
            },
        },
    )
    request = session.request()
    assert (request.model, request.language, request.prompt) == ("m", "fr", "p")
    assert request.live is not None
    assert (request.live.format, request.live.endpointing) == ("g711_alaw", None)
    again = changed(session, {"type": "transcription"})
    assert again.request() == request


def test_turn_detection_that_comes_back_has_its_defaults() -> None:
    off = changed(Session(id="s"), {"type": "transcription", "audio": {"input": {"turn_detection": None}}})
    on = changed(
        off, {"type": "transcription", "audio": {"input": {"turn_detection": {"type": "server_vad"}}}}
    )
    live = on.request().live
    assert live is not None
    assert live.endpointing is not None
    assert live.endpointing.silence_duration_ms == 500


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"type": 7},
        {"type": "transcription", "audio": 7},
        {"type": "transcription", "audio": {"input": {"format": {"type": "audio/pcm", "rate": 7}}}},
        {"type": "transcription", "audio": {"input": {"format": {"type": "audio/pcmu", "rate": 16000}}}},
        {"type": "transcription", "audio": {"input": {"turn_detection": {"threshold": "high"}}}},
        {"type": "transcription", "audio": {"input": {"transcription": {"prompt": "x" * 5000}}}},
        {"type": "transcription", "audio": {"input": {"format": None}}},
    ],
)
def test_what_cannot_be_set_is_refused(wanted: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        changed(Session(id="s"), wanted)


def test_another_kind_of_session_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="transcription"):
        changed(Session(id="s"), {"type": "realtime"})


# --- ephemeral keys ---------------------------------------------------------------------------------


PRINCIPAL = Principal(
    "ih_key", Role.ENTERPRISE, "tn_1", "pj_1", frozenset({"inference:*", "models:read"}), frozenset({"m"})
)


def test_an_ephemeral_key_says_whose_it_is_and_what_for() -> None:
    secrets = ClientSecrets(b"p" * 32)
    value = secrets.seal(PRINCIPAL, {"type": "transcription"}, int(time.time()) + 60)
    assert "ih_key" not in value
    principal, session = ClientSecrets(b"p" * 32).open(value)
    assert (principal.key_id, principal.tenant_id, principal.project_id) == ("ih_key", "tn_1", "pj_1")
    assert principal.models == {"m"}
    # It serves to infer, and not to read or change anything.
    assert principal.scopes == {"inference:*"}
    assert session == {"type": "transcription"}


@pytest.mark.parametrize(
    "change", ["expired", "other pepper", "cut", "turned", "empty", "not base64", "ünicode"]
)
def test_every_other_ephemeral_key_is_refused(change: str) -> None:
    secrets = ClientSecrets(b"p" * 32)
    lives_s = -1 if change == "expired" else 60
    value = secrets.seal(PRINCIPAL, {}, int(time.time()) + lives_s)
    value = {
        "cut": value[:-8],
        "turned": value[:-1] + ("A" if value[-1] != "A" else "Q"),
        "empty": "ek_",
        "not base64": "ek_%%%%",
        "ünicode": "ek_üüüü",
    }.get(change, value)
    opener = ClientSecrets(b"q" * 32) if change == "other pepper" else secrets
    with pytest.raises(Unauthenticated):
        opener.open(value)


# --- messages of /ws/asr -----------------------------------------------------------------------------


def test_a_start_without_wishes_is_16_khz_with_endpoints_and_partials() -> None:
    said = read_message('{"type": "start"}', 64)
    assert isinstance(said, Start)
    live = said.request().live
    assert live is not None
    assert (live.format, live.rate_hz, live.partials) == ("pcm16", 16_000, True)
    assert live.endpointing is not None


@pytest.mark.parametrize(
    ("text", "param"),
    [
        ('{"type": "start", "rate_hz": 1}', "rate_hz"),
        ('{"type": "start", "format": "mp3"}', "format"),
        ('{"type": "start", "endpointing": {"threshold": 2}}', "endpointing.threshold"),
        ('{"type": "start", "num_speakers": 0}', "num_speakers"),
        ('{"type": "stop"}', "type"),
        ("{}", "type"),
        ('{"type": "end", "type": "end"}', "type"),
        ("\ud800", None),
    ],
)
def test_a_wrong_message_names_what_is_wrong(text: str, param: str | None) -> None:
    with pytest.raises(InferHubError) as caught:
        read_message(text, 64)
    assert caught.value.param == param
