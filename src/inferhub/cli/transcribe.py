"""`inferhub transcribe`."""

from __future__ import annotations

import asyncio
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inferhub.cli._bar import progress
from inferhub.cli._context import connect
from inferhub.cli._errors import printable
from inferhub.cli._files import once, output, read_bytes, write_pieces
from inferhub.cli._flags import Json, Key, Url, new_app
from inferhub.core.errors import SetupError, UpstreamFailed

if TYPE_CHECKING:
    from inferhub.client import Client
    from inferhub.modalities.transcription import TranscriptionRequest

app = new_app()


class Form(StrEnum):
    """How the transcript is written."""

    TEXT = "text"
    SRT = "srt"
    VTT = "vtt"
    JSON = "json"
    VERBOSE_JSON = "verbose_json"
    DIARIZED_JSON = "diarized_json"


@app.command(
    epilog="""\b
Examples:
  inferhub transcribe talk.mp3
  inferhub transcribe talk.mp3 --format srt -o talk.srt
  inferhub transcribe meeting.wav --speakers 2 --format diarized_json
  inferhub transcribe rede.wav --language de --translate
  inferhub transcribe --mic                    until Ctrl-C; needs `arecord`"""
)
def transcribe(
    file: Annotated[
        Path | None, typer.Argument(help="The recording, in any usual format; - is standard input.")
    ] = None,
    *,
    mic: Annotated[bool, typer.Option("--mic", help="Listen to the microphone instead.")] = False,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Otherwise the server's first one for speech.")
    ] = "",
    language: Annotated[
        str | None, typer.Option(help="What is spoken, such as en; otherwise found out.")
    ] = None,
    translate: Annotated[bool, typer.Option("--translate", help="Into English.")] = False,
    speakers: Annotated[int | None, typer.Option(min=1, max=20, help="How many people speak.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Names and words that occur.")] = None,
    form: Annotated[Form, typer.Option("--format", help="How it is written.")] = Form.TEXT,
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file; otherwise the terminal.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    url: Url = None,
    key: Key = None,
    json: Json = False,
) -> None:
    """Turn speech into text.

    Text appears as it is recognised. --json is short for --format verbose_json.
    """
    if mic == (file is not None):
        raise SetupError("Give either a recording or --mic.", param="file")
    from inferhub.modalities.transcription import TranscriptionRequest

    request = TranscriptionRequest(
        model=model,
        language=language,
        prompt=prompt,
        response_format="verbose_json" if json else form.value,
        task="translate" if translate else "transcribe",
        diarize=True if speakers else None,
        num_speakers=speakers,
    )
    if file is None:
        from inferhub.cli._microphone import listen

        return asyncio.run(listen(request, url, key))
    target = None if out is None else output(out, force=force, example="transcript.txt")
    return asyncio.run(_transcribe(file, request, target, url, key))


async def _transcribe(
    file: Path, request: TranscriptionRequest, target: Path | None, url: str | None, key: str | None
) -> None:
    recording, name = read_bytes(file), file.name
    async with connect(url, key) as client:
        if request.response_format == "text" and target is None and request.task == "transcribe":
            return await _print_as_it_comes(client, recording, name, request)
        with progress(f"Transcribing {printable(name)}"):
            answer = await client.audio.transcribe(recording, request, name)
    if target is None:
        print(answer.decode(errors="replace").rstrip("\n"))
    else:
        await write_pieces(target, once(answer))
    return None


async def _print_as_it_comes(
    client: Client, recording: bytes, name: str, request: TranscriptionRequest
) -> None:
    from msgspec.structs import replace

    # Streams are events of JSON, whatever is made of them.
    request = replace(request, response_format="json")
    is_whole = False
    async with client.audio.stream_transcript(recording, request, name) as events:
        async for event in events:
            if event.type == "transcript.text.delta":
                sys.stdout.write(printable(event.delta))
                sys.stdout.flush()
            is_whole = is_whole or event.type == "transcript.text.done"
    print()
    if not is_whole:
        raise UpstreamFailed("The server closed the stream before the transcript was complete.")
