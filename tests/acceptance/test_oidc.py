"""People sign in with tokens of a real OpenID Connect issuer, a process of its own."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
import socket
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from inferhub.testing.parties import ADMIN, create, make_party, refused, rows
from inferhub.testing.raw_http import Answer
from inferhub.testing.servers import Hub, Process, environment, fetch, running_hub, wait_for
from inferhub.testing.talk import Talk

AUDIENCE = "inferhub-console"
SPEC = """\
models:
  - {{name: echo, backend: echo, slots: 64}}
issuers:
  - {{issuer: "{open}", audience: {audience}, role: enterprise}}
  - {{issuer: "{closed}", audience: {audience}}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def issuer(folder: Path, port: int) -> Iterator[str]:
    """Another process on the same port has other keys."""
    url = f"http://127.0.0.1:{port}"
    arguments = [sys.executable, "-W", "ignore", "-m", "oidc_provider_mock", "--port", str(port)]
    with Process(arguments, folder, f"issuer-{port}-{secrets.token_hex(2)}", environment({})):
        wait_for(lambda: answers(url), 60, f"the issuer {url}")
        yield url


def answers(url: str) -> bool:
    try:
        return fetch(f"{url}/.well-known/openid-configuration")[0] == 200
    except OSError:
        return False


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def sign_in(url: str, subject: str, audience: str = AUDIENCE) -> str:
    """The whole dance of a browser: a form, a code, and an ID token for it, whose `aud` is the client's id."""
    back = "http://127.0.0.1/back"
    query = {
        "client_id": audience,
        "redirect_uri": back,
        "response_type": "code",
        "scope": "openid",
        "state": "s",
    }
    form = urllib.parse.urlencode({"sub": subject}).encode()
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        with opener.open(f"{url}/oauth2/authorize?{urllib.parse.urlencode(query)}", form) as page:
            raise AssertionError((page.status, page.read()))
    except urllib.error.HTTPError as redirect:
        with redirect:
            assert redirect.code == 302, redirect.read()
            location = redirect.headers["location"]
    code = urllib.parse.parse_qs(urllib.parse.urlsplit(location).query)["code"][0]
    wanted = {"grant_type": "authorization_code", "code": code, "redirect_uri": back, "client_id": audience}
    with opener.open(
        f"{url}/oauth2/token", urllib.parse.urlencode(wanted | {"client_secret": "x"}).encode()
    ) as page:
        token: str = json.loads(page.read())["id_token"]
        return token


@pytest.fixture(scope="module")
def issuers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    folder = tmp_path_factory.mktemp("issuers")
    with issuer(folder, free_port()) as first, issuer(folder, free_port()) as second:
        yield first, second


@pytest.fixture(scope="module")
def hub(issuers: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    spec = SPEC.format(open=issuers[0], closed=issuers[1], audience=AUDIENCE)
    with running_hub("serve", tmp_path_factory.mktemp("oidc"), spec) as running:
        yield running


def as_person(hub: Hub, token: str) -> Talk:
    return Talk(hub.url, token)


async def test_whoever_the_issuer_vouches_for_may_call(hub: Hub, issuers: tuple[str, str]) -> None:
    token = await asyncio.to_thread(sign_in, issuers[0], "ada@example.com")
    claims = jwt.decode(token, options={"verify_signature": False})
    assert (claims["iss"], claims["sub"]) == (issuers[0], "ada@example.com")
    ada = as_person(hub, token)
    for _ in range(2):
        assert (await ada.chat("echo")).status == 200
    assert (await ada.get("/v1/models")).status == 200
    refused(await ada.get(f"{ADMIN}/keys"), 403, "permission_denied")
    # In the ledger she is one and the same caller, under an id that tells nobody her name.
    admin = Talk(hub.url, hub.admin_key)
    deadline_s = time.monotonic() + 20
    while (
        len(
            found := [e for e in await rows(admin, f"{ADMIN}/usage/events") if e["key_id"].startswith("usr_")]
        )
        < 2
    ):
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.05)
    assert len({event["key_id"] for event in found}) == 1
    assert "ada" not in str(found)


async def test_a_user_whom_an_admin_made_has_the_role_and_tenant_he_was_given(
    hub: Hub, issuers: tuple[str, str]
) -> None:
    admin = Talk(hub.url, hub.admin_key)
    token = await asyncio.to_thread(sign_in, issuers[1], "grace")
    grace = as_person(hub, token)
    # This issuer's people are nobody by themselves.
    assert "no user was made" in refused(await grace.get("/v1/models"), 401, "invalid_api_key")
    party = await make_party(admin)
    person = {
        "issuer": issuers[1],
        "subject": "grace",
        "name": "Grace",
        "role": "tenant_admin",
        "tenant_id": party.id,
    }
    user = await create(admin, "users", **person)
    await until(grace, f"{ADMIN}/keys", 200)
    assert {row["tenant_id"] for row in await rows(grace, f"{ADMIN}/keys")} == {party.id}
    made = await create(grace, "projects", name="hers")
    assert made["tenant_id"] == party.id
    acts = await rows(party.admin, f"{ADMIN}/audit")
    assert (acts[0]["actor"], acts[0]["action"]) == (user["id"], "project.create")
    path = f"{ADMIN}/users/{user['id']}"
    assert (await admin.ask("PATCH", path, {}, {"role": "free"})).status == 200
    await until(grace, f"{ADMIN}/keys", 403)
    assert (await admin.ask("PATCH", path, {}, {"disabled": True})).status == 200
    await until(grace, "/v1/models", 401)
    assert (await admin.ask("PATCH", path, {}, {"disabled": False})).status == 200
    await until(grace, "/v1/models", 200)


async def until(talk: Talk, path: str, status: int, within_s: float = 1.0) -> Answer:
    begin = time.monotonic()
    while (answer := await talk.get(path)).status != status:
        assert time.monotonic() - begin < within_s, answer.body
        await asyncio.sleep(0.02)
    return answer


async def test_a_tenants_admin_adds_people_of_its_own_issuer_only(hub: Hub, issuers: tuple[str, str]) -> None:
    admin = Talk(hub.url, hub.admin_key)
    party = await make_party(admin)
    person = {"issuer": issuers[1], "subject": "of the default tenant", "name": "Eve"}
    refused(await party.admin.post(f"{ADMIN}/users", person), 403, "permission_denied", "issuer")
    key = await create(admin, "keys", name="default's", role="tenant_admin")
    made = await create(Talk(hub.url, key["key"]), "users", **person)
    assert made["tenant_id"] == "ten_default"


def coded(part: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


async def test_what_the_issuer_did_not_say_is_refused(hub: Hub, issuers: tuple[str, str]) -> None:
    token = await asyncio.to_thread(sign_in, issuers[0], "mallory")
    head, body, signature = token.split(".")
    claims = jwt.decode(token, options={"verify_signature": False})
    header = jwt.get_unverified_header(token)
    own = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    for name, presented in {
        "for another audience": await asyncio.to_thread(sign_in, issuers[0], "mallory", "another-client"),
        "signed by another": jwt.encode(
            claims, own, "RS256", {k: v for k, v in header.items() if k == "kid"}
        ),
        "an unknown key": jwt.encode(claims, own, "RS256", {"kid": "made-up"}),
        "a shared secret": jwt.encode(claims, "s" * 32, "HS256", {"kid": header.get("kid") or "x"}),
        "unsigned": f"{coded({'alg': 'none'})}.{body}.",
        "another subject": f"{head}.{coded({**claims, 'sub': 'grace'})}.{signature}",
        "another issuer": f"{head}.{coded({**claims, 'iss': issuers[1]})}.{signature}",
        "an issuer of mallory's": f"{head}.{coded({**claims, 'iss': 'https://evil.example'})}.{signature}",
        "a giant": f"{head}.{body}{'A' * 20_000}.{signature}",
        "two tokens": f"{token} {token}",
    }.items():
        answer = await as_person(hub, presented).get("/v1/models")
        refused(answer, 401, "invalid_api_key")
        assert signature[-8:].encode() not in answer.body, name
    assert (await as_person(hub, token).get("/v1/models")).status == 200


async def test_keys_change_at_the_issuer_and_it_may_be_away(tmp_path: Path) -> None:
    port = free_port()
    with contextlib.ExitStack() as stack:
        with issuer(tmp_path, port) as url:
            spec = SPEC.format(open=url, closed="https://id.example", audience=AUDIENCE)
            hub = stack.enter_context(running_hub("serve", tmp_path, spec))
            first = await asyncio.to_thread(sign_in, url, "ada")
            unseen = await asyncio.to_thread(sign_in, url, "grace")
            assert (await as_person(hub, first).get("/v1/models")).status == 200
        assert not answers(url)
        for token in (first, unseen):
            assert (await as_person(hub, token).get("/v1/models")).status == 200, "it needs the issuer"
        # Back again with other keys: the new one is found in seconds, and what the old one signed is over.
        stack.enter_context(issuer(tmp_path, port))
        later = await asyncio.to_thread(sign_in, url, "ada")
        await until(as_person(hub, later), "/v1/models", 200, within_s=10)
        refused(await as_person(hub, first).get("/v1/models"), 401, "invalid_api_key")
