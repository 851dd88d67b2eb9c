"""What every catalog must do, on a real SQLite file and a real PostgreSQL server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inferhub.core.audit import Act
from inferhub.core.clock import new_id
from inferhub.core.errors import Conflict, InferHubError, Invalid, NotFound, SetupError
from inferhub.core.quota import Quota, Unit, Window
from inferhub.core.tenancy import DEFAULT_PROJECT, DEFAULT_TENANT, ApiKey, Project, Role, Tenant, User
from inferhub.stores import open_catalog
from inferhub.stores.catalog import base
from inferhub.stores.catalog.base import Catalog
from inferhub.stores.catalog.keys import KeyRing, issue, reissue

PEPPER = b"0123456789abcdef"
ACT = Act("cli", "test.act", "anything")
NOW = int(time.time())
HOSTILE = ["' OR 1=1 --", "", "\x00", "x" * 1_000_000, "ten_\x00", "'; DROP TABLE tenants; --", "\ud800", "ü"]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/catalog.db"
    fresh: str = request.getfixturevalue("postgres").fresh()
    return fresh


@pytest.fixture
async def catalog(url: str) -> AsyncIterator[Catalog]:
    catalog = await open_catalog(url)
    yield catalog
    await catalog.close()


def tenant(name: str = "acme", **more: Any) -> Tenant:
    return Tenant(new_id("ten"), name, NOW + 1000, **more)  # after the default one


def project(tenant_id: str, name: str = "web") -> Project:
    return Project(new_id("prj"), tenant_id, name, NOW + 1000)


def user(tenant_id: str, project_id: str, subject: str = "alice") -> User:
    return User(new_id("usr"), tenant_id, project_id, "https://id.example", subject, "Alice", Role.FREE, NOW)


def quota(subject_id: str, tenant_id: str = DEFAULT_TENANT, level: Any = "tenant", **more: Any) -> Quota:
    made = Quota(
        new_id("quo"), tenant_id, level, subject_id, Unit.REQUESTS, Window.MINUTE, 60, created_at=NOW
    )
    return replace(made, **more)


async def acme(catalog: Catalog) -> tuple[Tenant, Project, ApiKey]:
    """A second tenant with a project and a key of its own."""
    owner = tenant()
    part = project(owner.id)
    key = issue("theirs", Role.FREE, PEPPER, tenant_id=owner.id, project_id=part.id)[1]
    await catalog.create_tenant(owner, ACT)
    await catalog.create_project(part, ACT)
    await catalog.create_key(key, ACT)
    return owner, part, key


async def everything(catalog: Catalog) -> tuple[object, ...]:
    return (
        await catalog.tenants(),
        await catalog.projects(),
        await catalog.users(),
        await catalog.keys(),
        await catalog.quotas(),
        await catalog.spec(),
        await catalog.revision(),
        await catalog.audit(limit=1000),
    )


async def refused(catalog: Catalog, kind: type[InferHubError], change: Awaitable[object]) -> InferHubError:
    """The error, after seeing that it left everything as it was."""
    before = await everything(catalog)
    with pytest.raises(kind) as caught:
        await change
    assert type(caught.value) is kind
    assert len(caught.value.message) < 1000
    assert await everything(catalog) == before
    return caught.value


async def test_a_new_catalog_has_the_default_tenant_and_nothing_else(catalog: Catalog) -> None:
    (owner,), (part,) = await catalog.tenants(), await catalog.projects()
    assert (owner.id, owner.name, owner.disabled_at) == (DEFAULT_TENANT, "default", None)
    assert (part.id, part.tenant_id) == (DEFAULT_PROJECT, DEFAULT_TENANT)
    assert (await everything(catalog))[2:] == ((), (), (), None, 0, ())
    assert await catalog.verify_audit() == 0


async def test_what_is_stored_is_what_was_given(catalog: Catalog) -> None:
    owner = tenant("Ünïcode ≤ 100 %_", webhook_url="https://hooks.example/x?y=%20")
    part = project(owner.id, 'it\'s "quoted"; --')
    person = replace(user(owner.id, part.id), role=Role.TENANT_ADMIN)
    key = issue(
        "all of it",
        Role.TENANT_ADMIN,
        PEPPER,
        tenant_id=owner.id,
        project_id=part.id,
        scopes=["models:read", "admin:keys", "inference:embedding"],
        models=["llama-*", "vendor/x:1"],
        expires_at=NOW + 10**6,
    )[1]
    limits = [quota(owner.id, owner.id), quota(part.id, owner.id, "project"), quota(key.id, owner.id, "key")]
    money = quota(owner.id, owner.id, unit=Unit.USD, window=Window.MONTH, limit=10**18, mode="exact")
    await catalog.create_tenant(owner, ACT)
    await catalog.create_project(part, ACT)
    await catalog.create_user(person, ACT)
    await catalog.create_key(key, ACT)
    for limit in (*limits, money):
        assert await catalog.set_quota(limit, ACT) == limit
    assert (await catalog.tenants())[1:] == (owner,)
    assert (await catalog.projects())[1:] == (part,)
    assert await catalog.users() == (person,)
    assert await catalog.keys() == (key,)
    assert set(await catalog.quotas()) == {*limits, money}


async def test_tenants_projects_and_users_are_changed(catalog: Catalog) -> None:
    owner, part, _ = await acme(catalog)
    person = user(owner.id, part.id)
    await catalog.create_user(person, ACT)
    owner = replace(owner, name="acme 2", disabled_at=NOW, webhook_url="http://h.example/")
    part = replace(part, name="web 2", disabled_at=NOW)
    person = replace(person, name="Bob", role=Role.TENANT_ADMIN, subject="bob", disabled_at=NOW)
    await catalog.replace_tenant(owner, ACT)
    await catalog.replace_project(part, ACT)
    await catalog.replace_user(person, ACT)
    assert (await catalog.tenants())[1] == owner
    assert (await catalog.projects())[1] == part
    assert await catalog.users() == (person,)
    await catalog.replace_tenant(replace(owner, disabled_at=None), ACT)
    assert (await catalog.tenants())[1].disabled_at is None


async def test_what_is_taken_is_a_conflict(catalog: Catalog) -> None:
    owner, part, key = await acme(catalog)
    other = tenant("other")
    person = user(owner.id, part.id)
    await catalog.create_tenant(other, ACT)
    await catalog.create_project(project(other.id, part.name), ACT)  # taken only within a tenant
    await catalog.create_user(person, ACT)
    for taken in (
        catalog.create_tenant(tenant(owner.name), ACT),
        catalog.create_tenant(replace(tenant("free"), id=owner.id), ACT),
        catalog.replace_tenant(replace(other, name=owner.name), ACT),
        catalog.create_project(project(owner.id, part.name), ACT),
        catalog.create_project(replace(project(other.id, "free"), id=part.id), ACT),
        catalog.create_user(replace(user(owner.id, part.id), name="Eve"), ACT),
        catalog.create_user(replace(person, subject="eve"), ACT),
        catalog.create_key(replace(key, name="admin", role=Role.ADMIN), ACT),
    ):
        assert "exists already" in (await refused(catalog, Conflict, taken)).message


async def test_what_is_not_there_or_another_tenants_is_not_found(catalog: Catalog) -> None:
    owner, part, key = await acme(catalog)
    mine = issue("mine", Role.FREE, PEPPER)[1]
    await catalog.create_key(mine, ACT)
    for change, param in (
        (catalog.replace_tenant(tenant("nobody"), ACT), "id"),
        (catalog.replace_project(project(owner.id, "nowhere"), ACT), "id"),
        (catalog.replace_project(replace(part, tenant_id=DEFAULT_TENANT), ACT), "id"),
        (catalog.replace_user(user(owner.id, part.id), ACT), "id"),
        (catalog.create_project(project("ten_none"), ACT), "tenant_id"),
        (catalog.create_user(user(DEFAULT_TENANT, part.id), ACT), "project_id"),
        (catalog.create_user(user("ten_none", part.id), ACT), "tenant_id"),
        (catalog.create_key(issue("x", Role.FREE, PEPPER, project_id=part.id)[1], ACT), "project_id"),
        (catalog.create_key(issue("x", Role.FREE, PEPPER, tenant_id=owner.id)[1], ACT), "project_id"),
        (catalog.set_quota(quota("ten_none", "ten_none"), ACT), "tenant_id"),
        (catalog.set_quota(quota(owner.id), ACT), "subject_id"),
        (catalog.set_quota(quota(part.id, level="project"), ACT), "subject_id"),
        (catalog.set_quota(quota(key.id, level="key"), ACT), "subject_id"),
        (catalog.set_quota(quota(mine.id, owner.id, "key"), ACT), "subject_id"),
        (catalog.delete_quota("quo_none", ACT), "id"),
    ):
        assert (await refused(catalog, NotFound, change)).param == param


@pytest.mark.parametrize("text", HOSTILE)
async def test_hostile_ids_are_not_found_or_refused(catalog: Catalog, text: str) -> None:
    _, _, key = await acme(catalog)
    for missing in (
        catalog.revoke_key(text, ACT),
        catalog.rotate_key(text, reissue(key, PEPPER)[1], NOW, ACT),
        catalog.delete_quota(text, ACT),
    ):
        await refused(catalog, NotFound, missing)
    await refused(catalog, Invalid, catalog.set_quota(quota(text), ACT))
    await refused(catalog, Invalid, catalog.replace_tenant(replace(tenant(), id=text), ACT))
    assert await catalog.audit(tenant_id=text) == ()
    await catalog.note_key_use({text: NOW})
    assert (await catalog.keys())[0].last_used_at is None


@pytest.mark.parametrize(
    "text", ["", " ", " a", "a\x00b", "x" * 101, "x" * 1_000_000, "a\nb", "\ud800", "a\u202eb"]
)
async def test_unusable_names_are_refused_with_their_field(catalog: Catalog, text: str) -> None:
    owner, part, key = await acme(catalog)
    for change, param in (
        (catalog.create_tenant(tenant(text), ACT), "name"),
        (catalog.create_project(project(owner.id, text), ACT), "name"),
        (catalog.create_user(replace(user(owner.id, part.id), name=text), ACT), "name"),
        (catalog.create_key(replace(key, name=text), ACT), "name"),
    ):
        assert (await refused(catalog, Invalid, change)).param == param


async def test_other_bad_fields_are_refused_by_name(catalog: Catalog) -> None:
    owner, part, key = await acme(catalog)
    person = user(owner.id, part.id)
    for change, param in (
        (catalog.create_tenant(tenant(webhook_url="ftp://x/"), ACT), "webhook_url"),
        (catalog.create_tenant(tenant(webhook_url="https://user:pw@x/"), ACT), "webhook_url"),
        (catalog.create_tenant(tenant(webhook_url="https://[x"), ACT), "webhook_url"),
        (catalog.create_tenant(replace(tenant(), created_at=10**30), ACT), "created_at"),
        (catalog.create_tenant(tenant(disabled_at=-1), ACT), "disabled_at"),
        (catalog.create_tenant(replace(tenant(), id="prj_x"), ACT), "id"),
        (catalog.create_user(replace(person, issuer="a\x00"), ACT), "issuer"),
        (catalog.create_user(replace(person, subject="x" * 256), ACT), "subject"),
        (catalog.create_key(replace(key, id="ih_short"), ACT), "id"),
        (catalog.create_key(replace(key, digest=b"short"), ACT), "digest"),
        (catalog.create_key(replace(key, scopes=frozenset({"admin:keys"})), ACT), "scopes"),
        (catalog.create_key(replace(key, models=frozenset({"a b"})), ACT), "models"),
        (catalog.note_key_use({key.id: 2**70}), "used_at"),
        (catalog.rotate_key(key.id, reissue(key, PEPPER)[1], NOW * 1000, ACT), "overlap_until"),
        (catalog.replace_spec("a\x00b", 0, ACT), "spec"),
        (catalog.audit(limit=0), "limit"),
        (catalog.audit(limit=10_000), "limit"),
    ):
        assert (await refused(catalog, Invalid, change)).param == param


@pytest.mark.parametrize(
    ("param", "wrong"),
    [
        *[("limit", limit) for limit in (0, -1, 10**15 + 1, 2**70, 1.5, True, "60", None)],
        ("unit", "token"),
        ("window", "hour"),
        ("window", Window.NOW),
        ("level", "user"),
        ("mode", "fast"),
        ("subject_id", "prj_x"),
        ("id", "x"),
    ],
)
async def test_absurd_quotas_are_refused(catalog: Catalog, param: str, wrong: Any) -> None:
    made = replace(quota(DEFAULT_TENANT), **{param: wrong})
    assert (await refused(catalog, Invalid, catalog.set_quota(made, ACT))).param == param


@pytest.mark.parametrize(
    "act",
    [
        replace(ACT, actor=""),
        replace(ACT, action="a\x00"),
        replace(ACT, target="x" * 201),
        replace(ACT, tenant_id="x"),
        replace(ACT, request_id="a\nb"),
        replace(ACT, detail={"a": "\x00"}),
        replace(ACT, detail={"a": "x" * 2001}),
        replace(ACT, detail={str(i): "" for i in range(33)}),
    ],
)
async def test_an_act_that_cannot_be_written_down_does_not_happen(catalog: Catalog, act: Act) -> None:
    await refused(catalog, Invalid, catalog.create_tenant(tenant(), act))
    await refused(catalog, Invalid, catalog.record(act))


async def test_the_default_tenant_cannot_be_disabled(catalog: Catalog) -> None:
    (owner,), (part,) = await catalog.tenants(), await catalog.projects()
    await refused(catalog, Conflict, catalog.replace_tenant(replace(owner, disabled_at=NOW), ACT))
    await refused(catalog, Conflict, catalog.replace_project(replace(part, disabled_at=NOW), ACT))
    await catalog.replace_tenant(replace(owner, name="we"), ACT)


async def test_everything_has_a_most_number(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, part, key = await acme(catalog)
    await catalog.create_user(user(owner.id, part.id), ACT)
    await catalog.set_quota(quota(owner.id, owner.id), ACT)
    for most, present, change in (
        ("MAX_TENANTS", 2, catalog.create_tenant(tenant("more"), ACT)),
        ("MAX_PROJECTS", 2, catalog.create_project(project(owner.id, "more"), ACT)),
        ("MAX_USERS", 1, catalog.create_user(user(owner.id, part.id, "more"), ACT)),
        ("MAX_KEYS", 1, catalog.create_key(issue("more", Role.FREE, PEPPER)[1], ACT)),
        ("MAX_KEYS", 1, catalog.rotate_key(key.id, reissue(key, PEPPER)[1], NOW, ACT)),
        ("MAX_QUOTAS", 1, catalog.set_quota(quota(part.id, owner.id, "project"), ACT)),
    ):
        assert getattr(base, most) >= 10_000
        with monkeypatch.context() as patch:
            patch.setattr(base, most, present)
            assert f"There are {present} " in (await refused(catalog, SetupError, change)).message
    await catalog.set_quota(quota(owner.id, owner.id, limit=5), ACT)  # replacing takes no room


async def test_keys_are_revoked_for_good(catalog: Catalog) -> None:
    issued = [issue(f"key {role}", role, PEPPER, now=i) for i, role in enumerate(Role)]
    for _, key in reversed(issued):
        await catalog.create_key(key, ACT)
    assert await catalog.keys() == tuple(key for _, key in issued)
    revoked = await catalog.revoke_key(issued[0][1].id, ACT)
    assert revoked.revoked_at is not None
    assert await catalog.revoke_key(revoked.id, ACT) == revoked
    ring = KeyRing(await catalog.keys(), PEPPER)
    assert [ring.find(plaintext) is not None for plaintext, _ in issued] == [False, True, True, True]


async def test_a_key_is_rotated_with_overlap(catalog: Catalog) -> None:
    plaintext, old = issue("ci", Role.FREE, PEPPER, models=["a*"])
    await catalog.create_key(old, ACT)
    new_plaintext, new = reissue(old, PEPPER)
    rotated = await catalog.rotate_key(old.id, new, NOW + 10**6, ACT)
    assert rotated == replace(old, rotated_to=new.id, expires_at=NOW + 10**6)
    assert set(await catalog.keys()) == {rotated, new}
    ring = KeyRing(await catalog.keys(), PEPPER)
    assert (ring.find(plaintext), ring.find(new_plaintext)) == (rotated, new)
    twice = catalog.rotate_key(old.id, reissue(old, PEPPER)[1], NOW + 10**6, ACT)
    assert new.id in (await refused(catalog, Conflict, twice)).message

    newest = reissue(new, PEPPER)[1]
    await catalog.rotate_key(new.id, newest, 0, ACT)  # at once
    assert KeyRing(await catalog.keys(), PEPPER).find(new_plaintext) is None
    await catalog.revoke_key(newest.id, ACT)
    revoked = catalog.rotate_key(newest.id, reissue(newest, PEPPER)[1], NOW, ACT)
    assert "revoked" in (await refused(catalog, Conflict, revoked)).message


async def test_rotation_never_lengthens_a_life_nor_crosses_a_border(catalog: Catalog) -> None:
    owner, part, _ = await acme(catalog)
    old = issue("ci", Role.FREE, PEPPER, expires_at=NOW + 10**6)[1]
    expired = issue("old", Role.FREE, PEPPER, now=NOW - 100, expires_at=NOW - 50)[1]
    await catalog.create_key(old, ACT)
    await catalog.create_key(expired, ACT)
    late = catalog.rotate_key(expired.id, reissue(expired, PEPPER)[1], NOW + 10**6, ACT)
    assert "expired" in (await refused(catalog, Conflict, late)).message
    foreign = replace(reissue(old, PEPPER)[1], tenant_id=owner.id, project_id=part.id)
    await refused(catalog, Invalid, catalog.rotate_key(old.id, foreign, NOW, ACT))
    taken = replace(reissue(old, PEPPER)[1], id=expired.id)
    await refused(catalog, Conflict, catalog.rotate_key(old.id, taken, NOW, ACT))
    assert (
        await catalog.rotate_key(old.id, reissue(old, PEPPER)[1], NOW + 2 * 10**6, ACT)
    ).expires_at == NOW + 10**6


async def test_the_use_of_keys_is_noted_without_a_trace(catalog: Catalog) -> None:
    keys = [issue(f"{i}", Role.FREE, PEPPER, now=i)[1] for i in range(3)]
    for key in keys:
        await catalog.create_key(key, ACT)
    before = (await catalog.revision(), await catalog.audit())
    await catalog.note_key_use({})
    await catalog.note_key_use({keys[0].id: 100, keys[1].id: 200, "ih_unknown00000": 300})
    await catalog.note_key_use({keys[0].id: 50, keys[1].id: 250})
    assert [key.last_used_at for key in await catalog.keys()] == [100, 250, None]
    await catalog.note_key_use({f"ih_{i:012}": NOW for i in range(2500)})
    assert (await catalog.revision(), await catalog.audit()) == before


async def test_gateways_that_note_the_same_keys_at_once_do_not_block_each_other(url: str) -> None:
    catalogs = [await open_catalog(url) for _ in range(3)]
    keys = [issue("k", Role.FREE, PEPPER)[1] for _ in range(30)]
    for key in keys:
        await catalogs[0].create_key(key, ACT)
    notes = [
        catalog.note_key_use({key.id: NOW + i for key in (keys if i % 2 else keys[::-1])})
        for i, catalog in enumerate(catalogs * 5)
    ]
    await asyncio.gather(*notes)
    assert {key.last_used_at for key in await catalogs[0].keys()} == {NOW + 14}
    for catalog in catalogs:
        await catalog.close()


async def test_a_quota_is_replaced_in_its_place(catalog: Catalog) -> None:
    first = await catalog.set_quota(quota(DEFAULT_TENANT), ACT)
    again = await catalog.set_quota(quota(DEFAULT_TENANT, limit=5, mode="lease", created_at=NOW + 9), ACT)
    assert again == replace(first, limit=5, mode="lease")
    daily = await catalog.set_quota(quota(DEFAULT_TENANT, window=Window.DAY), ACT)
    assert set(await catalog.quotas()) == {again, daily}
    assert await catalog.delete_quota(first.id, ACT) == again
    assert await catalog.quotas() == (daily,)
    await refused(
        catalog,
        Conflict,
        catalog.set_quota(replace(quota(DEFAULT_PROJECT, level="project"), id=daily.id), ACT),
    )


async def test_spec_is_compared_and_set(catalog: Catalog) -> None:
    first = await catalog.replace_spec("models: [] # ${KEY}\n\tü", 0, ACT)
    assert first == await catalog.spec()
    assert (first.text, first.revision) == ("models: [] # ${KEY}\n\tü", 1)
    second = await catalog.replace_spec("models: []", 1, ACT)
    assert (await catalog.spec(), second.revision) == (second, 2)
    for stale in (0, 1, 3, -1):
        error = await refused(catalog, Conflict, catalog.replace_spec("lost", stale, ACT))
        assert f"revision 2, not {stale}" in error.message


async def test_of_many_writers_with_one_expectation_one_wins(url: str) -> None:
    catalogs = [await open_catalog(url) for _ in range(3)]

    async def attempt(i: int) -> int:
        try:
            return (await catalogs[i % 3].replace_spec(str(i), 0, ACT)).revision
        except Conflict:
            return 0

    assert sorted(await asyncio.gather(*map(attempt, range(12)))) == [0] * 11 + [1]
    assert await catalogs[0].verify_audit() == 1
    for catalog in catalogs:
        await catalog.close()


async def test_every_change_is_seen_in_the_revision_by_another_connection(url: str) -> None:
    catalog, other = await open_catalog(url), await open_catalog(url)
    key = issue("a", Role.FREE, PEPPER)[1]
    part = project(DEFAULT_TENANT)
    changes: list[Callable[[], Awaitable[object]]] = [
        lambda: catalog.create_tenant(tenant(), ACT),
        lambda: catalog.create_project(part, ACT),
        lambda: catalog.replace_project(replace(part, name="x"), ACT),
        lambda: catalog.create_key(key, ACT),
        lambda: catalog.rotate_key(key.id, reissue(key, PEPPER)[1], NOW, ACT),
        lambda: catalog.revoke_key(key.id, ACT),
        lambda: catalog.set_quota(quota(DEFAULT_TENANT), ACT),
        lambda: catalog.replace_spec("x", 0, ACT),
    ]
    for i, change in enumerate(changes):
        assert await other.revision() == i
        await change()
    assert await other.revision() == len(changes) == await other.verify_audit()
    await catalog.close()
    await other.close()


async def test_another_pepper_is_noticed(catalog: Catalog) -> None:
    await catalog.check_pepper(PEPPER)
    await catalog.check_pepper(PEPPER)
    with pytest.raises(SetupError, match="INFERHUB_PEPPER"):
        await catalog.check_pepper(b"another pepper...")


async def test_a_cancelled_change_happens_whole_or_not_at_all(catalog: Catalog) -> None:
    for delay in range(40):
        task = asyncio.create_task(catalog.create_key(issue(f"cut {delay}", Role.FREE, PEPPER)[1], ACT))
        for _ in range(delay):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    key = issue("after", Role.FREE, PEPPER)[1]
    await catalog.create_key(key, ACT)
    keys = await catalog.keys()
    assert key in keys
    assert await catalog.revision() == len(keys) == await catalog.verify_audit()
