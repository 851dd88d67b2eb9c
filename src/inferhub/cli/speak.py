"""`inferhub speak`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from inferhub.cli._bar import progress
from inferhub.cli._context import connect
from inferhub.cli._files import output, write_pieces
from inferhub.cli._flags import Json, Key, Url, new_app
from inferhub.cli._output import print_json, table
from inferhub.core.errors import SetupError

if TYPE_CHECKING:
    from inferhub.modalities.speech import SpeechRequest

app = new_app()


@app.command(
    epilog="""\b
Examples:
  inferhub speak "Good morning." -o morning.mp3
  inferhub speak "Buenos días." --model kokoro --voice ef_dora -o dias.wav
  inferhub speak "Guess what!" --model kokoro --emotion happy -o guess.mp3
  inferhub speak --file story.txt -o story.opus
  inferhub speak "Hello." | aplay                 as WAV, to whatever plays it
  inferhub speak --voices"""
)
def speak(
    text: Annotated[str | None, typer.Argument(help="What to say; otherwise --file.")] = None,
    *,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="A text file; - is standard input.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where the sound goes: .mp3 .opus .aac .flac .wav .pcm."),
    ] = None,
    voices: Annotated[bool, typer.Option("--voices", help="List the voices instead.")] = False,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Otherwise the server's first one that speaks.")
    ] = "",
    voice: Annotated[
        str, typer.Option(help="A voice's name, or a blend such as af_heart+am_michael.")
    ] = "default",
    language: Annotated[str | None, typer.Option(help="Such as es; otherwise the voice's own.")] = None,
    emotion: Annotated[
        str | None,
        typer.Option(help="neutral, happy, sad, angry, calm or whisper: a preset of voice, speed and pitch."),
    ] = None,
    speed: Annotated[float, typer.Option(min=0.25, max=4, help="1 is as usual.")] = 1.0,
    pitch: Annotated[float | None, typer.Option(min=-12, max=12, help="Semitones.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    url: Url = None,
    key: Key = None,
    json: Json = False,
) -> None:
    """Speak a text into a file."""
    if voices:
        return asyncio.run(_list(url, key, as_json=json))
    said = _text(text, file)
    target = output(out, force=force, example="speech.mp3")
    from inferhub.modalities.speech import AudioFormat, Emotion, SpeechRequest

    form = "wav" if target is None else target.suffix.removeprefix(".").lower()
    if form not in get_args(AudioFormat):
        raise SetupError(
            f"{form!r} is no format; the file's name may end in .{', .'.join(get_args(AudioFormat))}.",
            param="output",
        )
    if emotion is not None and emotion not in get_args(Emotion):
        raise SetupError(
            f"{emotion!r} is no emotion; there are {', '.join(get_args(Emotion))}.", param="emotion"
        )
    request = SpeechRequest(
        input=said,
        model=model,
        voice=voice,
        response_format=form,  # type: ignore[arg-type]  # checked above
        speed=speed,
        language=language,
        emotion=emotion,  # type: ignore[arg-type]  # checked above
        pitch=pitch,
    )
    return asyncio.run(_speak(request, target, url, key))


def _text(argument: str | None, file: Path | None) -> str:
    from inferhub.cli._context import read_text

    if (argument is None) == (file is None):
        raise SetupError("Give either a text or --file.", param="text")
    return argument if argument is not None else read_text(file or Path("-")).strip()


async def _speak(request: SpeechRequest, target: Path | None, url: str | None, key: str | None) -> None:
    async with connect(url, key) as client:
        with progress("Speaking") as bar:
            async with client.audio.speak(request) as pieces:
                size = await write_pieces(target, bar.counted(pieces))
    if target is not None:
        print(f"{target}: {size:,} bytes", file=sys.stderr)


async def _list(url: str | None, key: str | None, *, as_json: bool) -> None:
    async with connect(url, key) as client:
        found = await client.audio.voices()
    if as_json:
        from msgspec import to_builtins

        return print_json(to_builtins(found))
    rows = [(v.id, v.model, v.language or "", v.gender or "", ", ".join(v.aliases)) for v in found]
    print(table(("VOICE", "MODEL", "LANGUAGE", "GENDER", "ALSO"), rows))
    return None
