"""API keys: their form, their hash, and a look-up that takes anything."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter_ns

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from inferhub.core.clock import unix_s
from inferhub.core.errors import Invalid, SetupError
from inferhub.core.tenancy import ROLE_SCOPES, ApiKey, Principal, Project, Role, Tenant
from inferhub.settings import Settings
from inferhub.stores.catalog.checks import check_scopes
from inferhub.stores.catalog.keys import KeyRing, digest, disabled_ids, issue, principal_of, reissue
from inferhub.stores.catalog.pepper import load_pepper, pepper_file

PEPPER = b"0123456789abcdef"


def test_form_of_a_key() -> None:
    plaintext, key = issue("ci", Role.FREE, PEPPER, now=1234)
    assert re.fullmatch(r"ih_[0-9A-Za-z]{12}_[0-9A-Za-z]{32}", plaintext)
    assert plaintext.startswith(key.id + "_")
    assert (key.name, key.role, key.created_at, key.revoked_at) == ("ci", Role.FREE, 1234, None)
    assert len(key.digest) == 32
    assert plaintext[16:] not in repr(key)
    assert key.digest.hex() not in repr(key)
    assert 62**32 > 2**190


def test_keys_differ() -> None:
    issued = [issue("same", Role.FREE, PEPPER) for _ in range(200)]
    assert len({plaintext for plaintext, _ in issued}) == len({key.id for _, key in issued}) == 200


@pytest.mark.parametrize("name", ["", " ", " a", "a\n", "x" * 101, "a\x00", "\x1b[31m"])
def test_unusable_names_are_refused(name: str) -> None:
    with pytest.raises(Invalid, match="1 to 100 printable"):
        issue(name, Role.FREE, PEPPER)


def test_find() -> None:
    issued = [issue(f"key {i}", role, PEPPER) for i, role in enumerate(Role)]
    ring = KeyRing([key for _, key in issued], PEPPER)
    assert len(ring) == len(Role)
    for plaintext, key in issued:
        assert ring.find(plaintext) == key


def test_a_wrong_secret_another_pepper_and_a_revoked_key_are_not_found() -> None:
    plaintext, key = issue("a", Role.ADMIN, PEPPER)
    other, _ = issue("b", Role.ADMIN, PEPPER)
    ring = KeyRing([key], PEPPER)
    assert ring.find(other) is None
    assert ring.find(plaintext[:15] + other[15:]) is None
    for i, char in enumerate(plaintext):
        changed = plaintext[:i] + ("x" if char != "x" else "y") + plaintext[i + 1 :]
        assert ring.find(changed) is None
    assert KeyRing([key], b"f" * 16).find(plaintext) is None
    revoked = ApiKey(key.id, key.name, key.role, key.digest, key.created_at, revoked_at=1)
    assert KeyRing([revoked], PEPPER).find(plaintext) is None
    assert KeyRing([], PEPPER).find(plaintext) is None


def test_the_placeholder_of_unknown_ids_cannot_be_presented() -> None:
    """Even with the right digest: an empty id never matches."""
    ring = KeyRing([], PEPPER)
    text = "ih_" + "x" * 45
    ring._nobody = ApiKey("", "", Role.ADMIN, digest(text, PEPPER), 0)
    assert ring.find(text) is None


@pytest.mark.parametrize(
    "presented",
    [
        "",
        "ih_",
        "' OR '1'='1",
        "ih_' OR '1'='1' --" + " " * 30,
        "\x00" * 48,
        "ih_000000000000_" + "ä" * 32,
        "ih_000000000000_" + "\ud800" * 32,
        "🔑" * 48,
        "x" * 1_000_000,
        "ih_000000000000_" + "0" * 1_000_000,
    ],
)
def test_hostile_input_is_just_not_found(presented: str) -> None:
    _, key = issue("a", Role.FREE, PEPPER)
    assert KeyRing([key], PEPPER).find(presented) is None


@given(st.text(max_size=60) | st.text(min_size=48, max_size=48))
def test_no_text_breaks_find(presented: str) -> None:
    _, key = issue("a", Role.FREE, PEPPER)
    assert KeyRing([key], PEPPER).find(presented) is None


def test_an_unknown_id_costs_as_much_as_a_wrong_secret() -> None:
    """Medians of interleaved runs, with a wide margin: skipping the hash would be far outside of it."""
    plaintext, key = issue("a", Role.FREE, PEPPER)
    ring = KeyRing([key], PEPPER)
    wrong_secret = plaintext[:-1] + ("x" if plaintext[-1] != "x" else "y")
    unknown_id = "ih_" + "0" * 12 + plaintext[15:]
    took: dict[str, list[int]] = {wrong_secret: [], unknown_id: [], "ih_short": []}
    for _ in range(3000):
        for presented, times in took.items():
            start = perf_counter_ns()
            ring.find(presented)
            times.append(perf_counter_ns() - start)
    wrong, unknown, short = (median(times) for times in took.values())
    assert 0.6 < unknown / wrong < 1.6
    assert short < 0.8 * wrong  # the measurement can tell a skipped hash


def test_pepper_file_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "pepper"
    pepper = pepper_file(path)
    assert len(pepper) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert pepper_file(path) == pepper
    assert [file.name for file in path.parent.iterdir()] == ["pepper"]


def test_the_setting_wins_over_the_file(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, pepper=SecretStr("configured-pepper"))
    assert load_pepper(settings) == b"configured-pepper"
    assert not (tmp_path / "pepper").exists()
    assert load_pepper(Settings(data_dir=tmp_path)) == (tmp_path / "pepper").read_bytes()


def test_a_pepper_that_others_can_read_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "pepper"
    pepper_file(path)
    path.chmod(0o640)
    with pytest.raises(SetupError, match=f"mode 0640.*chmod 600 {path}"):
        pepper_file(path)


@pytest.mark.parametrize("content", [b"", b"short\n", b"x" * 5000])
def test_a_damaged_pepper_is_refused_never_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pepper"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(SetupError, match="16 to 4096"):
        pepper_file(path)
    assert path.read_bytes() == content


def test_a_pepper_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="INFERHUB_PEPPER"):
        pepper_file(tmp_path / "file" / "pepper")
    (tmp_path / "pepper").mkdir(mode=0o700)
    with pytest.raises(SetupError, match="pepper"):
        pepper_file(tmp_path / "pepper")


def test_processes_that_start_at_once_agree_on_the_pepper(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from inferhub.stores.catalog.pepper import pepper_file;"
        "print('up', flush=True); sys.stdin.readline(); print(pepper_file(pathlib.Path(sys.argv[1])).hex())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "data" / "pepper")]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = {process.communicate(timeout=60)[0] for process in processes}
    assert len(answers) == 1
    assert len(answers.pop()) == 129


# --- what a key may do, and until when ----------------------------------------------------------------

NOW = 1_800_000_000


def test_a_key_carries_what_it_was_issued_with() -> None:
    _, key = issue(
        "ci",
        Role.TENANT_ADMIN,
        PEPPER,
        now=NOW,
        tenant_id="ten_x",
        project_id="prj_x",
        scopes=["models:read", "models:read", "inference:embedding", "admin:keys"],
        models=["a", "b-*", "*"],
        expires_at=NOW + 1,
    )
    assert (key.tenant_id, key.project_id, key.expires_at) == ("ten_x", "prj_x", NOW + 1)
    assert key.scopes == {"models:read", "inference:embedding", "admin:keys"}
    assert key.models == {"a", "b-*", "*"}
    assert key.rotated_to is key.last_used_at is None


@pytest.mark.parametrize(
    ("role", "scope", "says"),
    [
        (Role.FREE, "model:read", "Did you mean 'models:read'?"),
        (Role.FREE, "admin:keys", "does not have the scope 'admin:keys'"),
        (Role.ENTERPRISE, "admin:*", "does not have"),
        (Role.TENANT_ADMIN, "admin:*", "does not have"),
        (Role.TENANT_ADMIN, "admin:platform", "does not have"),
        (Role.ADMIN, "*", "no scope '*'"),
        (Role.ADMIN, "*:*", "no scope"),
        (Role.ADMIN, "admin:", "no scope"),
        (Role.ADMIN, "inference:", "no scope"),
        (Role.ADMIN, "inference:chat ", "no scope"),
        (Role.ADMIN, "ADMIN:KEYS", "no scope"),
        (Role.ADMIN, "x" * 1_000_000, "no scope"),
        (Role.ADMIN, "\x00", "no scope"),
    ],
)
def test_unknown_scopes_and_those_beyond_the_role_are_refused(role: Role, scope: str, says: str) -> None:
    with pytest.raises(Invalid) as caught:
        issue("a", role, PEPPER, scopes=[scope])
    assert caught.value.param == "scopes"
    assert says in caught.value.message
    assert len(caught.value.message) < 500


def test_a_scope_of_a_modality_is_checked_where_the_modalities_are_known() -> None:
    check_scopes(["inference:chat"], Role.FREE, ["chat", "embedding"])
    with pytest.raises(Invalid, match="Did you mean 'inference:chat'"):
        check_scopes(["inference:caht"], Role.FREE, ["chat", "embedding"])


@pytest.mark.parametrize("scopes", [[], [f"inference:m{i}" for i in range(51)]])
def test_there_is_a_least_and_a_most_number_of_scopes(scopes: list[str]) -> None:
    with pytest.raises(Invalid, match=r"1 to 50") as caught:
        issue("a", Role.FREE, PEPPER, scopes=scopes)
    assert caught.value.param == "scopes"


@pytest.mark.parametrize(
    "models",
    [
        [],
        [f"m{i}" for i in range(101)],
        [""],
        ["a b"],
        ["a**"],
        ["*a"],
        ["a*b"],
        ["\x00"],
        ["x" * 130],
        ["-a"],
    ],
)
def test_models_that_cannot_be_are_refused(models: list[str]) -> None:
    with pytest.raises(Invalid) as caught:
        issue("a", Role.FREE, PEPPER, models=models)
    assert caught.value.param == "models"


@pytest.mark.parametrize("expires_at", [NOW, NOW - 1, 0, -1, NOW * 1000, 2**70, 1.5, True])
def test_an_expiry_in_the_past_or_absurdly_far_is_refused(expires_at: int) -> None:
    with pytest.raises(Invalid) as caught:
        issue("a", Role.FREE, PEPPER, now=NOW, expires_at=expires_at)
    assert caught.value.param == "expires_at"


@pytest.mark.parametrize(
    ("param", "wrong"), [("tenant_id", "' --"), ("project_id", "ten_x"), ("tenant_id", "")]
)
def test_ids_of_another_form_are_refused(param: str, wrong: str) -> None:
    with pytest.raises(Invalid) as caught:
        issue("a", Role.FREE, PEPPER, **{param: wrong})  # type: ignore[arg-type]
    assert caught.value.param == param


def test_a_successor_has_the_rights_of_the_old_key_and_a_secret_of_its_own() -> None:
    plaintext, old = issue(
        "a", Role.FREE, PEPPER, scopes=["models:read"], models=["x"], expires_at=unix_s() + 60
    )
    new_plaintext, new = reissue(old, PEPPER, now=NOW)
    assert replace(new, id=old.id, digest=old.digest, created_at=old.created_at) == replace(
        old, expires_at=None
    )
    assert new.id != old.id
    assert new_plaintext[16:] != plaintext[16:]


def test_a_key_ends_by_the_clock_while_the_ring_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    plaintext, key = issue("a", Role.FREE, PEPPER, now=NOW, expires_at=NOW + 60)
    ring = KeyRing([key], PEPPER)
    for now, is_valid in ((NOW, True), (NOW + 59.9, True), (NOW + 60, False), (NOW + 61, False)):
        monkeypatch.setattr("inferhub.stores.catalog.keys.time.time", lambda now=now: now)
        assert (ring.find(plaintext) == key) is is_valid


def test_keys_of_disabled_tenants_and_projects_are_refused() -> None:
    tenants = [Tenant("ten_a", "a", 0), Tenant("ten_b", "b", 0, disabled_at=1)]
    projects = [
        Project("prj_a", "ten_a", "a", 0),
        Project("prj_off", "ten_a", "off", 0, disabled_at=1),
        Project("prj_b", "ten_b", "b", 0),
    ]
    disabled = disabled_ids(tenants, projects)
    assert disabled == {"ten_b", "prj_off"}
    issued = {
        project.id: issue("k", Role.FREE, PEPPER, tenant_id=project.tenant_id, project_id=project.id)
        for project in projects
    }
    ring = KeyRing([key for _, key in issued.values()], PEPPER, disabled)
    assert [name for name, (plaintext, _) in issued.items() if ring.find(plaintext)] == ["prj_a"]
    assert len(ring) == 1


@pytest.mark.parametrize(
    ("role", "scopes", "effective"),
    [
        (Role.FREE, None, {"inference:*", "models:read"}),
        (Role.ADMIN, None, {"inference:*", "models:read", "admin:*", "criticality:realtime"}),
        (Role.FREE, {"inference:chat"}, {"inference:chat"}),
        (Role.ADMIN, {"admin:keys", "models:read"}, {"admin:keys", "models:read"}),
        # Stored under a role that was wider then, or by hand: never more than the role has.
        (Role.FREE, {"admin:*", "models:read"}, {"models:read"}),
        (Role.FREE, set(), set()),
        (Role.TENANT_ADMIN, {"admin:*"}, ROLE_SCOPES[Role.TENANT_ADMIN] - {"inference:*", "models:read"}),
    ],
)
def test_a_principal_has_what_role_and_key_both_allow(
    role: Role, scopes: set[str] | None, effective: set[str]
) -> None:
    _, key = issue("a", role, PEPPER, tenant_id="ten_x", project_id="prj_x", models=["m*"])
    key = replace(key, scopes=None if scopes is None else frozenset(scopes))
    found = principal_of(key)
    assert found == Principal(key.id, role, "ten_x", "prj_x", frozenset(effective), frozenset({"m*"}))


def test_recognising_a_caller_is_fit_for_every_request() -> None:
    """Against the hash alone, which cannot be left out: on any machine the rest is of that order."""
    plaintext, key = issue("a", Role.FREE, PEPPER, scopes=["models:read"], expires_at=unix_s() + 999)
    ring = KeyRing([key], PEPPER)
    took: dict[str, list[int]] = {"hash": [], "all": []}
    for _ in range(3000):
        start = perf_counter_ns()
        digest(plaintext, PEPPER)
        middle = perf_counter_ns()
        found = ring.find(plaintext)
        assert found is not None
        principal_of(found)
        took["hash"].append(middle - start)
        took["all"].append(perf_counter_ns() - middle)
    assert median(took["all"]) < 8 * median(took["hash"])
