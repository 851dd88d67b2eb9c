"""JSON Web Tokens against keys of our own making: what is accepted, and the many things that are not."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from inferhub.core.errors import Unauthenticated, UpstreamFailed
from inferhub.core.tenancy import ROLE_SCOPES, Issuer, Role, User
from inferhub.gateway import tokens
from inferhub.gateway.tokens import TokenVerifier, check_discovery

ISSUER = "https://id.example/realm"
AUDIENCE = "inferhub"
ENTRY = Issuer(ISSUER, AUDIENCE, "ten_a", "prj_a", Role.ENTERPRISE)


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


KEY, OTHER = rsa_key(), rsa_key()


def published(key: Any, kid: str | None = "k1", **more: Any) -> dict[str, Any]:
    """The public half as a JWKS has it."""
    kinds: tuple[tuple[type, Any], ...] = (
        (rsa.RSAPrivateKey, jwt.algorithms.RSAAlgorithm),
        (ec.EllipticCurvePrivateKey, jwt.algorithms.ECAlgorithm),
        (ed25519.Ed25519PrivateKey, jwt.algorithms.OKPAlgorithm),
    )
    kind = next(algorithm for keys, algorithm in kinds if isinstance(key, keys))
    found: dict[str, Any] = json.loads(kind.to_jwk(key.public_key()))
    found.pop("key_ops", None)
    return {**found, **({} if kid is None else {"kid": kid}), **more}


def claims(**more: Any) -> dict[str, Any]:
    now = int(time.time())
    base = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "iat": now, "exp": now + 600}
    return {name: value for name, value in {**base, **more}.items() if value is not None}


def token(key: Any = KEY, alg: str = "RS256", kid: str | None = "k1", **more: Any) -> str:
    return jwt.encode(claims(**more), key, alg, headers={} if kid is None else {"kid": kid})


class Site:
    """The issuer's two documents, and how often each was asked for."""

    def __init__(self, *keys: Mapping[str, Any], **about: Any) -> None:
        self.keys: Any = list(keys)
        self.about: Any = {"issuer": ISSUER, "jwks_uri": f"{ISSUER}/keys", **about}
        self.asked: list[str] = []
        self.is_down = False

    async def fetch(self, url: str) -> bytes:
        self.asked.append(url)
        if self.is_down:
            raise UpstreamFailed("down")
        return json.dumps(self.about if "well-known" in url else {"keys": self.keys}).encode()


def verifier(site: Site, *users: User, entry: Issuer = ENTRY) -> TokenVerifier:
    made = TokenVerifier(site.fetch)
    made.configure([entry], users, frozenset())
    return made


def user(**more: Any) -> User:
    base = {"id": "usr_1", "tenant_id": "ten_b", "project_id": "prj_b", "issuer": ISSUER, "subject": "ada"}
    return User(**{**base, "name": "Ada", "role": Role.TENANT_ADMIN, "created_at": 0, **more})


async def test_everybody_of_the_issuer_is_what_its_entry_says() -> None:
    check = verifier(Site(published(KEY)))
    found = await check.principal(token())
    assert (found.tenant_id, found.project_id, found.role) == ("ten_a", "prj_a", Role.ENTERPRISE)
    assert found.scopes == ROLE_SCOPES[Role.ENTERPRISE]
    assert found.key_id.startswith("usr_")
    # The same person whichever token, and nobody else.
    assert (await check.principal(token(jti="2"))).key_id == found.key_id
    assert (await check.principal(token(sub="eve"))).key_id != found.key_id


async def test_a_user_that_an_admin_made_is_what_the_admin_said() -> None:
    found = await verifier(Site(published(KEY)), user()).principal(token())
    assert (found.key_id, found.tenant_id, found.role) == ("usr_1", "ten_b", Role.TENANT_ADMIN)


async def test_without_a_role_only_known_users_are_admitted() -> None:
    entry = Issuer(ISSUER, AUDIENCE)
    check = verifier(Site(published(KEY)), user(), entry=entry)
    assert (await check.principal(token())).key_id == "usr_1"
    with pytest.raises(Unauthenticated, match="no user was made"):
        await check.principal(token(sub="eve"))


