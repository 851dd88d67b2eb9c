"""What holds for each vendor, found by asking: endpoint × feature × streamed, through a real hub.

`python -m inferhub.testing.conformance docs/reference` writes `conformance.md`; a test runs the same and
compares. Vendors are played by strict upstreams, the built-in models are real. Judges what comes back by
`conformance_checks`, never by what InferHub says of itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from inferhub.backends.vendors import vendors
from inferhub.testing.client_dialects import CLIENTS, Outcome, put
from inferhub.testing.conformance_checks import CHECKS, Check, Judged, Seen, Verdict, judge
from inferhub.testing.conformance_media import MEDIA_CHECKS, MediaCheck, judge_media, media_models, run_media
from inferhub.testing.conformance_page import page
from inferhub.testing.servers import running_hub
from inferhub.testing.talk import Talk
from inferhub.testing.upstream_player import Record
from inferhub.testing.upstream_process import Upstream, records_of

PAGE = "conformance.md"
BUILT_IN = "built-in"
_AT_ONCE = 16
_SLOTS = 2
_SETTINGS: dict[str, object] = {"max_attempts": 1, "breaker_failures": 0, "head_hold_s": 60}
_BUILT_IN_MODELS = {"embeddings": "minilm-l6-v2"}
_LANGUAGE_MODEL = "smollm2-135m"
_OWN_MODELS = {"anthropic": "claude-sonnet-4-5", "gemini": "gemini-2.5-flash"}
"""Vendors with a backend of their own, and a model of theirs that can all that the vendor can."""


_STRICT = frozenset({"openai", "azure", "anthropic", "gemini"})
"""Vendors whose requests have no field that the published document does not know."""
_MEDIA_VENDORS = (*vendors(), "gemini")


@dataclass(frozen=True, slots=True)
class Cell:
    """One question to one vendor."""

    vendor: str
    check: Check
    stream: bool

    @property
    def key(self) -> tuple[str, str, bool]:
        return (self.vendor, self.check.name, self.stream)


Results = Mapping[tuple[str, str, bool], Judged]
"""(vendor, check, stream) → what was found."""


def all_vendors() -> tuple[str, ...]:
    return (*vendors(), *_OWN_MODELS, BUILT_IN)


def all_cells() -> list[Cell]:
    return [
        Cell(vendor, check, stream)
        for vendor in all_vendors()
        for check in CHECKS
        for stream in ((False, True) if check.streams else (False,))
    ]


def spec(url: str) -> str:
    """A model for each vendor, all in front of one upstream, and the built-in ones."""
    lines = ["models:"]
    for name in all_vendors():
        if name != BUILT_IN:
            is_own = name in _OWN_MODELS
            backend = name if is_own else f"openai_compatible, slots: {_AT_ONCE * 2}"
            more = f"upstream_model: {_OWN_MODELS[name]}" if is_own else f"vendor: {name}"
            options = f'{{base_url: "{url}", api_key: k, {more}}}'
            lines.append(f"  - {{name: {name}, backend: {backend}, options: {options}}}")
    lines.append(
        f"  - {{name: {_LANGUAGE_MODEL}, backend: llamacpp, weights: smollm2-135m, slots: {_SLOTS}}}"
    )
    lines.append("  - {name: minilm-l6-v2, backend: onnx_embedding, weights: minilm-l6-v2}")
    lines += media_models(url, _MEDIA_VENDORS, _has_media)
    return "\n".join(lines)


async def run(cache_dir: Path | None) -> Results:
    """Ask everything. Raises what a hub or an upstream that does not start raises."""
    async with _running(cache_dir) as (talk, upstream):
        vendors_gate, own_gate = asyncio.Semaphore(_AT_ONCE), asyncio.Semaphore(_SLOTS)

        async def one(cell: Cell) -> Outcome:
            # Who waits for a slot would be timed by the calls before it.
            async with own_gate if cell.vendor == BUILT_IN else vendors_gate:
                return await _ask(cell, talk)

        cells = all_cells()
        outcomes = await asyncio.gather(*map(one, cells))
        media = await run_media(talk.url, talk.key, _MEDIA_VENDORS)
        log = await upstream.log()
    found = {cell.key: _judge(cell, outcome, log) for cell, outcome in zip(cells, outcomes, strict=True)}
    for vendor in all_vendors():
        for check in MEDIA_CHECKS:
            found[vendor, check.name, False] = _judge_media(vendor, check, media, log)
    return found


def _judge_media(
    vendor: str, check: MediaCheck, media: Mapping[tuple[str, str], tuple[int, bytes]], log: Sequence[Record]
) -> Judged:
    answer = media.get((vendor, check.name))
    if answer is None:
        return Judged(Verdict.NOT_OFFERED, "")
    return judge_media(vendor, check, answer, log, is_like_openai=vendor in _STRICT)


def _has_media(vendor: str, modality: str) -> bool:
    row = vendors().get(vendor)
    return modality in row.modalities if row is not None else vendor == "gemini"


@contextlib.asynccontextmanager
async def _running(cache_dir: Path | None) -> AsyncIterator[tuple[Talk, Upstream]]:
    settings = {**_SETTINGS, **({"cache_dir": cache_dir} if cache_dir else {})}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        async with Upstream(strict=True) as upstream:
            hub = stack.enter_context(running_hub("serve", folder, spec(upstream.url), settings))
            yield Talk(hub.url, hub.admin_key), upstream
            stack.close()


async def _ask(cell: Cell, talk: Talk) -> Outcome:
    check = cell.check
    model = cell.vendor
    if model == BUILT_IN:
        model = _BUILT_IN_MODELS.get(check.endpoint, _LANGUAGE_MODEL)
    body = {"model": model, **check.body, **(check.in_streams if cell.stream else {})}
    return await put(CLIENTS[check.client], talk, body, stream=cell.stream, path=check.path)


def _judge(cell: Cell, outcome: Outcome, log: Sequence[Record]) -> Judged:
    if cell.check.is_vendors and cell.vendor == BUILT_IN:
        return Judged(Verdict.NOT_OFFERED, "")
    return judge(cell.check, _seen(cell, outcome, log))


def _seen(cell: Cell, outcome: Outcome, log: Sequence[Record]) -> Seen:
    records = records_of(outcome.request_id, log)
    record = records[-1] if records else None
    violations = list(record.violations) if record else []
    if cell.vendor not in _STRICT:
        # The others publish that they are like OpenAI, and have fields beside OpenAI's.
        violations = [v for v in violations if not v.startswith("unknown field")]
    # This one is meant to be unknown; whether it is passed on is the question.
    violations = [v for v in violations if "made_up" not in v]
    return Seen(
        outcome=outcome,
        sent=record.body if record else None,
        spoken=record.dialect if record else "",
        violations=tuple(violations),
        is_streamed=cell.stream,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m inferhub.testing.conformance", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the page goes")
    given = parser.parse_args()
    text = page(all_vendors(), asyncio.run(run(None)))
    (given.folder / PAGE).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
