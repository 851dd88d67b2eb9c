"""The microphone, through `arecord`, to the server's live transcription, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from inferhub.cli._context import connect
from inferhub.cli._errors import printable
from inferhub.core.errors import SetupError

if TYPE_CHECKING:
    from inferhub.modalities.transcription import TranscriptionRequest

_RECORDER = ("arecord", "--quiet", "--format=S16_LE", "--rate=16000", "--channels=1", "--file-type=raw")
_PIECE_BYTES = 3200
"""A tenth of a second."""


async def listen(request: TranscriptionRequest, url: str | None, key: str | None) -> None:
    """Prints each utterance when it is over; on a terminal also what is heard so far."""
    recorder = await _recorder()
    is_watched = sys.stdout.isatty()
    print("Listening; Ctrl-C ends.", file=sys.stderr)
    # The first Ctrl-C ends the recording, not the transcription of what was said.
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, _end, recorder)
    try:
        async with connect(url, key) as client, client.audio.listen(request, _sound(recorder)) as events:
            async for event in events:
                if event.type == "partial" and is_watched:
                    sys.stdout.write(f"\r\x1b[K{printable(event.text)}")
                elif event.type == "final" and event.text:
                    said = printable(event.text.strip())
                    who = f"{event.speaker}: " if event.speaker else ""
                    sys.stdout.write(f"\r\x1b[K{who}{said}\n" if is_watched else f"{who}{said}\n")
                sys.stdout.flush()
    finally:
        _end(recorder)
        await recorder.wait()


async def _recorder() -> asyncio.subprocess.Process:
    if shutil.which(_RECORDER[0]) is None:
        raise SetupError(
            "There is no `arecord` here. On Debian and Ubuntu: apt install alsa-utils", param="mic"
        )
    return await asyncio.create_subprocess_exec(
        *_RECORDER, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )


def _end(recorder: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        if recorder.returncode is None:
            recorder.terminate()


async def _sound(recorder: asyncio.subprocess.Process) -> AsyncIterator[bytes]:
    assert recorder.stdout is not None  # noqa: S101 - it is a pipe
    while piece := await recorder.stdout.read(_PIECE_BYTES):
        yield piece
    if await recorder.wait() not in (0, 1, -signal.SIGTERM):
        raise SetupError(
            "`arecord` ended with an error; its message is above. Is there a microphone?", param="mic"
        )
