"""What the catalog takes: every field of every record, looked at before a database is. Pure.

Called by `sql` on each change and by `keys.issue`. The message names the field and what it may be.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from inferhub.core.audit import Act
from inferhub.core.errors import Invalid
from inferhub.core.quota import WINDOWS, Quota, Unit
from inferhub.core.tenancy import GRANTABLE, ROLE_SCOPES, SCOPES, ApiKey, Project, Role, Tenant, User
from inferhub.settings.nearest import did_you_mean

MAX_NAME_CHARS = 100
MAX_SCOPES = 50
MAX_MODELS = 100
MAX_LIFE_S = 10 * 366 * 24 * 3600
"""Ten years: further off, an expiry is a unit mistaken, most often milliseconds."""
MAX_LIMIT = 10**15
MAX_LIMIT_NANO_USD = 10**18
"""A billion dollars."""
MAX_SPEC_CHARS = 4 * 1024 * 1024

_MAX_MOMENT = 253_402_300_799  # the end of the year 9999
_ID = re.compile(r"[A-Za-z0-9_-]{1,40}")
_KEY_ID = re.compile(r"ih_[0-9A-Za-z]{12}")
_MODEL = re.compile(r"[A-Za-z0-9@][A-Za-z0-9._:/@-]{0,127}\*?|\*")
_MODALITY_SCOPE = re.compile(r"inference:[a-z][a-z0-9_]{0,39}")
_SUBJECTS = {"tenant": "ten_", "project": "prj_", "key": "ih_"}
_MAX_DETAILS = 32


def check_tenant(tenant: Tenant) -> None:
    _check_id(tenant.id, "ten_", "id")
    check_name(tenant.name, "A tenant's name")
    _check_moments(created_at=tenant.created_at, disabled_at=tenant.disabled_at)
    if tenant.webhook_url is not None:
        _check_webhook(tenant.webhook_url)


def check_project(project: Project) -> None:
    _check_id(project.id, "prj_", "id")
    _check_id(project.tenant_id, "ten_", "tenant_id")
    check_name(project.name, "A project's name")
    _check_moments(created_at=project.created_at, disabled_at=project.disabled_at)


def check_user(user: User) -> None:
    _check_id(user.id, "usr_", "id")
    _check_id(user.tenant_id, "ten_", "tenant_id")
    _check_id(user.project_id, "prj_", "project_id")
    _check_text(user.issuer, "issuer", max_chars=500)
    _check_text(user.subject, "subject", max_chars=255)
    check_name(user.name, "A user's name")
    _check_moments(created_at=user.created_at, disabled_at=user.disabled_at)


def check_key(key: ApiKey) -> None:
    """A key as `keys.issue` makes it; what is in the past is not refused here."""
    if not is_key_id(key.id):
        raise Invalid(f"{key.id[:40]!r} is no id of an API key.", param="id")
    check_name(key.name, "A key's name")
    _check_id(key.tenant_id, "ten_", "tenant_id")
    _check_id(key.project_id, "prj_", "project_id")
    if len(key.digest) != 32:
        raise Invalid(f"A key's digest has 32 bytes; got {len(key.digest)}.", param="digest")
    if key.scopes is not None:
        check_scopes(key.scopes, key.role)
    if key.models is not None:
        check_models(key.models)
    _check_moments(
        created_at=key.created_at,
        revoked_at=key.revoked_at,
        expires_at=key.expires_at,
        last_used_at=key.last_used_at,
    )


def check_quota(quota: Quota) -> None:
    _check_id(quota.id, "quo_", "id")
    _check_id(quota.tenant_id, "ten_", "tenant_id")
    if quota.level not in _SUBJECTS:
        raise _not_one_of("level", quota.level, _SUBJECTS)
    _check_id(quota.subject_id, _SUBJECTS[quota.level], "subject_id")
    if quota.unit not in list(Unit):
        raise _not_one_of("unit", quota.unit, list(Unit))
    windows = WINDOWS[Unit(quota.unit)]
    if quota.window not in windows:
        raise _not_one_of("window", quota.window, windows, of=f" for {quota.unit}")
    if quota.mode not in ("auto", "exact", "lease"):
        raise _not_one_of("mode", quota.mode, ("auto", "exact", "lease"))
    most = MAX_LIMIT_NANO_USD if quota.unit == Unit.USD else MAX_LIMIT
    if not _is_whole(quota.limit) or not 1 <= quota.limit <= most:
        counted = " nano-dollars" if quota.unit == Unit.USD else ""
        raise Invalid(
            f"A limit is a whole number from 1 to {most}{counted}; got {_short(quota.limit)}.", param="limit"
        )
    _check_moments(created_at=quota.created_at)


def check_act(act: Act) -> None:
    _check_text(act.actor, "actor", max_chars=100)
    _check_text(act.action, "action", max_chars=100)
    _check_text(act.target, "target", max_chars=200)
    if act.tenant_id is not None:
        _check_id(act.tenant_id, "ten_", "tenant_id")
    if act.request_id is not None:
        _check_text(act.request_id, "request_id", max_chars=200)
    _check_detail(act.detail)


def check_name(name: str, what: str = "A name") -> None:
    if not 1 <= len(name) <= MAX_NAME_CHARS or not name.isprintable() or name != name.strip():
        raise Invalid(
            f"{what} has 1 to {MAX_NAME_CHARS} printable characters and no blank at its ends; "
            f"got {name[:MAX_NAME_CHARS]!r}.",
            param="name",
        )


def check_scopes(scopes: Iterable[str], role: Role, modalities: Iterable[str] | None = None) -> None:
    """Known, and none that the role lacks. Without `modalities`, any name may follow `inference:`."""
    named = set(scopes)
    if not 1 <= len(named) <= MAX_SCOPES:
        raise Invalid(
            f"A key has 1 to {MAX_SCOPES} scopes, or none given for all of its role; got {len(named)}.",
            param="scopes",
        )
    known = set(SCOPES)
    if modalities is not None:
        known = (known - {"inference:chat"}) | {f"inference:{name}" for name in modalities}
    for scope in sorted(named):
        is_modality = modalities is None and _MODALITY_SCOPE.fullmatch(scope)
        if scope not in known and not is_modality:
            raise Invalid(
                f"There is no scope {scope[:40]!r}.{did_you_mean(scope, known)} "
                f"Known: {', '.join(sorted(known))}.",
                param="scopes",
            )
        if not includes(ROLE_SCOPES[role] | GRANTABLE[role], scope):
            raise Invalid(
                f"The role {role.value!r} does not have the scope {scope[:60]!r}, so no key of it can. "
                f"It has: {', '.join(sorted(ROLE_SCOPES[role]))}.",
                param="scopes",
            )


def includes(scopes: frozenset[str], scope: str) -> bool:
    """Whether `scope` is among `scopes`, by itself or under a star."""
    return scope in scopes or f"{scope.partition(':')[0]}:*" in scopes


def check_models(models: Iterable[str]) -> None:
    named = set(models)
    if not 1 <= len(named) <= MAX_MODELS:
        raise Invalid(
            f"A key's list of models has 1 to {MAX_MODELS} names, or is not given for all; got {len(named)}.",
            param="models",
        )
    for name in sorted(named):
        if not _MODEL.fullmatch(name):
            raise Invalid(
                f"{name[:60]!r} cannot be a model: a name has letters, digits and . _ : / @ - only; "
                "a star may end it and stands for anything.",
                param="models",
            )


def check_expiry(expires_at: int, now: int) -> None:
    if not _is_whole(expires_at) or not now < expires_at <= now + MAX_LIFE_S:
        raise Invalid(
            f"expires_at is in Unix seconds, after now ({now}) and within ten years; "
            f"got {_short(expires_at)}.",
            param="expires_at",
        )


def check_overlap(overlap_until: int, now: int) -> None:
    """The past means at once."""
    if not _is_whole(overlap_until) or not 0 <= overlap_until <= now + MAX_LIFE_S:
        raise Invalid(
            f"The overlap ends in Unix seconds, within ten years; got {_short(overlap_until)}.",
            param="overlap_until",
        )


def check_spec(text: str) -> None:
    """Only what a database could not take; `settings.spec` reads what it says."""
    if len(text) > MAX_SPEC_CHARS:
        raise Invalid(f"A spec has at most {MAX_SPEC_CHARS} characters; got {len(text)}.", param="spec")
    if not _is_storable(text):
        raise Invalid("The spec holds a NUL or a lone surrogate, which no text has.", param="spec")


def is_id(text: str) -> bool:
    """Whether `text` can be the id of anything here but a key."""
    return _ID.fullmatch(text) is not None


def is_key_id(text: str) -> bool:
    return _KEY_ID.fullmatch(text) is not None


def check_moment(at: int, param: str) -> None:
    if not _is_whole(at) or not 0 <= at <= _MAX_MOMENT:
        raise Invalid(f"{param} is in Unix seconds, up to the year 9999; got {_short(at)}.", param=param)


def _check_moments(**moments: int | None) -> None:
    for param, at in moments.items():
        if at is not None:
            check_moment(at, param)


def _check_id(value: str, prefix: str, param: str) -> None:
    if not value.startswith(prefix) or not is_id(value):
        raise Invalid(
            f"{param} is {prefix!r} and up to {40 - len(prefix)} letters, digits, _ or -; "
            f"got {value[:60]!r}.",
            param=param,
        )


def _check_text(value: str, param: str, *, max_chars: int) -> None:
    if not 1 <= len(value) <= max_chars or not value.isprintable():
        raise Invalid(
            f"{param} has 1 to {max_chars} printable characters; got {len(value)}: {value[:60]!r}.",
            param=param,
        )


def _check_detail(detail: Mapping[str, str]) -> None:
    if len(detail) > _MAX_DETAILS:
        raise Invalid(f"detail has at most {_MAX_DETAILS} entries; got {len(detail)}.", param="detail")
    for name, value in detail.items():
        if not 1 <= len(name) <= 100 or len(value) > 2000 or not _is_storable(name + value):
            raise Invalid(
                f"An entry of detail has a name of 1 to 100 and a text of up to 2000 characters; "
                f"got {name[:60]!r}: {value[:60]!r}.",
                param="detail",
            )


def _check_webhook(url: str) -> None:
    _check_text(url, "webhook_url", max_chars=2000)
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and " " not in url
        has_login = parts.username is not None or parts.password is not None
    except ValueError:
        is_address, has_login = False, False
    if not is_address or has_login:
        raise Invalid("webhook_url is an http or https address without a login in it.", param="webhook_url")


def _not_one_of(param: str, value: object, names: Iterable[str], *, of: str = "") -> Invalid:
    listed = [str(name) for name in names]
    return Invalid(
        f"{param} is one of {', '.join(listed)}{of}; got {str(value)[:40]!r}."
        f"{did_you_mean(str(value), listed)}",
        param=param,
    )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_storable(text: str) -> bool:
    # PostgreSQL refuses NUL in text, and UTF-8 has no surrogates.
    return "\x00" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


def _short(value: object) -> str:
    return repr(value)[:40]
