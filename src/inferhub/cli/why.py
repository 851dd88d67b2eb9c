"""`inferhub why`: what a running server went by when it chose the endpoints of a call."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from inferhub.cli._context import client_for, server_errors
from inferhub.cli._errors import printable
from inferhub.cli._flags import Json, Key, Url, new_app
from inferhub.cli._output import print_json, table
from inferhub.core.errors import NotFound

app = new_app()

_TRIES = 16
"""Of several gateway processes behind one port, each remembers its own calls; a new connection may find the
right one."""
_REASONS = {
    "best": "has the best score",
    "explored": "was tried by chance, as a few calls are",
    "session": "has the session of the call",
    "only": "is the only choice",
    "nobody is left": "nobody is left to ask",
}


@app.command(
    epilog="""\b
Examples:
  inferhub why req_65f0c2a1
  inferhub why req_65f0c2a1 --json"""
)
def why(
    call_id: Annotated[
        str, typer.Argument(metavar="CALL_ID", help="The `x-request-id` of the call's answer.")
    ],
    url: Url = None,
    key: Key = None,
    *,
    json: Json = False,
) -> None:
    """Explain why a call went where it went.

    A gateway process remembers its last 10,000 calls, and forgets them when it ends. Needs an admin's key.
    """
    with server_errors():
        calls = asyncio.run(_ask(call_id, url, key))
    if json:
        print_json(calls)
        return
    print("\n\n".join("\n".join(_lines(call)) for call in calls))


async def _ask(call_id: str, url: str | None, key: str | None) -> list[dict[str, Any]]:
    tries = 0
    while True:
        tries += 1
        try:
            async with client_for(url, key) as client:
                return await client.decisions(call_id)
        except NotFound:
            if tries == _TRIES:
                raise


def _lines(call: Mapping[str, Any]) -> Iterator[str]:
    at = datetime.fromtimestamp(call["at"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    yield printable(f"{call['request_id']} asked for {call['model']} at {at}.")
    for step in call["steps"]:
        yield ""
        if step["step"] == "end":
            ended = "answered" if step["outcome"] == "ok" else f"ended: {step['outcome']}"
            yield printable(f"{step['after_ms']:.1f} ms  {step['endpoint']} {ended}.")
        else:
            yield from _choice(step)


def _choice(step: Mapping[str, Any]) -> Iterator[str]:
    chosen = f"{step['endpoint']} of {step['model']} " if step["endpoint"] else ""
    after = f", after {step['after_failure']}" if step["after_failure"] else ""
    reason = _REASONS.get(step["reason"], step["reason"])
    yield printable(f"{step['after_ms']:.1f} ms  {chosen}{reason}{after}.")
    if step["terms"]:
        yield printable("  " + ", ".join(f"{name} {value:g}" for name, value in step["terms"].items()))
    if "candidates" not in step:
        return
    weights = step["weights"]
    head = (
        "ENDPOINT",
        "SCORE",
        "PENDING",
        *(f"{name.upper()} x{weight:g}" for name, weight in weights.items()),
    )
    rows = [
        (
            printable(one["endpoint"]),
            f"{one['score']:.2f}",
            f"{one['pending_s']:.3f} s",
            *(f"{one['terms'][name]:.2f}" for name in weights),
        )
        for one in step["candidates"]
    ]
    yield from (f"  {line}" for line in table(head, rows).splitlines())
    yield from (f"  {line}" for line in map(printable, _others(step)))


def _others(step: Mapping[str, Any]) -> Iterator[str]:
    """Who was not compared, and why."""
    compared = sum(len(step[kind]) for kind in ("candidates", "too_busy", "would_wait", "not_well"))
    if step["endpoints"] > compared:
        yield f"Compared {compared} of {step['endpoints']} endpoints."
    if step["too_busy"]:
        yield f"Too much to do, more than {step['gate_s']:.1f} s: {_pending(step['too_busy'])}."
    if step["would_wait"]:
        yield f"No free slot, while another had one: {_pending(step['would_wait'])}."
    if step["not_well"]:
        yield f"Not asked, because full, failing, or tried before: {', '.join(step['not_well'])}."
    for reason, count in step["left_out"].items():
        yield f"Left out by {reason}: {count}."


def _pending(some: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{one['endpoint']} ({one['pending_s']:.1f} s)" for one in some)
