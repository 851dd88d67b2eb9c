"""`inferhub workers`: who runs the models of a server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from inferhub.cli._context import connect
from inferhub.cli._flags import Json, Key, Url, new_app
from inferhub.cli._output import megabytes, print_json, table

app = new_app()


@app.command(epilog="\b\nExamples:\n  inferhub workers\n  inferhub workers --url http://hub:8000 --json")
def workers(url: Url = None, key: Key = None, json: Json = False) -> None:
    """List the workers of a running server: their models, load and memory."""
    cards = asyncio.run(_workers(url, key))
    if json:
        print_json(cards)
        return
    # Who reaches remote models is always there; without such models it says nothing.
    shown = [card for card in cards if card["name"] != "providers" or card.get("models")]
    rows = [row for card in shown for row in _rows(card)]
    print(table(("WORKER", "STATE", "MODEL", "RUNS", "WAIT", "PENDING", "MEMORY", "DEVICE"), rows))


async def _workers(url: str | None, key: str | None) -> list[dict[str, Any]]:
    async with connect(url, key) as client:
        return await client.workers()


def _rows(card: Mapping[str, Any]) -> Sequence[tuple[str, ...]]:
    """One for each model; a worker is named at its first."""
    name, state = str(card["name"]), _state(card)
    models = card.get("models") or ()
    if not models:
        return [(name, state, "-", "-", "-", "-", "-", "-")]
    return [
        (
            "" if place else name,
            "" if place else state,
            f"{model['name']}{_how(model)}",
            f"{model['running']}/{model['slots']}",
            str(model["queued"]),
            f"{model['pending_s']:.1f} s",
            megabytes(model["memory_bytes"]) if model["memory_bytes"] else "-",
            str(model["device"]),
        )
        for place, model in enumerate(models)
    ]


def _state(card: Mapping[str, Any]) -> str:
    if not card["reachable"]:
        return "lost"
    if card["draining"]:
        return "draining"
    return "suspect" if card["suspect"] else "serving"


def _how(model: Mapping[str, Any]) -> str:
    if model["loading"]:
        return " (loading)"
    if not model["ready"]:
        return " (not ready)"
    return "" if model["loaded"] else " (on demand)"
