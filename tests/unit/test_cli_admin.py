"""The verbs of tenancy, keys, limits, usage and audit, on the stores of a folder and without a server."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from inferhub.cli import main
from inferhub.cli._billing import usd
from inferhub.cli._times import expiry, overlap_s
from inferhub.core.errors import Invalid
from inferhub.core.usage import UsageEvent
from inferhub.stores import open_usage

NOW_S = int(datetime(2026, 11, 22, tzinfo=UTC).timestamp())


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        """With its words and its place; never a traceback."""
        assert self.code == 1, (self.code, self.out, self.err)
        assert self.out == ""
        return json.loads(self.err)["error"]


Cli = Callable[..., Done]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """`inferhub …` in this process, with its data in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INFERHUB_DATA_DIR", str(tmp_path / "data"))

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["inferhub", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Done(int(ended.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def tenant(cli: Cli) -> str:
    return cli("tenants", "create", "acme").out.strip()


def event(number: int, at: str, **more: Any) -> UsageEvent:
    moment = int(datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp() * 1000)
    named: dict[str, Any] = {
        "tenant_id": "ten_default",
        "project_id": "prj_default",
        "key_id": "ih_abcdefghijkl",
        "modality": "chat",
        "model": "m",
        "requested_model": "m",
        "source": "reported",
        "input_tokens": 100,
        "output_tokens": 10,
        "total_tokens": 110,
        "cost_usd": Decimal("0.005"),
        "price_version": "p1",
    }
    return UsageEvent(id=f"call_{number}", request_id=f"req_{number}", at_ms=moment, **{**named, **more})


def store(folder: Path, *events: UsageEvent) -> None:
    async def write() -> None:
        (folder / "data").mkdir(exist_ok=True)
        usage = await open_usage(f"sqlite:///{folder}/data/usage.db")
        await usage.write(events)
        await usage.close()

    asyncio.run(write())


# --- tenants, projects, users ---------------------------------------------------------------------


def test_a_tenant_from_creation_to_disablement(cli: Cli) -> None:
    made = cli("tenants", "create", "acme")
    tenant = made.out.strip()
    assert tenant.startswith("ten_")
    assert "prj_" in made.err
    listed = {card["id"]: card for card in cli("tenants", "list", "--json").json}
    assert listed[tenant]["name"] == "acme"
    disabled = cli("tenants", "disable", tenant, "--json").json
    assert disabled["disabled_at"]
    assert cli("tenants", "disable", tenant, "--json").json == disabled, "a second time changes nothing"
    assert cli("tenants", "enable", tenant, "--json").json["disabled_at"] is None
    assert tenant in cli("tenants", "list").out


def test_projects_belong_to_their_tenant(cli: Cli, tenant: str) -> None:
    project = cli("projects", "create", "search", "--tenant", tenant).out.strip()
    theirs = cli("projects", "list", "--tenant", tenant, "--json").json
    assert {p["name"] for p in theirs} == {"default", "search"}
    assert cli("projects", "create", "search").code == 0, "another tenant may have the same name"
    assert cli("projects", "create", "search", "--tenant", tenant, "--json").error["code"] == "conflict"
    assert cli("projects", "disable", project, "--json").json["disabled_at"]
    assert cli("projects", "enable", project).out.endswith("is enabled.\n")
    assert project in cli("projects", "list").out


def test_users_and_their_roles(cli: Cli, tenant: str) -> None:
    who = ("--issuer", "https://login.example.com", "--subject", "ada")
    user = cli("users", "create", "Ada L.", *who, "--tenant", tenant).out.strip()
    assert cli("users", "create", "Ada again", *who, "--json").error["code"] == "conflict"
    assert cli("users", "set-role", user, "tenant_admin", "--json").json["role"] == "tenant_admin"
    assert cli("users", "set-role", user, "king").code == 2
    assert cli("users", "disable", user, "--json").json["disabled_at"]
    assert cli("users", "enable", user).code == 0
    [card] = cli("users", "list", "--tenant", tenant, "--json").json
    assert (card["role"], card["disabled_at"], card["tenant_id"]) == ("tenant_admin", None, tenant)
    assert "Ada L." in cli("users", "list").out


def test_a_webhook_comes_with_its_secret_and_the_log_has_neither(cli: Cli, tenant: str) -> None:
    url = "https://hooks.example.com/budget?token=canary"
    done = cli("tenants", "set-webhook", tenant, url)
    secret = done.out.strip()
    assert secret.startswith("whs_")
    assert secret not in done.err
    assert cli("tenants", "set-webhook", tenant, url, "--json").json["webhook_secret"] == secret
    assert "canary" not in cli("tenants", "list").out
    assert b"canary" not in b"".join(p.read_bytes() for p in Path("data").iterdir() if p.is_file())
    [kept] = [t for t in cli("tenants", "list", "--json").json if t["id"] == tenant]
    assert kept["webhook_url"] == "https://hooks.example.com/…"
    assert cli("tenants", "disable", tenant, "--json").json["webhook_url"] == kept["webhook_url"]
    log = cli("audit", "list").out
    assert "canary" not in log
    assert secret not in log
    inside = cli("tenants", "set-webhook", tenant, "http://10.0.0.1/x", "--json").error
    assert (inside["code"], inside["param"]) == ("url_not_allowed", "webhook_url")
    assert "egress_allow" in inside["remedy"]
    allowed = ("http://10.0.0.1:8080/x", "--egress-allow", "10.0.0.0/8")
    assert cli("tenants", "set-webhook", tenant, *allowed).code == 0
    assert cli("tenants", "set-webhook", tenant, "--remove", "--json").json["webhook_url"] is None
    assert cli("tenants", "set-webhook", tenant).code == 2


# --- keys -----------------------------------------------------------------------------------------


def test_a_key_with_everything_that_it_may_have(cli: Cli, tenant: str) -> None:
    wanted = ("--tenant", tenant, "--scope", "inference:chat", "--model", "llama-*", "--expires", "30d")
    card = cli("keys", "create", "bot", *wanted, "--json").json
    assert card["key"].startswith(card["id"])
    [listed] = cli("keys", "list", "--tenant", tenant, "--json").json
    assert listed == {name: value for name, value in card.items() if name != "key"}
    assert (listed["scopes"], listed["models"]) == (["inference:chat"], ["llama-*"])
    assert listed["expires_at"] - listed["created_at"] in range(30 * 86400 - 5, 30 * 86400 + 1)
    head, row = cli("keys", "list", "--tenant", tenant).out.splitlines()
    assert head.split("  ")[0] == "ID"
    assert all(word in head for word in ("TENANT", "PROJECT", "EXPIRES", "LAST USED"))
    assert tenant in row


def test_a_rotated_key_overlaps_with_its_successor(cli: Cli) -> None:
    old = cli("keys", "create", "app", "--json").json
    done = cli("keys", "rotate", old["id"], "--overlap", "1h", "--json")
    new = done.json
    assert new["id"] != old["id"]
    assert new["key"].startswith(new["id"])
    assert new["replaces"]["id"] == old["id"]
    assert new["replaces"]["rotated_to"] == new["id"]
    assert new["replaces"]["expires_at"] - new["created_at"] in range(3595, 3606)
    assert cli("keys", "rotate", old["id"], "--json").error["code"] == "conflict"
    third = cli("keys", "rotate", new["key"], "--overlap", "0")
    assert third.out.startswith("ih_")
    assert new["key"][16:] not in third.err


def test_a_tenant_with_several_projects_is_asked_which(cli: Cli, tenant: str) -> None:
    project = cli("projects", "create", "search", "--tenant", tenant).out.strip()
    unclear = cli("keys", "create", "app", "--tenant", tenant, "--json").error
    assert unclear["param"] == "project"
    assert project in unclear["message"]
    key = cli("keys", "create", "app", "--project", project, "--json").json
    assert (key["tenant_id"], key["project_id"]) == (tenant, project)
    foreign = cli("keys", "create", "app", "--tenant", "ten_default", "--project", project, "--json").error
    assert foreign["code"] == "not_found"


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("90s", 90), ("30m", 1800), ("24h", 86400), ("90d", 90 * 86400)]
)
def test_overlaps(text: str, seconds: int) -> None:
    assert overlap_s(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "-1h", "1.5h", "91d", "999999999d", "one hour", "٣h"])
