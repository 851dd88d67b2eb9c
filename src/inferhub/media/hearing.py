"""Sound → mono s16le. Runs in the child, the only place with PyAV; `pool` asks for it.

The demuxer is named, not guessed, may open nothing else, and only decoders of sound are there for it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import av
import av.audio.stream
import av.subtitles.codeccontext
import av.subtitles.stream  # PyAV would import them when it meets a stream, and then no file can be opened
import av.video.codeccontext
import av.video.stream
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.container import InputContainer
from av.stream import Discard

from inferhub.media.limits import MediaLimits
from inferhub.media.messages import DecodeAudio, DecodeLive, Refused, invalid_audio

SAMPLE_BYTES = 2
_PIECE_S = 1.0
_CODECS = (
    "aac,aac_fixed,alac,flac,mp1,mp1float,mp2,mp2float,mp3,mp3float,opus,libopus,vorbis,libvorbis,"
    "pcm_s8,pcm_u8,pcm_s16le,pcm_s16be,pcm_s24le,pcm_s24be,pcm_s32le,pcm_s32be,pcm_f32le,pcm_f32be,pcm_f64le,"
    "pcm_mulaw,pcm_alaw,adpcm_ms,adpcm_ima_wav,gsm_ms"
)
_LIVE_CONTAINERS = {"ogg": "ogg", "webm": "matroska"}
_RAW_CODECS = {"pcm": "pcm_s16le", "pcmu": "pcm_mulaw", "pcma": "pcm_alaw"}
_LEAST_RATE_HZ = 1_000
_LIVE_BUFFER_BYTES = 4096
_NO_SOUND = (
    "The file has no sound in it that can be decoded: it is corrupt, cut off, or not what its name says."
)


class Source(Protocol):
    """The child's end of the line, as this file needs it."""

    def data(self) -> bytes | None: ...
    def everything(self, most_bytes: int) -> bytes: ...
    def send(self, content: bytes | memoryview) -> None: ...


def do(task: DecodeAudio | DecodeLive, limits: MediaLimits, line: Source) -> None:
    try:
        if isinstance(task, DecodeAudio):
            _decode(task, limits, line)
        else:
            _decode_live(task, limits, line)
    except (Refused, MemoryError):
        raise
    except Exception as error:  # the border: decoders raise whatever they meet, and the file is the reason
        raise invalid_audio(_NO_SOUND) from error


def _decode(task: DecodeAudio, limits: MediaLimits, line: Source) -> None:
    data = line.everything(limits.input_bytes)
    container = _open(io.BytesIO(data), task.container, {})
    del data
    try:
        _hear(container, limits, task.rate_hz, _collected(line.send, task.rate_hz))
    finally:
        container.close()


def _decode_live(task: DecodeLive, limits: MediaLimits, line: Source) -> None:
    if task.format in _RAW_CODECS:
        return _decode_raw(task, limits, line)
    arriving = _Arriving(line)
    name = _LIVE_CONTAINERS.get(task.format) or ("ogg" if arriving.peek(4) == b"OggS" else "matroska")
    # As much as the headers need: whoever speaks is waiting for the first word.
    container = _open(arriving, name, {"probesize": "65536", "analyzeduration": "200000"})
    try:
        _hear(container, limits, task.rate_hz, line.send)
    finally:
        container.close()
    return None


class _Arriving:
    """What comes bit by bit, as a file that is read from its start to its end. Short reads are allowed."""

    def __init__(self, line: Source) -> None:
        self._line = line
        self._held = b""

    def peek(self, size: int) -> bytes:
        while len(self._held) < size and (piece := self._line.data()) is not None:
            self._held += piece
        return self._held[:size]

    def read(self, size: int) -> bytes:
        while not self._held:
            piece = self._line.data()
            if piece is None:
                return b""
            self._held = piece
        found, self._held = self._held[:size], self._held[size:]
        return found


def _open(source: Any, name: str, options: dict[str, str]) -> InputContainer:
    limits = {
        "codec_whitelist": _CODECS,
        "format_whitelist": name.partition(",")[0],
        "protocol_whitelist": "",
    }
    try:
        container: InputContainer = av.open(
            source,
            format=name,
            container_options=options | limits,
            buffer_size=_LIVE_BUFFER_BYTES if options else 32 * 1024,
            metadata_errors="ignore",
            io_open=_refuse,
        )
        return container
    except MemoryError:
        raise
    except (av.FFmpegError, ValueError, OSError) as error:
        raise invalid_audio(_NO_SOUND) from error


def _refuse(url: str, flags: int, options: dict[str, str]) -> Any:
    """A file that names another one."""
    raise invalid_audio("The file refers to other files, which are not opened.")


