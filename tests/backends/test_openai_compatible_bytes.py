"""The pass-through lane on its own: events in, the same bytes out, and only the odd event mended."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferhub.backends.openai_compatible.lane import MAX_HELD_BYTES, SHAPES, Lane
from inferhub.core.call import Delta, Finished
from inferhub.core.errors import UpstreamFailed
from inferhub.core.usage import Usage
from inferhub.modalities.chat import ChatDelta
from inferhub.testing.calls import make_call
from inferhub.wire.sse import SseParser


def raw_of(items: list[Any]) -> bytes:
    assert all(item.raw is not None for item in items)
    return b"".join(item.raw for item in items)


# --- byte fidelity -------------------------------------------------------------------------------------

HEAD = b'{"id": "chatcmpl-1",  "object":"chat.completion.chunk","created":1.7e9,"model":"up/model","zz":{"n":1.10}'


def event(choices: bytes, rest: bytes = b"}") -> bytes:
    return HEAD + b',"choices":' + choices + rest


def content(text: str, escape: bool = False) -> bytes:
    said = msgspec.json.encode(text)
    if escape:
        said = b'"' + b"".join(b"\\u%04x" % unit for unit in _utf16(text)) + b'"'
    return event(b'[{"index":0, "delta":{"content":' + said + b'},"vendor":[1e1,null],"finish_reason":null}]')


def _utf16(text: str) -> list[int]:
    data = text.encode("utf-16-le")
    return [int.from_bytes(data[i : i + 2], "little") for i in range(0, len(data), 2)]


ROLE = event(b'[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]')
STOP = event(b'[{"index":0,"delta":{},"finish_reason":"stop"}]')
USAGE = event(b"[]", b',"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}')

# Surrogates are no text, and a carriage return ends a line of the framing.
_texts = st.lists(
    st.tuples(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), st.booleans()),
    max_size=6,
)


@given(_texts, st.booleans(), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.booleans(), st.data())
def test_the_bytes_of_every_event_survive_every_split_and_framing(
    texts: list[tuple[str, bool]], wants_usage: bool, newline: bytes, comments: bool, data: st.DataObject
) -> None:
    events = [ROLE, *(content(*text) for text in texts), STOP, USAGE]
    between = b": ping" + newline + newline if comments else b""
    stream = b"".join(between + b"data: " + e + newline + newline for e in [*events, b"[DONE]"])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    network = [stream[a:b] for a, b in itertools.pairwise([0, *cuts, len(stream)])]

    options = {"include_usage": wants_usage}
    lane = Lane(
        SHAPES["chat"],
        make_call("chat", stream=True, stream_options=options).request,
        is_raw=True,
        secrets=(),
    )
    parser = SseParser()
    items: list[Any] = []
    for piece in network:
        deltas = lane.feed(parser.feed(piece))
        # Only the last of a network piece lets the writer write.
        assert [d.more for d in deltas] == [True] * (len(deltas) - 1) + [False] * bool(deltas)
        items += deltas
    assert lane.failure is None
    items += lane.end()

    forwarded = [*events[:-1], *([USAGE] if wants_usage else []), b"[DONE]"]
    assert raw_of(items) == b"".join(b"data: " + e + b"\n\n" for e in forwarded)
    assert "".join(item.payload.content or "" for item in items[:-1]) == "".join(text for text, _ in texts)
    assert items[-1].usage == Usage(5, 2)
    # What says nothing comes with what does: the first bytes that go out hold content.
    assert all(item.payload != ChatDelta() for item in items[:-1])
    assert items[0].raw.startswith(b"data: " + ROLE)


# --- what is held, and what is left out ----------------------------------------------------------------


def fed(*events: bytes, **params: Any) -> tuple[list[Delta], Lane]:
    lane = Lane(SHAPES["chat"], make_call("chat", stream=True, **params).request, is_raw=True, secrets=())
    return lane.feed(list(events)), lane


def test_contract_009_usage_that_the_client_did_not_ask_for_is_counted_and_left_out() -> None:
    _, lane = fed(content("a"), STOP, USAGE, b"[DONE]")
    (end,) = lane.end()
    assert end == Finished(Usage(5, 2), raw=b"data: [DONE]\n\n")


@pytest.mark.parametrize("null", [b',"usage":null', b', "usage" : null', b',"x":1,"usage":null,"y":"usage"'])
def test_contract_009_a_null_for_usage_is_left_out_and_nothing_else(null: bytes) -> None:
    """Only where the client did not ask; a text may hold the same characters."""
    said = content(',"usage":null')[:-1]
    deltas, _ = fed(said + null + b"}")
    assert b'"usage":' not in raw_of(deltas).replace(b'\\"usage\\":', b"")
    written = msgspec.json.decode(raw_of(deltas).removeprefix(b"data: "))
    expected = msgspec.json.decode(said + null + b"}")
    del expected["usage"]
    assert written == expected
    deltas, _ = fed(said + null + b"}", stream_options={"include_usage": True})
    assert raw_of(deltas) == b"data: " + said + null + b"}\n\n"


def test_contract_009_usage_within_another_event_is_left_out() -> None:
    counted = STOP[:-1] + b',"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}'
    deltas, lane = fed(content("a"), counted, b"[DONE]")
    assert raw_of(deltas) == b"".join(b"data: " + e + b"\n\n" for e in (content("a"), _compact(STOP)))
    assert lane.end() == [Finished(Usage(5, 2), raw=b"data: [DONE]\n\n")]
    deltas, _ = fed(counted, stream_options={"include_usage": True})
    assert raw_of(deltas) == b"data: " + counted + b"\n\n"


def _compact(data: bytes) -> bytes:
    """Without the spaces between its members, which writing it anew costs."""
    return msgspec.json.encode(msgspec.json.decode(data, type=dict[str, msgspec.Raw]))


@pytest.mark.parametrize("tail", [b"}", b',"usage":null}'])
def test_usage_that_was_asked_for_and_not_told_is_written(tail: bytes) -> None:
    """As honest as the count of any other upstream that does not count: zeros, under the sender's id."""
    _, lane = fed(content("a"), STOP[:-1] + tail, b"[DONE]", stream_options={"include_usage": True})
    (end,) = lane.end()
    assert isinstance(end, Finished)
    assert end.usage.source == "unknown"
    told, done, rest = (end.raw or b"").split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    written = msgspec.json.decode(told.removeprefix(b"data: "))
    assert (written["id"], written["choices"], written["usage"]["total_tokens"]) == ("chatcmpl-1", [], 0)
    _, lane = fed(content("a"), STOP[:-1] + tail, b"[DONE]")
    assert lane.end() == [Finished(Usage(source="unknown"), raw=b"data: [DONE]\n\n")]


