"""`inferhub models`: the weights on this machine, and what a server offers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferhub.cli._context import connect, load
from inferhub.cli._flags import WEIGHTS, Json, Key, Url, new_app, with_settings
from inferhub.cli._output import megabytes, print_json, table
from inferhub.core.errors import WeightsCorrupt

if TYPE_CHECKING:
    from inferhub.client import ModelCard
    from inferhub.registry.weights import Weights, WeightsStatus

app = new_app(
    no_args_is_help=True,
    help="List models; fetch and verify their weights.\n\n"
    "Weights are files on this machine, fetched once; your own GGUF file needs no fetching: "
    "inferhub serve --model PATH.",
)

Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="As `models list` shows them.")]


@app.command("list", epilog="\b\nExamples:\n  inferhub models list\n  inferhub models list --json")
@with_settings(WEIGHTS)
def list_weights(*, json: Json = False, flags: Mapping[str, Any]) -> None:
    """List the weights that can be fetched, and which are here."""
    listing = _weights(flags).listing()
    if json:
        print_json([_card(status) for status in listing])
        return
    rows = [
        (
            s.name,
            megabytes(s.size_bytes),
            "shipped" if s.shipped and s.state.value == "present" else s.state.value,
            s.licence,
            s.about,
        )
        for s in listing
    ]
    print(table(("NAME", "SIZE", "STATE", "LICENCE", "ABOUT"), rows))


@app.command(
    epilog="""\b
Examples:
  inferhub models pull
  inferhub models pull minilm-l6-v2
  inferhub models pull --weights-mirror /mnt/weights"""
)
@with_settings(WEIGHTS)
def pull(names: Names = None, *, json: Json = False, flags: Mapping[str, Any]) -> None:
    """Fetch weights that are not here, and replace damaged ones.

    Without a name, all that the built-in models use. Ctrl-C is safe: the next pull goes on where this one
    stopped.
    """
    from inferhub.cli._progress import progress_of_pull

    loaded = load(flags)
    weights = _weights(flags)
    wanted = names or weights.defaults
    try:
        with progress_of_pull(loaded.settings.color, silent=json) as on_progress:
            asyncio.run(weights.pull(wanted, on_progress))
    except KeyboardInterrupt:
        typer.echo("Stopped. The next pull goes on from here.", err=True)
        raise
    if json:
        print_json([_card(status) for status in weights.listing() if status.name in wanted])


@app.command(epilog="\b\nExamples:\n  inferhub models verify\n  inferhub models verify smollm2-135m --json")
@with_settings(WEIGHTS)
def verify(names: Names = None, *, json: Json = False, flags: Mapping[str, Any]) -> None:
    """Read every byte of the weights that are here and compare with what they must be."""
    weights = _weights(flags)
    wanted = names or [status.name for status in weights.listing() if status.state.value != "missing"]
    states = {name: weights.verify(name) for name in wanted}
    if json:
        print_json(states)
    else:
        print(table(("NAME", "STATE"), [(name, state.value) for name, state in states.items()]))
    bad = [name for name, state in states.items() if state.value != "present"]
    if bad:
        raise WeightsCorrupt(f"Not as they must be: {', '.join(bad)}.")


@app.command(
    epilog="\b\nExamples:\n  inferhub models served\n  inferhub models served --url http://gpu-1:8000"
)
def served(url: Url = None, key: Key = None, json: Json = False) -> None:
    """List what a running server offers."""
    cards = asyncio.run(_served(url, key))
    if json:
        from msgspec import to_builtins

        print_json([to_builtins(card) for card in cards])
        return
    rows = [
        (
            card.id,
            ", ".join(card.modalities) or "-",
            _state(card.inferhub),
            megabytes(size) if (size := card.inferhub.get("memory_bytes")) else "-",
            str(card.inferhub.get("device", "-")),
            str(card.inferhub.get("backend", "-")),
        )
        for card in cards
    ]
    print(table(("MODEL", "FOR", "STATE", "MEMORY", "DEVICE", "BACKEND"), rows))


def _state(detail: Mapping[str, Any]) -> str:
    if not detail.get("ready"):
        return "not ready"
    return "ready" if detail.get("loaded", True) else "on demand"


async def _served(url: str | None, key: str | None) -> list[ModelCard]:
    async with connect(url, key) as client:
        return await client.models()


def _weights(flags: Mapping[str, Any]) -> Weights:
    from inferhub.registry.weights import Weights

    settings = load(flags).settings
    return Weights(settings.cache_dir, settings.weights_mirror)


def _card(status: WeightsStatus) -> dict[str, Any]:
    return {
        "name": status.name,
        "state": status.state.value,
        "size_bytes": status.size_bytes,
        "path": str(status.path),
        "files": [{"name": f.name, "sha256": f.sha256, "size_bytes": f.size_bytes} for f in status.files],
        "licence": status.licence,
        "shipped": status.shipped,
        "about": status.about,
    }