def test_what_is_no_overlap(text: str) -> None:
    with pytest.raises(Invalid, match="--overlap is 0"):
        overlap_s(text)


@pytest.mark.parametrize(
    ("text", "at"),
    [("30d", NOW_S + 30 * 86400), ("2026-11-23", NOW_S + 86400), ("2026-11-22T01:00:00+00:00", NOW_S + 3600)],
)
def test_expiries(text: str, at: int) -> None:
    assert expiry(text, NOW_S) == at


@pytest.mark.parametrize("text", ["2026-11-22", "2020-01-01", "0d", "9999d", "2099-01-01", "soon", "-5d", ""])
def test_what_is_no_expiry(text: str) -> None:
    with pytest.raises(Invalid, match="expires"):
        expiry(text, NOW_S)


# --- limits ---------------------------------------------------------------------------------------


def test_limits_from_setting_to_deletion(cli: Cli, tenant: str) -> None:
    first = cli("limits", "set", tenant, "100", "requests/minute", "--json").json
    again = cli("limits", "set", tenant, "200", "requests/minute", "--mode", "exact", "--json").json
    assert (again["id"], again["limit"], again["mode"]) == (first["id"], 200, "exact")
    assert cli("limits", "set", tenant, "5.00", "usd/day").out.endswith(f"{tenant} may use 5 usd/day.\n")
    key = cli("keys", "create", "app", "--tenant", tenant, "--json").json
    assert cli("limits", "set", key["key"], "8", "concurrent", "--json").json["subject_id"] == key["id"]
    listed = cli("limits", "list", "--tenant", tenant, "--json").json
    seen = {(q["level"], q["unit"], q["window"], q["limit"], q["used"], q["remaining"]) for q in listed}
    assert seen == {
        ("tenant", "requests", "minute", 200, 0, 200),
        ("tenant", "usd", "day", "5", "0", "5"),
        ("key", "concurrent", "now", 8, 0, 8),
    }
    assert len(cli("limits", "list", "--subject", key["id"], "--json").json) == 1
    assert cli("limits", "delete", first["id"], "--json").json["deleted"] is True
    assert cli("limits", "delete", first["id"], "--json").error["code"] == "not_found"
    targets = [a["target"] for a in cli("audit", "list", "--json").json if a["action"] == "limit.set"]
    assert targets.count(first["id"]) == 2, "the log names the limit that there is"


