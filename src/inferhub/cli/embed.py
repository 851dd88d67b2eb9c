"""`inferhub embed`."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from inferhub.cli._context import connect
from inferhub.cli._flags import Json, Key, Url, new_app
from inferhub.cli._output import print_json
from inferhub.core.errors import ModelNotFound, SetupError

if TYPE_CHECKING:
    from inferhub.client import Client
    from inferhub.modalities.embedding import EmbeddingResponse

app = new_app()


@app.command(
    epilog="""\b
Examples:
  inferhub embed "a cat on a mat"
  inferhub embed "a cat" "a kitten" "a car"     also shows how alike they are
  inferhub embed --json < lines.txt             one text a line"""
)
def embed(
    texts: Annotated[
        list[str] | None, typer.Argument(help="The texts; otherwise lines of standard input.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Otherwise the server's first embedding model.")
    ] = None,
    url: Url = None,
    key: Key = None,
    json: Json = False,
) -> None:
    """Turn texts into vectors.

    People see the first numbers of each vector and how alike the texts are; --json prints the whole
    answer as the API gives it.
    """
    given = texts or _lines()
    answer = asyncio.run(_embed(given, model, url, key))
    if json:
        from msgspec import to_builtins

        print_json(to_builtins(answer))
    else:
        _show(given, answer)


def _lines() -> list[str]:
    lines = [] if sys.stdin.isatty() else [line.strip() for line in sys.stdin if line.strip()]
    if not lines:
        raise SetupError("Nothing to embed: give texts, or lines on standard input.", param="texts")
    return lines


async def _embed(texts: list[str], model: str | None, url: str | None, key: str | None) -> EmbeddingResponse:
    from inferhub.modalities.embedding import EmbeddingRequest

    async with connect(url, key) as client:
        name = model or await _first_embedding_model(client)
        request = EmbeddingRequest(model=name, input=[*texts], encoding_format="float")
        return await client.embed(request)


async def _first_embedding_model(client: Client) -> str:
    cards = await client.models()
    for card in cards:
        if "embedding" in card.modalities:
            return card.id
    offered = ", ".join(card.id for card in cards) or "none"
    raise ModelNotFound(f"The server has no embedding model ready; its models: {offered}.")


def _show(texts: list[str], answer: EmbeddingResponse) -> None:
    from inferhub.cli._output import table

    vectors = [item.embedding for item in answer.data if isinstance(item.embedding, list)]
    rows = []
    for text, vector in zip(texts, vectors, strict=True):
        alike = sum(a * b for a, b in zip(vectors[0], vector, strict=True))
        start = " ".join(f"{number:+.3f}" for number in vector[:4])
        rows.append((text[:60], str(len(vector)), f"{alike:.3f}", f"{start} …"))
    print(table(("TEXT", "DIMENSIONS", "LIKE FIRST", "VECTOR"), rows))