def _hear(container: InputContainer, limits: MediaLimits, rate_hz: int, put: Callable[[bytes], None]) -> None:
    if not container.streams.audio:
        raise invalid_audio("The file has no sound track.")
    stream = container.streams.audio[0]
    stream.codec_context.thread_count = 1
    for other in container.streams:
        if other is not stream:
            other.discard = Discard.all
    meter = _Meter(limits, rate_hz)
    for frame in _frames(container, stream):
        meter.check(frame)
        for piece in meter.resampled(frame):
            put(piece)
    for piece in meter.resampled(None):
        put(piece)
    put(b"")
    if meter.samples == 0:
        raise invalid_audio(_NO_SOUND)


def _frames(container: InputContainer, stream: Any) -> Iterator[AudioFrame]:
    """All that can be decoded. What is damaged is left out, unless that is most of it."""
    good = bad = 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except MemoryError:
            raise
        except (av.FFmpegError, ValueError, OSError) as error:
            if good:  # cut off: what came before stands
                break
            raise invalid_audio(_NO_SOUND) from error
        try:
            decoded = packet.decode()
        except MemoryError:
            raise
        except (av.FFmpegError, ValueError):
            bad += 1
            continue
        good += 1
        yield from decoded
    if bad > good:
        raise invalid_audio(_NO_SOUND)


def _decode_raw(task: DecodeLive, limits: MediaLimits, line: Source) -> None:
    context = av.CodecContext.create(_RAW_CODECS[task.format], "r")
    context.sample_rate, context.layout = task.input_rate_hz, "mono"  # type: ignore[attr-defined]
    width = SAMPLE_BYTES if task.format == "pcm" else 1
    meter = _Meter(limits, task.rate_hz)
    held = b""
    while (piece := line.data()) is not None:
        held += piece
        whole = len(held) - len(held) % width
        if not whole:
            continue
        for frame in context.decode(av.Packet(held[:whole])):  # type: ignore[attr-defined]
            meter.check(frame)
            for part in meter.resampled(frame):
                line.send(part)
        held = held[whole:]
    for part in meter.resampled(None):
        line.send(part)


class _Meter:
    """Counts while it resamples, and refuses before anything large is made."""

    def __init__(self, limits: MediaLimits, rate_hz: int) -> None:
        self.samples = 0
        self._limits = limits
        self._rate_hz = rate_hz
        self._source_s = 0.0
        self._decoded_bytes = 0
        self._shape: tuple[str, str, int] | None = None
        self._resampler: AudioResampler | None = None

    def check(self, frame: AudioFrame) -> None:
        limits = self._limits
        channels = frame.layout.nb_channels
        if not _LEAST_RATE_HZ <= frame.sample_rate <= limits.source_rate_hz:
            raise invalid_audio(
                f"The file says that it has {frame.sample_rate} samples a second, which no sound has."
            )
        if not 1 <= channels <= limits.channels:
            raise invalid_audio(
                f"The file says that it has {channels} channels; at most {limits.channels} are read."
            )
        self._source_s += frame.samples / frame.sample_rate
        if self._source_s > limits.duration_s:
            raise Refused(
                "too_large",
                "audio_too_long",
                f"The sound is longer than {limits.duration_s:g} s, the most accepted; send parts of it.",
            )
        self._decoded_bytes += frame.samples * channels * frame.format.bytes
        if self._decoded_bytes > limits.decoded_bytes:
            raise Refused(
                "too_large",
                "audio_too_large",
                f"The sound decodes to more than {limits.decoded_bytes} bytes; send fewer channels, "
                "a lower sample rate or a shorter part.",
            )

    def resampled(self, frame: AudioFrame | None) -> Iterator[bytes]:
        """None for the end. A sound may change its shape on the way, as joined files do."""
        if frame is not None:
            shape = (frame.format.name, frame.layout.name, frame.sample_rate)
            if shape != self._shape:
                yield from self._rest()
                self._resampler = AudioResampler(format="s16", layout="mono", rate=self._rate_hz)
                self._shape = shape
            frame.pts = None  # a forged time would be filled with silence
            assert self._resampler is not None  # noqa: S101
            yield from self._bytes(self._resampler.resample(frame))
        else:
            yield from self._rest()

    def _rest(self) -> Iterator[bytes]:
        if self._resampler is not None:
            yield from self._bytes(self._resampler.resample(None))
            self._resampler = None

    def _bytes(self, frames: list[AudioFrame]) -> Iterator[bytes]:
        for frame in frames:
            if frame.samples:
                self.samples += frame.samples
                # A plane is padded beyond its samples.
                yield bytes(memoryview(frame.planes[0])[: frame.samples * SAMPLE_BYTES])


def _collected(send: Callable[[bytes], None], rate_hz: int) -> Callable[[bytes], None]:
    """Frames are short, and each costs its reader a turn; an empty one stands for the end."""
    held = bytearray()
    enough = int(_PIECE_S * rate_hz) * SAMPLE_BYTES

    def put(piece: bytes) -> None:
        held.extend(piece)
        if len(held) >= enough or (not piece and held):
            send(bytes(held))
            held.clear()

    return put