@pytest.mark.parametrize("url", ["memory://", "redis://127.0.0.1:1/0", "sqlite:///{here}/broken.db"])
def test_limits_are_listed_while_the_counters_are_away(
    cli: Cli, tenant: str, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken.db").write_bytes(b"no database at all" * 100)
    cli("limits", "set", tenant, "100", "requests/minute")
    monkeypatch.setenv("INFERHUB_COUNTERS_URL", url.format(here=tmp_path))
    done = cli("limits", "list")
    assert done.code == 0
    assert "100 requests/minute  auto  ?" in done.out
    assert done.err.startswith("How full they are is not known: ")
    assert cli("limits", "list", "--json").json[0]["used"] is None


@pytest.mark.parametrize(
    ("amount", "kind", "param", "words"),
    [
        ("0", "requests/minute", "limit", "from 1 to"),
        ("-5", "requests/minute", "limit", "from 1 to"),
        ("1.5", "requests/minute", "limit", "whole number"),
        ("1e6", "tokens/day", "limit", "whole number"),
        ("9" * 19, "tokens/day", "limit", "from 1 to"),
        ("9" * 400, "tokens/day", "limit", "from 1 to"),
        ("0", "usd/day", "limit", "more than 0"),
        ("-1.00", "usd/day", "limit", "more than 0"),
        ("0.0000000001", "usd/day", "limit", "nine"),
        ("99999999", "usd/month", "limit", "1000000"),
        ("NaN", "usd/day", "limit", "more than 0"),
        ("5", "usd/minute", "window", "usd/day or usd/month"),
        ("5", "requests", "window", "requests/minute or"),
        ("5", "requests/fortnight", "window", "requests/minute or"),
        ("5", "concurrent/day", "window", "written concurrent"),
        ("5", "request/minute", "unit", "Did you mean 'requests'"),
        ("5", "euro/day", "unit", "usd"),
        ("5", "'; DROP TABLE quotas; --/day", "unit", "There is no unit"),
    ],
)
def test_absurd_limits_are_refused(cli: Cli, amount: str, kind: str, param: str, words: str) -> None:
    error = cli("limits", "set", "ten_default", amount, kind, "--json").error
    assert error["param"] == param
    assert words in error["message"]
    assert len(error["message"]) < 500
    assert cli("limits", "list", "--json").json == []
    assert cli("audit", "list", "--json").json == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("tenants", "disable", "ten_none"),
        ("tenants", "set-webhook", "ten_none", "https://example.com"),
        ("projects", "create", "x", "--tenant", "ten_none"),
        ("projects", "list", "--tenant", "ten_none"),
        ("projects", "enable", "prj_none"),
        ("users", "disable", "usr_none"),
        ("users", "create", "x", "--issuer", "https://a", "--subject", "b", "--project", "prj_none"),
        ("keys", "create", "x", "--tenant", "ten_none"),
        ("keys", "create", "x", "--project", "prj_none"),
        ("keys", "list", "--tenant", "ten_none"),
        ("keys", "rotate", "ih_abcdefghijkl"),
        ("keys", "revoke", "ih_abcdefghijkl"),
        ("limits", "set", "ten_none", "1", "requests/minute"),
        ("limits", "set", "prj_none", "1", "requests/minute"),
        ("limits", "set", "ih_abcdefghijkl", "1", "requests/minute"),
        ("limits", "set", "call_1", "1", "requests/minute"),
        ("limits", "list", "--subject", "ten_none"),
        ("limits", "delete", "quo_none"),
        ("invoice", "2026-11", "--tenant", "ten_none"),
        ("audit", "list", "--tenant", "ten_none"),
        ("tenants", "disable", "' OR 1=1 --"),
    ],
)
def test_ids_that_are_not_there(cli: Cli, arguments: tuple[str, ...]) -> None:
    error = cli(*arguments, "--json").error
    assert error["code"] == "not_found"
    assert error["param"]
    assert cli("audit", "verify", "--json").json["entries"] == 0


