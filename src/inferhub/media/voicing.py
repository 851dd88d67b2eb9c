"""Mono s16le → sound as clients ask for it, with effects. Runs in the child; `pool` asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, Protocol

import av
import av.audio.stream
import av.subtitles.codeccontext
import av.subtitles.stream  # PyAV would import them when it meets a stream, and then no file can be opened
import av.video.codeccontext
import av.video.stream
from av.audio.frame import AudioFrame
from av.filter import Graph

from inferhub.media.limits import Effects
from inferhub.media.messages import EncodeAudio, Refused

SAMPLE_BYTES = 2
_PCM_RATE_HZ = 24_000
_SLOWEST, _FASTEST = 0.5, 2.0
"""Of one `atempo`; beyond it the filter skips samples, and two in a row sound better."""
_PEAK = 0.98
_BLOCK_S = 0.1
_CONTAINERS = {
    # name: (container, codec, sample format, bits a second)
    "mp3": ("mp3", "libmp3lame", "s16p", 64_000),
    "opus": ("ogg", "libopus", "s16", 32_000),
    "aac": ("adts", "aac", "fltp", 64_000),
    "flac": ("flac", "flac", "s16", None),
}
_RATES_HZ = {
    "mp3": (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000),
    "opus": (8_000, 12_000, 16_000, 24_000, 48_000),
    "aac": (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000),
    "pcm": (_PCM_RATE_HZ,),
}


class Source(Protocol):
    """The child's end of the line, as this file needs it."""

    def data(self) -> bytes | None: ...
    def send(self, content: bytes | memoryview) -> None: ...


def encode(task: EncodeAudio, line: Source) -> None:
    rate_hz = _rate_of(task.format, task.rate_hz)
    try:
        if task.format in _CONTAINERS:
            _write(
                task.format, rate_hz, _changed(line, task, rate_hz, _CONTAINERS[task.format][2]), line.send
            )
        else:
            for frame in _changed(line, task, rate_hz, "s16"):
                line.send(bytes(memoryview(frame.planes[0])[: frame.samples * SAMPLE_BYTES]))
    except av.FFmpegError as error:
        raise Refused("internal", "internal_error", "The sound could not be encoded.") from error


def _rate_of(format: str, rate_hz: int) -> int:  # noqa: A002
    """The nearest that the format has and that loses nothing; its highest where there is none."""
    rates = _RATES_HZ.get(format)
    if rates is None:
        return rate_hz
    return next((rate for rate in rates if rate >= rate_hz), rates[-1])


def _write(name: str, rate_hz: int, frames: Iterator[AudioFrame], send: Callable[[bytes], None]) -> None:
    container, codec, _, bits_s = _CONTAINERS[name]
    sink = _Sink(send)
    # Ogg pages of a fifth of a second: a player starts with the first.
    options = {"page_duration": "200000"} if container == "ogg" else {"flush_packets": "1"}
    if container == "mp3":
        # Both are written when the length is known, at a place that has left by then.
        options |= {"write_xing": "0", "id3v2_version": "0"}
    output = av.open(sink, "w", format=container, container_options=options, buffer_size=4096)
    stream: Any = output.add_stream(codec, rate=rate_hz)
    stream.layout = "mono"
    stream.format = _CONTAINERS[name][2]
    stream.codec_context.thread_count = 1
    if bits_s:
        stream.bit_rate = bits_s
    for frame in frames:
        for packet in stream.encode(frame):
            output.mux(packet)
        sink.flush()
    for packet in stream.encode(None):
        output.mux(packet)
    output.close()
    sink.flush()


class _Sink:
    """A file that is only ever written at its end."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._held = bytearray()

    def write(self, content: bytes) -> int:
        self._held += content
        return len(content)

    def flush(self) -> None:
        """One piece for all that a block of sound made."""
        if self._held:
            self._send(bytes(self._held))
            self._held.clear()


def _changed(line: Source, task: EncodeAudio, rate_hz: int, format: str) -> Iterator[AudioFrame]:  # noqa: A002
    """The sound with its effects, at the rate and in the form that its encoder takes."""
    graph = Graph()
    source = graph.add_abuffer(
        sample_rate=task.rate_hz, format="s16", layout="mono", time_base=Fraction(1, task.rate_hz)
    )
    last = source
    for name, arguments in (
        *_filters(task.effects, task.rate_hz),
        ("aresample", str(rate_hz)),
        ("aformat", f"sample_fmts={format}:sample_rates={rate_hz}:channel_layouts=mono"),
    ):
        step = graph.add(name, arguments)
        last.link_to(step)
        last = step
    last.link_to(graph.add("abuffersink"))
    graph.configure()
    pts = 0
    for frame in _blocks(line, task.rate_hz):
        graph.push(frame)
        for found in _pulled(graph):
            found.pts, found.time_base = pts, Fraction(1, rate_hz)
            pts += found.samples
            yield found
    graph.push(None)
    for found in _pulled(graph):
        found.pts, found.time_base = pts, Fraction(1, rate_hz)
        pts += found.samples
        yield found


def _filters(effects: Effects, rate_hz: int) -> Iterator[tuple[str, str]]:
    if effects.are_none:
        return
    yield "aformat", "sample_fmts=fltp"  # whole numbers would clip between the steps
    tempo = effects.speed
    if effects.pitch_semitones:
        ratio = 2 ** (effects.pitch_semitones / 12)
        # Played faster it is higher and shorter; stretched again it is only higher.
        yield "asetrate", str(round(rate_hz * ratio))
        yield "aresample", str(rate_hz)
        tempo /= ratio
    while tempo < _SLOWEST or tempo > _FASTEST:
        step = _SLOWEST if tempo < _SLOWEST else _FASTEST
        yield "atempo", str(step)
        tempo /= step
    if abs(tempo - 1) > 1e-6:
        yield "atempo", f"{tempo:.6f}"
    if effects.gain_db:
        yield "volume", f"{effects.gain_db}dB"
    if effects.gain_db > 0:
        yield "alimiter", f"limit={_PEAK}:level=false"


def _blocks(line: Source, rate_hz: int) -> Iterator[AudioFrame]:
    """Small ones, so that the first leaves early, whatever sizes come."""
    most = max(1, int(_BLOCK_S * rate_hz)) * SAMPLE_BYTES
    held = bytearray()
    pts = 0
    while (piece := line.data()) is not None:
        held += piece
        while len(held) >= SAMPLE_BYTES:
            size = min(len(held) - len(held) % SAMPLE_BYTES, most)
            frame = AudioFrame(format="s16", layout="mono", samples=size // SAMPLE_BYTES)
            memoryview(frame.planes[0])[:size] = held[:size]
            frame.sample_rate, frame.pts, frame.time_base = rate_hz, pts, Fraction(1, rate_hz)
            del held[:size]
            pts += frame.samples
            yield frame


def _pulled(graph: Graph) -> Iterator[AudioFrame]:
    while True:
        try:
            found = graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return
        assert isinstance(found, AudioFrame)  # noqa: S101
        yield found
