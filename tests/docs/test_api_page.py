"""docs/reference/api.md names every address and every header of our own, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from inferhub.core.quota import WINDOWS, Meter, Reading, Unit
from inferhub.core.tenancy import ROLE_SCOPES, Role
from inferhub.gateway.access import ACCESS, Rule
from inferhub.gateway.app import cold_app
from inferhub.gateway.ratelimit import ratelimit_headers
from inferhub.testing.gateway import gateway_parts

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `((?:GET|POST|PUT|PATCH|DELETE|WS) /\S*)` \| (\S+) \|", re.MULTILINE)
HEADER = r"x-[a-z-]+|retry-after[a-z-]*|openai-[a-z-]+|idempotent-[a-z]+"


def needs(rule: Rule) -> str:
    if rule.scope is None:
        return "—"
    return "`admin`" if rule.platform else f"`{rule.scope}`"


def test_every_address_is_on_the_page_with_what_it_needs_and_none_is_made_up() -> None:
    told = dict(ROW.findall(PAGE))
    assert told == {address.replace(":path}", "}"): needs(rule) for address, rule in ACCESS.items()}
    everywhere = set(re.findall(r"`((?:GET|POST|PUT|PATCH|DELETE|WS) /\S*)`", PAGE))
    assert everywhere == set(told), "an address beside the table"


async def test_the_api_document_has_the_addresses_of_the_page(tmp_path: Path) -> None:
    async with gateway_parts(tmp_path) as parts:
        document = cold_app(parts).openapi()
    listed = {f"{verb.upper()} {path}" for path, verbs in document["paths"].items() for verb in verbs}
    sockets = {address for address in ACCESS if address.startswith("WS ")}
    beside = {"GET /docs", "GET /openapi.json", "GET /admin/usage"} | sockets
    assert set(dict(ROW.findall(PAGE))) - listed == beside
    assert listed <= set(dict(ROW.findall(PAGE)))


def test_every_header_of_ours_is_on_the_page_and_none_is_made_up() -> None:
    code = "".join(
        p.read_text(encoding="utf-8") for p in (ROOT / "src" / "inferhub" / "gateway").rglob("*.py")
    )
    sent = set(re.findall(rf'b?"({HEADER})"', code)) - {"x-accel-buffering"}
    meters = [Meter(f"key:k:{unit}:{WINDOWS[unit][0]}", unit, WINDOWS[unit][0], 1) for unit in Unit]
    made = ratelimit_headers([Reading(meter, 0, 1.0) for meter in meters])
    assert made
    sent |= {name.decode() for name, _ in made}
    assert set(re.findall(rf"`({HEADER})`", PAGE)) == sent


def test_the_roles_on_the_page_are_the_roles_there_are() -> None:
    section = PAGE.partition("## Keys, roles and scopes")[2].partition("\n\n- ")[0]
    for role in Role:
        rows = [line.split("|") for line in section.splitlines() if line.startswith("| `")]
        [row] = [has for _, roles, has, _ in rows if f"`{role.value}`" in roles]
        if role is not Role.ADMIN:
            assert set(re.findall(r"`([a-z]+:[a-z*]+)`", row)) == ROLE_SCOPES[role], role