def test_unknown_scopes_and_models_are_refused(cli: Cli) -> None:
    for flag, value, param in (
        ("--scope", "inference:chta", "scopes"),
        ("--scope", "admin:*", "scopes"),
        ("--model", "a b", "models"),
        ("--expires", "2020-01-01", "expires"),
    ):
        assert cli("keys", "create", "x", flag, value, "--json").error["param"] == param
    assert "Did you mean 'inference:chat'" in cli("keys", "create", "x", "--scope", "inference:chta").err
    assert cli("keys", "list", "--json").json == []


def test_the_default_tenant_cannot_be_shut_out(cli: Cli) -> None:
    assert cli("tenants", "disable", "ten_default", "--json").error["code"] == "conflict"
    assert cli("projects", "disable", "prj_default", "--json").error["code"] == "conflict"


# --- usage and money ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0", "0.00"),
        ("1.5", "1.50"),
        ("0.000123000", "0.000123"),
        ("12345678901234567890.10", "12345678901234567890.10"),
    ],
)
def test_dollars_are_exact(amount: str, text: str) -> None:
    assert usd(Decimal(amount)) == text


def test_usage_by_what_is_asked(cli: Cli, tmp_path: Path) -> None:
    store(
        tmp_path,
        event(1, "2026-10-01T00:00:00"),
        event(2, "2026-10-31T23:59:59", model="n", status="upstream_error"),
        event(3, "2026-11-01T00:00:00"),
    )
    october = ("--from", "2026-10-01", "--until", "2026-11-01")
    cards = cli("usage", "--by", "model", *october, "--json").json
    assert [(c["model"], c["calls"], c["errors"], c["cost_usd"]) for c in cards] == [
        ("m", 1, 0, "0.005"),
        ("n", 1, 1, "0.005"),
    ]
    text = cli("usage", "--by", "tenant,day", *october).out
    assert text.splitlines()[0].startswith("TENANT")
    assert text.endswith("2 calls, 0.01 USD.\n")
    csv = cli("usage", "--by", "day", *october, "--csv").out
    assert csv.splitlines()[1].startswith("2026-10-01,1,0,100,")
    cut = cli("usage", *october, "--limit", "1")
    assert "There are more than 1 rows" in cut.err
    assert cli("usage", *october, "--model", "x").out == "No call in this time.\n"


def test_what_usage_cannot_be_asked(cli: Cli) -> None:
    assert cli("usage", "--by", "moon", "--json").error["param"] == "by"
    assert cli("usage", "--by", "day,day", "--json").error["param"] == "by"
    assert cli("usage", "--by", "tenant,project,key,model,day", "--json").error["param"] == "by"
    assert cli("usage", "--from", "yesterday", "--json").error["param"] == "from"
    assert cli("usage", "--from", "2026-02-01", "--until", "2026-01-01", "--json").error["param"] == "from"
    assert cli("usage", "--csv", "--json").code == 2
    assert cli("usage", "--limit", "0").code == 2