@pytest.mark.parametrize(
    ("key", "alg"),
    [
        (KEY, "RS256"),
        (KEY, "RS512"),
        (KEY, "PS256"),
        (ec.generate_private_key(ec.SECP256R1()), "ES256"),
        (ec.generate_private_key(ec.SECP384R1()), "ES384"),
        (ed25519.Ed25519PrivateKey.generate(), "EdDSA"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_every_usual_signature_is_checked_by_a_key_without_or_with_its_algorithm(
    key: Any, alg: str
) -> None:
    for more in ({}, {"alg": alg}):
        check = verifier(Site(published(key, **more)))
        good = token(key, alg)
        assert (await check.principal(good)).role is Role.ENTERPRISE
        head, body, signature = good.split(".")
        for bad in (f"{head}.{body}.{flipped(signature)}", f"{head}.{flipped(body)}.{signature}"):
            with pytest.raises(Unauthenticated):
                await check.principal(bad)


async def test_a_key_is_held_to_the_algorithm_it_was_published_for() -> None:
    check = verifier(Site(published(KEY, alg="RS256")))
    with pytest.raises(Unauthenticated):
        await check.principal(token(alg="RS512"))


def flipped(segment: str) -> str:
    middle = len(segment) // 2
    return segment[:middle] + ("A" if segment[middle] != "A" else "B") + segment[middle + 1 :]


def coded(part: Any) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def forged(header: Mapping[str, Any], body: Any = None, signature: bytes = b"x") -> str:
    return f"{coded(header)}.{coded(claims() if body is None else body)}.{coded(signature)}"


def signed_with_the_public_key() -> str:
    pem = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    body = f"{coded({'alg': 'HS256', 'kid': 'k1', 'typ': 'JWT'})}.{coded(claims())}"
    return f"{body}.{coded(hmac.new(pem, body.encode(), hashlib.sha256).digest())}"


NOW = int(time.time())
BAD: Mapping[str, Callable[[], str]] = {
    "wrong audience": lambda: token(aud="another"),
    "no audience": lambda: token(aud=None),
    "another issuer": lambda: token(iss="https://evil.example"),
    "issuer with a slash more": lambda: token(iss=ISSUER + "/"),
    "no issuer": lambda: token(iss=None),
    "an issuer that is no text": lambda: forged({"alg": "RS256", "kid": "k1"}, {"iss": {"x": 1}}),
    "no subject": lambda: token(sub=None),
    "a subject that is no text": lambda: jwt.encode(
        claims(sub=None) | {"sub": 7}, KEY, "RS256", {"kid": "k1"}
    ),
    "expired": lambda: token(exp=NOW - 120),
    "never expiring": lambda: token(exp=None),
    "expiring at infinity": lambda: token(exp=float("inf")),
    "expiring at a word": lambda: token(exp="tomorrow"),
    "not yet valid": lambda: token(nbf=NOW + 3600),
    "issued in the future": lambda: token(iat=NOW + 3600),
    "another key under the id": lambda: token(OTHER),
    "unknown key id": lambda: token(kid="k9"),
    "alg none": lambda: forged({"alg": "none", "kid": "k1"}, signature=b""),
    "alg None": lambda: forged({"alg": "None", "kid": "k1"}, signature=b""),
    "no alg": lambda: forged({"kid": "k1"}),
    "alg is a list": lambda: forged({"alg": ["RS256"], "kid": "k1"}),
    "HS256 with the public key": signed_with_the_public_key,
    "key id is a number": lambda: forged({"alg": "RS256", "kid": 1}),
    "key id is a path": lambda: token(kid="../../etc/passwd"),
    "unknown critical extension": lambda: forged(
        {"alg": "RS256", "kid": "k1", "crit": ["b64"], "b64": False}
    ),
    "key inside the token": lambda: jwt.encode(
        claims(), OTHER, "RS256", {"kid": "k9", "jwk": published(OTHER)}
    ),
    "key at an address in the token": lambda: (
        token(OTHER, kid="k9")
        and jwt.encode(claims(), OTHER, "RS256", {"kid": "k9", "jku": "https://evil.example/keys"})
    ),
    "no signature": lambda: token().rpartition(".")[0] + ".",
    "claims are a list": lambda: forged({"alg": "RS256", "kid": "k1"}, []),
    "claims are deep": lambda: forged({"alg": "RS256", "kid": "k1"}, b"[" * 9000),
    "claims are not UTF-8": lambda: forged({"alg": "RS256", "kid": "k1"}, b"\xff\xfe"),
    "header is deep": lambda: f"{coded(b'[' * 9000)}.{coded(claims())}.eA",
    "a number without end": lambda: forged({"alg": "RS256", "kid": "k1"}, b'{"exp": ' + b"9" * 9000 + b"}"),
    "giant": lambda: token(padding="x" * 1_000_000),
    "dots": lambda: "..",
    "empty parts": lambda: "a..b",
    "not base64": lambda: "!.!.!",
    "not ASCII": lambda: "é.é.é",
    "SQL": lambda: "' OR 1=1; --.x.y",
}


@pytest.mark.parametrize("name", BAD)
async def test_what_is_not_a_token_for_us_is_refused_without_a_word_of_it(name: str) -> None:
    site = Site(published(KEY))
    check = verifier(site)
    presented = BAD[name]()
    for _ in range(2):
        with pytest.raises(Unauthenticated) as refusal:
            await check.principal(presented)
        assert refusal.value.http == 401
        assert not any(
            part and part in refusal.value.message for part in presented.split(".") if len(part) > 3
        )
    assert all(url.startswith(ISSUER) for url in site.asked), "a token chose where keys come from"


async def test_a_short_rsa_key_vouches_for_nobody() -> None:
    short = rsa_key(1024)
    with pytest.warns(jwt.warnings.InsecureKeyLengthWarning):
        presented = token(short)
    with pytest.raises(Unauthenticated):
        await verifier(Site(published(short))).principal(presented)


async def test_a_disabled_user_tenant_or_project_is_refused_although_the_token_was_seen() -> None:
    check = verifier(Site(published(KEY)), user())
    presented = token()
    assert (await check.principal(presented)).key_id == "usr_1"
    check.configure([ENTRY], [user(disabled_at=1)], frozenset())
    with pytest.raises(Unauthenticated, match="disabled"):
        await check.principal(presented)
    for gone in ("ten_b", "prj_b"):
        check.configure([ENTRY], [user()], {gone})
        with pytest.raises(Unauthenticated, match="disabled"):
            await check.principal(presented)
    check.configure([], [user()], frozenset())
    with pytest.raises(Unauthenticated, match="issuer"):
        await check.principal(presented)


@pytest.mark.parametrize("left_s", [600, "600", 600.5, -10])
async def test_a_token_is_taken_again_however_it_says_when_it_ends(left_s: Any) -> None:
    """The last one is within the leeway: over for our memory, and not yet for the check."""
    check = verifier(Site(published(KEY)))
    # Now, not when the tests were collected: that may be minutes ago.
    exp = int(time.time()) + float(left_s)
    presented = token(exp=str(int(exp)) if isinstance(left_s, str) else exp)
    for _ in range(3):
        assert (await check.principal(presented)).role is Role.ENTERPRISE


async def test_a_new_key_works_after_one_question_and_a_withdrawn_one_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokens, "_ASK_AGAIN_S", 0.0)
    site = Site(published(KEY, "old"))
    check = verifier(site)
    old = token(kid="old")
    await check.principal(old)
    site.keys = [published(OTHER, "new")]
    assert (await check.principal(token(OTHER, kid="new"))).role is Role.ENTERPRISE
    with pytest.raises(Unauthenticated):
        await check.principal(old)


async def test_a_new_key_is_found_by_tokens_that_name_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_ASK_AGAIN_S", 0.0)
    site = Site(published(KEY, None))
    check = verifier(site)
    await check.principal(token(kid=None))
    with pytest.raises(Unauthenticated):
        await check.principal(token(OTHER, kid=None))
    site.keys = [published(OTHER, None)]
    assert (await check.principal(token(OTHER, kid=None))).role is Role.ENTERPRISE
    with pytest.raises(Unauthenticated):
        await check.principal(token(kid=None))


async def test_an_issuer_that_is_down_leaves_the_known_keys_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_ASK_AGAIN_S", 0.0)
    site = Site(published(KEY))
    check = verifier(site)
    await check.principal(token())
    site.is_down = True
    with pytest.raises(Unauthenticated):
        await check.principal(token(OTHER, kid="new"))
    assert (await check.principal(token(jti="another"))).role is Role.ENTERPRISE
    site.is_down, site.keys = False, "nonsense"
    with pytest.raises(Unauthenticated):
        await check.principal(token(OTHER, kid="new"))
    assert (await check.principal(token(jti="a third"))).role is Role.ENTERPRISE


async def test_unknown_keys_make_no_storm_of_questions() -> None:
    site = Site(published(KEY))
    check = verifier(site)
    presented = [token(OTHER, kid=f"made-up-{number}") for number in range(50)]
    answers = await asyncio.gather(*(check.principal(one) for one in presented), return_exceptions=True)
    assert all(isinstance(answer, Unauthenticated) for answer in answers)
    assert len(site.asked) == 2


async def test_those_who_waited_for_an_issuer_that_hangs_do_not_wait_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    # In this module only: the event loop needs the real one.
    monkeypatch.setattr(tokens, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    asked = 0

    async def hang(url: str) -> bytes:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.01)
        now[0] += 30
        raise UpstreamFailed("it hung")

    check = TokenVerifier(hang)
    check.configure([ENTRY], [], frozenset())
    await asyncio.gather(*(check.principal(token(kid=str(n))) for n in range(5)), return_exceptions=True)
    assert asked == 1


async def test_one_strange_key_spoils_none_of_the_others() -> None:
    strange: list[dict[str, Any]] = [
        {"kty": "oct", "k": coded(b"a shared secret, long enough for it"), "kid": "shared"},
        {"kty": "RSA", "n": "!!", "e": "AQAB", "kid": "broken"},
        {"kty": "OKP", "crv": "X25519", "x": coded(b"x" * 32), "kid": "exchange"},
        {"kty": "quantum", "kid": "future"},
        published(OTHER, "enc", use="enc"),
        published(OTHER, "oaep", alg="RSA-OAEP"),
        {},
    ]
    check = verifier(Site(*strange, published(KEY, "k1", use="sig")))
    assert (await check.principal(token())).role is Role.ENTERPRISE
    for kid in ("enc", "oaep"):
        with pytest.raises(Unauthenticated):
            await check.principal(token(OTHER, kid=kid))
    shared = jwt.encode(claims(), b"a shared secret, long enough for it", "HS256", {"kid": "shared"})
    with pytest.raises(Unauthenticated):
        await check.principal(shared)


async def test_a_token_need_not_name_the_only_key_and_must_name_one_of_two() -> None:
    nameless = token(kid=None)
    assert (await verifier(Site(published(KEY, None))).principal(nameless)).role is Role.ENTERPRISE
    assert (await verifier(Site(published(KEY, "k1"))).principal(nameless)).role is Role.ENTERPRISE
    with pytest.raises(Unauthenticated):
        await verifier(Site(published(KEY, "k1"), published(OTHER, "k2"))).principal(nameless)


@pytest.mark.parametrize(
    ("issuer", "jwks_uri", "is_good"),
    [
        ("https://id.example", "https://id.example/keys", True),
        ("https://id.example", "https://keys.example/of/id", True),
        ("http://127.0.0.1:9", "http://127.0.0.1:9/keys", True),
        ("http://127.0.0.1:9", "https://keys.example/of/id", True),
        ("https://id.example", "http://id.example/keys", False),
        ("http://127.0.0.1:9", "http://127.0.0.1:10/keys", False),
        ("http://127.0.0.1:9", "http://169.254.169.254/latest", False),
        ("http://127.0.0.1:9", "http://127.0.0.1:9@evil.example/keys", False),
        ("https://id.example", "file:///etc/passwd", False),
        ("https://id.example", "/keys", False),
        ("https://id.example", "", False),
    ],
)
async def test_keys_come_over_https_or_from_the_issuer_itself(
    issuer: str, jwks_uri: str, is_good: bool
) -> None:
    if is_good:
        return check_discovery(issuer, issuer, jwks_uri)
    with pytest.raises(UpstreamFailed, match="jwks_uri"):
        check_discovery(issuer, issuer, jwks_uri)
    return None


@pytest.mark.parametrize(
    "about",
    [
        {"issuer": "https://evil.example"},
        {"issuer": ISSUER + "/"},
        {"jwks_uri": 7},
        {"jwks_uri": "http://id.example/keys"},
    ],
)
async def test_a_discovery_document_for_somebody_else_is_not_believed(about: dict[str, Any]) -> None:
    site = Site(published(KEY), **about)
    with pytest.raises(Unauthenticated):
        await verifier(site).principal(token())
    assert len(site.asked) == 1, "the keys were asked for all the same"
