"""`inferhub draw`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inferhub.cli._bar import progress
from inferhub.cli._context import connect
from inferhub.cli._files import once, output, read_bytes, write_pieces
from inferhub.cli._flags import Json, Key, Url, new_app
from inferhub.cli._output import print_json
from inferhub.core.errors import SetupError

if TYPE_CHECKING:
    from inferhub.client.pictures import File
    from inferhub.modalities.image import ImageRequest

app = new_app()

_FORMS = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}


@app.command(
    epilog="""\b
Examples:
  inferhub draw --image cat.png --model style --style mosaic -o mosaic.png
  inferhub draw --image cat.png --model realesrgan --scale 4 -o large.png
  inferhub draw "A lighthouse at night" --model my-diffusion --steps 20 -o light.png"""
)
def draw(
    prompt: Annotated[str, typer.Argument(help="What to paint, for models that understand it.")] = "",
    *,
    image: Annotated[
        list[Path] | None, typer.Option("--image", "-i", help="A picture to start from. May be repeated.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where it goes: .png .jpg .webp.")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Otherwise the server's first one that can.")
    ] = "",
    size: Annotated[str | None, typer.Option(help="Such as 512x512.")] = None,
    n: Annotated[int, typer.Option("-n", min=1, max=10, help="How many.")] = 1,
    style: Annotated[str | None, typer.Option(help="Of a style transfer model: the style.")] = None,
    strength: Annotated[
        float | None, typer.Option(min=0, max=1, help="How much an image may change.")
    ] = None,
    scale: Annotated[
        int | None, typer.Option(min=2, max=4, help="Of an upscaling model: times wider.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed paints the same.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=200, help="More are slower and finer.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
    url: Url = None,
    key: Key = None,
    json: Json = False,
) -> None:
    """Paint a picture, or make one of another."""
    from inferhub.client.pictures import File
    from inferhub.modalities.image import ImageRequest

    if not prompt and not image:
        raise SetupError("Say what to paint, or give an --image to start from.", param="prompt")
    target = output(out, force=force, example="picture.png")
    suffix = "png" if target is None else target.suffix.removeprefix(".").lower()
    if suffix not in _FORMS:
        raise SetupError(
            f"'.{suffix}' is no format; the file's name may end in {', '.join(_FORMS)}.", param="output"
        )
    targets = _numbered(target, n, force=force)
    request = ImageRequest(
        prompt=prompt,
        model=model,
        n=n,
        size=size,
        output_format=_FORMS[suffix],  # type: ignore[arg-type]  # one of them
        style=style,
        strength=strength,
        scale=scale,
        seed=seed,
        steps=steps,
    )
    given = [File(read_bytes(path), path.name) for path in image or ()]
    pictures = asyncio.run(_draw(request, given, targets, url, key))
    found = [
        (target, len(data)) for target, data in zip(targets, pictures, strict=False) if target is not None
    ]
    if json:
        return print_json([{"file": str(target), "bytes": count} for target, count in found])
    for target, count in found:
        print(f"{target}: {count:,} bytes", file=sys.stderr)
    return None


def _numbered(target: Path | None, n: int, *, force: bool) -> list[Path | None]:
    """`picture.png`, `picture-2.png`, …; standard output takes one."""
    if target is None:
        if n > 1:
            raise SetupError("Several pictures need a file: -o picture.png.", param="output")
        return [None]
    others = [target.with_name(f"{target.stem}-{count}{target.suffix}") for count in range(2, n + 1)]
    return [target, *(output(other, force=force, example="picture.png") for other in others)]


async def _draw(
    request: ImageRequest, given: list[File], targets: list[Path | None], url: str | None, key: str | None
) -> list[bytes]:
    async with connect(url, key) as client:
        with progress("Painting"):
            if given:
                pictures = await client.pictures.edit(given, request)
            else:
                pictures = await client.pictures.make(request)
    for target, picture in zip(targets, pictures, strict=False):
        await write_pieces(target, once(picture))
    return pictures
