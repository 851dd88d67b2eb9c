"""`inferhub see`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from inferhub.cli._bar import progress
from inferhub.cli._context import connect
from inferhub.cli._errors import printable
from inferhub.cli._files import read_bytes
from inferhub.cli._flags import Json, Key, Url, new_app
from inferhub.cli._output import print_json

app = new_app()


@app.command(
    epilog="""\b
Examples:
  inferhub see photo.jpg                        what is on it
  inferhub see invoice.png "What is the total?"
  inferhub see photo.jpg --json                 every fact: texts, objects, labels, colours"""
)
def see(
    image: Annotated[Path, typer.Argument(help="A picture: PNG, JPEG, WebP, GIF; - is standard input.")],
    question: Annotated[str | None, typer.Argument(help="What you want to know of it.")] = None,
    *,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Otherwise the server's first one that sees.")
    ] = "",
    url: Url = None,
    key: Key = None,
    json: Json = False,
) -> None:
    """Describe a picture, or answer a question about it.

    Answers come from what was recognised, by rules: texts, objects and their number, colours.
    """
    asyncio.run(_see(image, question, model, url, key, as_json=json))


async def _see(
    image: Path, question: str | None, model: str, url: str | None, key: str | None, *, as_json: bool
) -> None:
    from msgspec.json import decode

    from inferhub.client.pictures import File
    from inferhub.modalities.vision import VisionRequest

    request = VisionRequest(model=model, question=question)
    picture = File(read_bytes(image), image.name)
    async with connect(url, key) as client:
        with progress(f"Looking at {printable(image.name)}"):
            answer: dict[str, Any] = decode(await client.pictures.look(picture, request))
    if as_json:
        return print_json(answer)
    reply = answer.get("answer") or {}
    print(printable(str(reply.get("text") or answer.get("description") or "")))
    return None
