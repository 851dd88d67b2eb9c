"""The SSE parser, by example and by property: whatever the events and the cuts, the data comes out."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferhub.core.errors import UpstreamFailed
from inferhub.wire.sse import SseParser


def feed_all(*pieces: bytes, max_event_bytes: int = 1024) -> list[bytes]:
    parser = SseParser(max_event_bytes)
    return [event for piece in pieces for event in parser.feed(piece)]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        pytest.param(b"data: a\n\n", [b"a"], id="plain"),
        pytest.param(b"data: a\n\ndata: b\n\n", [b"a", b"b"], id="two in one packet"),
        pytest.param(b"data:a\n\n", [b"a"], id="no space"),
        pytest.param(b"data:  a\n\n", [b" a"], id="only one space is framing"),
        pytest.param(b"data: a\r\n\r\n", [b"a"], id="CRLF"),
        pytest.param(b"data: a\r\rdata: b\r\r", [b"a", b"b"], id="CR"),
        pytest.param(b"data: a\r\n\ndata: b\n\r\n", [b"a", b"b"], id="mixed line ends"),
        pytest.param(b"data: a\ndata: b\n\n", [b"a\nb"], id="many lines"),
        pytest.param(b"data: a\ndata:\ndata\ndata: b\n\n", [b"a\n\n\nb"], id="empty data lines"),
        pytest.param(b"data:\n\n", [b""], id="empty data is an event"),
        pytest.param(b": ping\n\n: ping\n\ndata: a\n\n", [b"a"], id="comments between events"),
        pytest.param(b": x\ndata: a\n: y\n\n", [b"a"], id="comments inside an event"),
        pytest.param(b"event: message\nid: 7\nretry: 10\ndata: a\n\n", [b"a"], id="other fields"),
        pytest.param(b"event: ping\n\n", [], id="no data, no event"),
        pytest.param(b"dataset: x\ndatum\n\n", [], id="names that start alike"),
        pytest.param(b"\n\n\ndata: a\n\n\n\n", [b"a"], id="extra blank lines"),
        pytest.param(b"\xef\xbb\xbfdata: a\n\n", [b"a"], id="BOM"),
        pytest.param(b"data: \xef\xbb\xbfa\n\n", [b"\xef\xbb\xbfa"], id="BOM inside is data"),
        pytest.param(b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [b"a"], id="BOM later is a strange field"),
        pytest.param(b'data: {"a": "b: c"}\n\n', [b'{"a": "b: c"}'], id="colons in data"),
        pytest.param(b"data: a\n\ndata: cut off\n", [b"a"], id="an unfinished event is dropped"),
        pytest.param("data: 👩‍🚀é\n\n".encode(), ["👩‍🚀é".encode()], id="emoji"),
    ],
)
def test_contract_011_every_legal_framing_split_at_every_byte(stream: bytes, events: list[bytes]) -> None:
    assert feed_all(stream) == events
    assert feed_all(*(stream[i : i + 1] for i in range(len(stream)))) == events
    for cut in range(len(stream) + 1):
        assert feed_all(stream[:cut], stream[cut:]) == events
        assert feed_all(stream[:cut], b"", stream[cut:]) == events


_data = st.text(max_size=40).map(
    # A carriage return cannot be carried inside a line, in any encoding of SSE.
    lambda text: text.replace("\r", "")
)
_noise = st.sampled_from([b": ping", b"event: message", b"id: 1", b"retry: 5", b"x"])


@st.composite
def _streams(draw: st.DrawFn) -> tuple[list[bytes], list[bytes]]:
    """(expected data of each event, the stream's bytes in pieces)."""
    end = draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    prefix = draw(st.sampled_from([b"data: ", b"data:"]))
    expected, stream = [], draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    for text in draw(st.lists(_data, max_size=6)):
        payload = text.encode()
        if prefix == b"data:" and any(line.startswith(b" ") for line in payload.split(b"\n")):
            continue
        lines = [prefix + line for line in payload.split(b"\n")]
        lines[draw(st.integers(0, len(lines))) : 0] = draw(st.lists(_noise, max_size=2))
        stream += end.join(lines) + end + end
        expected.append(payload)
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    bounds = [0, *cuts, len(stream)]
    return expected, [stream[a:b] for a, b in itertools.pairwise(bounds)]


@given(_streams())
def test_contract_010_any_event_any_split_round_trips(case: tuple[list[bytes], list[bytes]]) -> None:
    expected, pieces = case
    assert feed_all(*pieces, max_event_bytes=100_000) == expected


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_arbitrary_bytes_never_break_the_parser_and_cuts_never_matter(pieces: list[bytes]) -> None:
    assert feed_all(*pieces, max_event_bytes=100_000) == feed_all(b"".join(pieces), max_event_bytes=100_000)


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([b"data: " + b"x" * 200 + b"\n\n"], id="whole event in one packet"),
        pytest.param([b"data: "] + [b"x" * 10] * 30, id="a line that never ends"),
        pytest.param([b"data: xxxxxxxxx\n"] * 20, id="an event that never ends"),
        pytest.param([b"data:\n"] * 200, id="nothing but empty lines of data"),
        pytest.param([b": " + b"x" * 200 + b"\ndata: a\n\n"], id="a huge comment"),
    ],
)
def test_a_line_or_event_past_the_bound_is_refused(pieces: list[bytes]) -> None:
    with pytest.raises(UpstreamFailed, match="more than 100 bytes"):
        feed_all(*pieces, max_event_bytes=100)


def test_many_events_may_together_pass_the_bound() -> None:
    assert len(feed_all(*[b"data: 0123456789\n\n"] * 100, max_event_bytes=50)) == 100
    assert len(feed_all(b"data: 0123456789\n\n" * 100, max_event_bytes=50)) == 100
