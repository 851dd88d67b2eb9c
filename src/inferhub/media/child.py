"""The process that looks at what clients send: `python -P -m inferhub.media.child`.

`process` starts it, gives it jobs on standard input and reads what comes of them on standard output. It opens
no file while it decodes, writes none at all, and ends with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import signal
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import BinaryIO

from inferhub.media.messages import (
    HEAD,
    MAX_FRAME_BYTES,
    PIECE_BYTES,
    DecodeAudio,
    DecodeImage,
    DecodeLive,
    EncodeAudio,
    EncodeImage,
    Failure,
    Job,
    Kind,
    Refused,
    Upright,
    Warm,
    decode_job,
    encode,
)

_PR_SET_PDEATHSIG = 1
_GRACE_CPU_S = 1
_PIPE_BYTES = 1024 * 1024


class Line:
    """The child's end of the line. What it reads while there is nothing to read, it waits for."""

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        self._source = source
        self._sink = sink
        self._cpu_s = 0
        self._is_ended = False
        """The parent has sent all of the data."""

    def jobs(self) -> Iterator[Job]:
        while True:
            kind, payload = self._read()
            if kind is Kind.JOB:
                job = decode_job(payload)
                self._cpu_s = job.limits.cpu_s
                self._is_ended = False
                yield job
                self.drain()

    def data(self) -> bytes | None:
        """The next piece, or None when there are no more. Each starts the clock anew."""
        if self._is_ended:
            return None
        kind, payload = self._read()
        self._is_ended = kind is not Kind.DATA
        _limit_cpu(self._cpu_s)
        return None if self._is_ended else payload

    def everything(self, most_bytes: int) -> bytes:
        pieces = bytearray()
        while (piece := self.data()) is not None:
            pieces += piece
            if len(pieces) > most_bytes:
                raise Refused("internal", "internal_error", "More came than was announced.")
        return bytes(pieces)

    def drain(self) -> None:
        """Past what is left of a job's data: the next job comes after it."""
        while self.data() is not None:
            pass

    def send(self, content: bytes | memoryview) -> None:
        """Waits while nobody reads."""
        view = memoryview(content)
        for at in range(0, len(view), PIECE_BYTES):
            self.say(Kind.DATA, view[at : at + PIECE_BYTES])

    def say(self, kind: Kind, payload: bytes | memoryview = b"") -> None:
        self._sink.write(HEAD.pack(kind, len(payload)))
        self._sink.write(payload)
        self._sink.flush()

    def _read(self) -> tuple[Kind, bytes]:
        head = self._source.read(HEAD.size)
        if len(head) < HEAD.size:
            os._exit(0)  # the parent hung up, or is gone
        kind, length = HEAD.unpack(head)
        if length > MAX_FRAME_BYTES:
            os._exit(1)
        payload = self._source.read(length)
        if len(payload) < length:
            os._exit(0)
        return Kind(kind), payload


def main() -> None:
    # Ctrl-C and a service manager's stop reach the whole process group; the parent decides.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _widen(sys.stdin.fileno(), sys.stdout.fileno())
    source = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    sink = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=PIECE_BYTES)
    # What a library prints belongs to the log.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for what in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(what, (0, 0))
    line = Line(source, sink)
    for job in line.jobs():
        _do(job, line)


def _widen(*pipes: int) -> None:
    """Pixels come by the megabyte: the fewer turns the parent's event loop needs for them, the better."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a user may have only so many pages in pipes
            for pipe in pipes:
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _do(job: Job, line: Line) -> None:
    _limit_memory(job.limits.memory_bytes)
    _limit_cpu(job.limits.cpu_s)
    try:
        _dispatch(job, line)
    except Refused as refused:
        failure = refused.failure
    except MemoryError:
        failure = Failure("invalid", "media_too_complex", "The file takes more memory than is allowed.")
    except Exception as error:  # the border: whatever a library raises, one request fails and says so
        # Its class says what to look for; its words may be the file's.
        kind = f"{type(error).__module__}.{type(error).__qualname__}"
        failure = Failure("internal", "internal_error", f"{type(job.task).__name__} raised {kind}")
    else:
        line.say(Kind.END)
        return
    line.say(Kind.FAILED, encode(failure))


def _dispatch(job: Job, line: Line) -> None:
    match job.task:
        case DecodeAudio() | DecodeLive():
            hearing = _library("hearing")
            with _no_files():
                hearing.do(job.task, job.limits, line)
        case EncodeAudio():
            voicing = _library("voicing")
            with _no_files():
                voicing.encode(job.task, line)
        case DecodeImage() | EncodeImage() | Upright():
            seeing = _library("seeing")
            with _no_files():
                seeing.do(job.task, job.limits, line)
        case Warm():
            for name in ("hearing", "voicing") if job.task.what == "audio" else ("seeing",):
                _library(name)


def _library(name: str) -> ModuleType:
    from importlib import import_module

    try:
        return import_module(f"inferhub.media.{name}")
    except ImportError as error:
        raise Refused(
            "missing",
            "media_not_installed",
            f"This server cannot decode the file: the package {error.name!r} is not installed "
            "(install 'inferhub[local]').",
        ) from error


@contextlib.contextmanager
def _no_files() -> Iterator[None]:
    """The kernel refuses to open anything more: a file that names other files gets nowhere."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _limit_memory(most_bytes: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = most_bytes if hard == resource.RLIM_INFINITY else min(most_bytes, hard)
    with contextlib.suppress(ValueError, OSError):  # not every system has this limit
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _limit_cpu(more_s: int) -> None:
    """From now on; the kernel ends the process at the first second after it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(
        resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + more_s + _GRACE_CPU_S, hard)
    )


if __name__ == "__main__":
    main()