def test_an_invoice_is_exact_and_rounded_once(cli: Cli, tmp_path: Path) -> None:
    store(tmp_path, *(event(n, "2026-10-05T12:00:00") for n in range(3)), event(9, "2026-11-01T00:00:00"))
    bill = cli("invoice", "2026-10", "--json").json
    assert (bill["cost_usd"], bill["total_usd"], bill["is_final"]) == ("0.015", "0.02", True)
    assert "Total 0.02 USD (exact: 0.015)." in cli("invoice", "2026-10").out
    sheet = cli("invoice", "2026-10", "--csv").out.splitlines()
    assert sheet[1].startswith("prj_default,m,3,300,")
    assert sheet[-1].endswith(",0.02")
    for month in ("2026-13", "2026-1", "november", "1999-01", ""):
        assert cli("invoice", month, "--json").error["param"] == "month"


def test_reconciliation_finds_what_differs(cli: Cli, tmp_path: Path) -> None:
    store(tmp_path, *(event(n, "2026-10-05T12:00:00") for n in range(3)))
    head = "day,model,input_tokens,output_tokens,calls\n"
    report = tmp_path / "report.csv"
    report.write_text("\ufeff" + head + "2026-10-05,m,300,30,3\n", encoding="utf-8")
    assert cli("reconcile", "report.csv", "--json").json["agrees"] is True
    report.write_text(head + "2026-10-05,m,300,31,\n2026-10-06,m,7,0,1\n")
    found = cli("reconcile", "report.csv")
    assert found.code == 1
    assert "2 of 2 differ by more than 1.00%." in found.out
    [day, other] = json.loads(cli("reconcile", "report.csv", "--tolerance", "0.05", "--json").out)["data"]
    assert (day["is_beyond"], day["provider_calls"], other["is_beyond"]) == (False, None, True)
    acts = {entry["action"] for entry in cli("audit", "list", "--json").json}
    assert acts == {"usage.reconcile"}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "has no column day"),
        ("day,model,input_tokens\n", "has no column output_tokens"),
        ("day,model,input_tokens,output_tokens\n", "has no rows"),
        ("day,model,input_tokens,output_tokens\n2026-1-1,m,1,1\n", "report.csv:2: needs a day"),
        ("day,model,input_tokens,output_tokens\n2026-02-31,m,1,1\n", "A day is written"),
        (
            "day,model,input_tokens,output_tokens\n2026-01-01,m,-1,1\n",
            "report.csv:2: input_tokens is a whole",
        ),
        ("day,model,input_tokens,output_tokens\n2026-01-01,m,1\n", "report.csv:2: output_tokens is a whole"),
        (
            "day,model,input_tokens,output_tokens\n" + "2026-01-01,m,1,1\n" * 2,
            "repeats 2026-01-01, m of line 2",
        ),
        ('day,model,input_tokens,output_tokens\n2026-01-01,"m,1,1\n', "is no CSV"),
    ],
)
def test_reports_that_cannot_be_read(cli: Cli, tmp_path: Path, lines: str, words: str) -> None:
    (tmp_path / "report.csv").write_text(lines)
    assert words in cli("reconcile", "report.csv", "--json").error["message"]
    assert cli("reconcile", "none.csv", "--json").error["code"] == "setup_error"


# --- the stored spec, and stores that are away ----------------------------------------------------


def test_a_price_in_the_past_is_not_stored_for_the_next_start(cli: Cli, tmp_path: Path) -> None:
    spec = tmp_path / "hub.yaml"
    text = "models: [{{name: m, backend: echo}}]\nprices: [{{model: m, from: {day}, input_per_mtok: 1}}]\n"
    spec.write_text(text.format(day="2020-01-01"))
    error = cli("apply", "-f", "hub.yaml", "--offline", "--json").error
    assert error["param"] == "prices"
    assert "2020-01-01" in error["message"]
    spec.write_text(text.format(day="2999-01-01"))
    assert cli("apply", "-f", "hub.yaml", "--offline", "--json").json["revision"] == 1


def test_stores_that_are_away_are_named_with_the_remedy(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERHUB_USAGE_URL", "postgresql://u:canary@127.0.0.1:1/x")
    monkeypatch.setenv("INFERHUB_CATALOG_URL", "postgresql://u:canary@127.0.0.1:1/x")
    for arguments in (("usage",), ("tenants", "list"), ("keys", "create", "x"), ("audit", "verify")):
        done = cli(*arguments)
        assert done.code == 1
        assert "127.0.0.1:1" in done.err
        assert "canary" not in done.err
        assert "Start it" in done.err or "Remedy: " in done.err
