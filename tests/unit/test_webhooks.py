"""The address of a webhook at rest: opened for its tenant only, and readable as far as its host."""

from __future__ import annotations

import pytest

from inferhub.core.tenancy import Tenant
from inferhub.gateway.webhooks import MAX_CHARS, seal, shown, unseal
from inferhub.stores.catalog.checks import check_tenant

PEPPER = b"a pepper of sixteen"
URLS = [
    "https://hooks.example.com/in?token=canary",
    "https://hooks.example.com",
    "http://hooks.example.com:8080/a/b/c",
    "https://[2001:db8::1]/x?sealed=not",
    "https://hooks.example.com/" + "x" * (MAX_CHARS - 26),
]


@pytest.mark.parametrize("url", URLS, ids=lambda url: url[:40])
def test_what_is_sealed_opens_for_its_tenant_only(url: str) -> None:
    stored = seal(url, PEPPER, "ten_a")
    assert "canary" not in stored
    assert stored != seal(url, PEPPER, "ten_a"), "two copies tell that they are the same"
    assert unseal(stored, PEPPER, "ten_a") == url
    assert unseal(stored, PEPPER, "ten_b") != url
    assert unseal(stored, b"another pepper", "ten_a") != url
    assert unseal(stored.replace("example", "exemple"), PEPPER, "ten_a") != url.replace(
        "example", "exemple"
    ) or ("example" not in url)
    check_tenant(Tenant("ten_a", "A", 0, None, stored))
    assert shown(stored) == shown(url)
    assert shown(url).endswith("/…")


@pytest.mark.parametrize(
    "stored", [*URLS[:3], "https://a.example/?sealed=", "https://a.example/?sealed=ü!", "x"]
)
def test_what_was_never_sealed_is_taken_as_it_is(stored: str) -> None:
    assert unseal(stored, PEPPER, "ten_a") == stored
