"""docs/reference/api.md names every address and every header of our own, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from fastapi import FastAPI

from inferhub.gateway.admin.spec import spec_router
from inferhub.gateway.admin.workers import workers_router
from inferhub.gateway.desired import AppliedSpec
from inferhub.gateway.health import health_router
from inferhub.gateway.models import models_router
from inferhub.modalities import modalities
from inferhub.pipeline.directory import Directory

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "api.md").read_text()


class Desk:
    """The document is made without calling it."""

    spec = AppliedSpec("", 0)

    async def apply(self, text: str, expected_revision: int | None) -> AppliedSpec:
        raise AssertionError


def served() -> set[str]:
    """The addresses as the gateway's API document has them."""
    app = FastAPI()
    for router in (
        health_router(dict),
        models_router(Directory),
        spec_router(Desk()),
        workers_router(dict),
    ):
        app.include_router(router)
    document = app.openapi()["paths"]
    cold = {f"{verb.upper()} {path}" for path, verbs in document.items() for verb in verbs if verb != "head"}
    return cold | {f"POST {m.path}" for m in modalities().values()}


def test_every_address_is_on_the_page_and_none_is_made_up() -> None:
    assert set(re.findall(r"`((?:GET|POST|PUT|DELETE) /\S+)`", PAGE)) == served()


def test_every_header_of_ours_is_on_the_page_and_none_is_made_up() -> None:
    code = "".join(p.read_text() for p in (ROOT / "src" / "inferhub" / "gateway").rglob("*.py"))
    sent = set(re.findall(r'b"(x-[a-z-]+|retry-after[a-z-]*|openai-[a-z-]+)"', code)) - {"x-accel-buffering"}
    assert set(re.findall(r"`(x-[a-z-]+|retry-after[a-z-]*|openai-[a-z-]+)`", PAGE)) == sent