def test_contract_002_a_role_in_every_event_is_left_in_the_first_of_each_choice() -> None:
    """Official clients join the texts of a delta: the role would become `assistantassistant`."""
    said = b'{"index":%d,"delta":{"content":"a","role":"assistant"},"vendor":1.0}'
    kept = b'{"index":%d,"delta":{"content":"a"},"vendor":1.0}'
    stop = b'[{"delta":{"role":"assistant"},"finish_reason":"eos"}]'
    first, both = event(b"[%b]" % (said % 0)), event(b"[%b,%b]" % (said % 0, said % 1))
    deltas, lane = fed(first, both, first, event(stop), n=2)
    assert lane.failure is None
    events = raw_of(deltas).split(b"\n\n")[:-1]
    assert events[0] == b"data: " + first
    assert events[1] == b"data: " + _compact(event(b"[%b,%b]" % (kept % 0, said % 1)))
    assert events[2] == b"data: " + _compact(event(b"[%b]" % (kept % 0)))
    assert msgspec.json.decode(events[3].removeprefix(b"data: "))["choices"][0]["delta"] == {}


def test_a_mended_event_with_a_null_for_usage_keeps_it_and_tells_none() -> None:
    twice = event(b'[{"index":0,"delta":{},"finish_reason":"eos"}]', b',"usage":null}')
    deltas, _ = fed(content("a"), twice, stream_options={"include_usage": True})
    last = msgspec.json.decode(raw_of(deltas[-1:]).removeprefix(b"data: "))
    assert (last["usage"], last["choices"][0]["finish_reason"]) == (None, "stop")


def test_a_stream_without_its_mark_gets_one_if_it_was_finished() -> None:
    _, lane = fed(content("a"), STOP)
    assert raw_of(lane.end()) == b"data: [DONE]\n\n"
    _, lane = fed(content("a"))
    with pytest.raises(UpstreamFailed):
        lane.end()


def test_content_and_finish_in_one_event_are_two_deltas_and_one_event() -> None:
    both = event(b'[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]')
    deltas, _ = fed(both)
    assert [d.payload for d in deltas] == [ChatDelta(content="a"), ChatDelta(finish_reason="stop")]
    assert [d.raw for d in deltas] == [b"data: " + both + b"\n\n", b""]


def test_events_without_content_are_not_collected_for_ever() -> None:
    filler = event(b'[{"index":0,"delta":{"audio":"' + b"x" * 1000 + b'"}}]')
    count = MAX_HELD_BYTES // 1000 + 5
    deltas, lane = fed(*[filler] * count, content("a"), STOP)
    assert lane.failure is None
    assert [d.payload for d in deltas] == [
        ChatDelta(),
        ChatDelta(content="a"),
        ChatDelta(finish_reason="stop"),
    ]
    assert raw_of(deltas).count(b"data: ") == count + 2


def test_what_came_before_a_broken_event_is_delivered() -> None:
    deltas, lane = fed(content("a"), b"<html>", content("b"))
    assert [d.payload.content for d in deltas] == ["a"]
    assert type(lane.failure) is UpstreamFailed


# --- mended --------------------------------------------------------------------------------------------


def test_a_missing_finish_of_called_tools_is_written_where_the_upstream_says_it_is_done() -> None:
    call = b'[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"x","type":"function","function":{"name":"f","arguments":"%b"}}]}}]'
    _, lane = fed(event(call % b'{\\"a\\":1}'), b"[DONE]")
    items = lane.end()
    assert items[0].payload == ChatDelta(finish_reason="tool_calls")  # type: ignore[union-attr]
    written = msgspec.json.decode(items[0].raw.split(b"\n\n")[0].removeprefix(b"data: "))  # type: ignore[union-attr]
    assert (written["id"], written["model"]) == ("chatcmpl-1", "up/model")
    assert written["choices"] == [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]
    # Cut off within its arguments, it is broken all the same.
    _, lane = fed(event(call % b'{\\"a\\":'), b"[DONE]")
    with pytest.raises(UpstreamFailed):
        lane.end()


def test_contract_008_totals_that_do_not_add_up_are_mended_in_place() -> None:
    odd = event(
        b"[]",
        b',"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":17,"x":1,"completion_tokens_details":{"reasoning_tokens":10}}}',
    )
    _, lane = fed(content("a"), STOP, odd, b"[DONE]", stream_options={"include_usage": True})
    (end,) = lane.end()
    assert isinstance(end, Finished)
    assert end.usage == Usage(5, 12, reasoning_tokens=10)
    usage = msgspec.json.decode((end.raw or b"").split(b"\n\n")[0].removeprefix(b"data: "))["usage"]
    assert (usage["completion_tokens"], usage["total_tokens"], usage["x"]) == (12, 17, 1)
