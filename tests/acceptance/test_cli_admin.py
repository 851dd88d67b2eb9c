"""An operator's day at the terminal: a tenant, its key and limits, a server, its bill, and a forged log."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from inferhub.testing.servers import SHAPES, Done, Hub, run_command, running_hub, wait_for
from inferhub.testing.talk import Talk

SPEC = """\
models:
  - {name: echo, backend: echo}
  - {name: other, backend: echo}
prices:
  - {model: echo, input_per_mtok: 1000, output_per_mtok: 2000}
"""
# Each command is a process of its own, and a story has a score of them.
pytestmark = pytest.mark.timeout(600)
PRICE_IN, PRICE_OUT = Decimal("0.001"), Decimal("0.002")
LIMIT = 3


@dataclass(frozen=True)
class Shop:
    """A data folder that was prepared before its server started."""

    hub: Hub
    tenant: str
    project: str
    key_id: str
    key: str

    @property
    def data_dir(self) -> Path:
        return self.hub.data_dir

    def run(self, *arguments: str) -> Done:
        return type_in(self.data_dir, *arguments)

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)

    async def status(self, model: str = "echo") -> int:
        return (await Talk(self.hub.url, self.key).chat(model)).status

    def until(self, status: int) -> None:
        wait_for(lambda: asyncio.run(self.status("other")) == status, 60, f"status {status}")


def type_in(data_dir: Path, *arguments: str) -> Done:
    done = run_command(*arguments, data_dir=data_dir)
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module", params=SHAPES)
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp(f"shop-{request.param}")
    data = folder / "data"
    tenant = type_in(data, "tenants", "create", "acme").stdout.strip()
    project = type_in(data, "projects", "create", "search", "--tenant", tenant).stdout.strip()
    wanted = ("--project", project, "--scope", "inference:*", "--model", "echo", "--expires", "1d")
    made = json.loads(type_in(data, "keys", "create", "app", *wanted, "--json").stdout)
    # Over a month, so that it does not end in the middle of the story.
    limit = type_in(data, "limits", "set", made["id"], str(LIMIT), "requests/month")
    assert limit.exit_code == 0, limit.stderr
    assert type_in(data, "limits", "set", tenant, "1000.00", "usd/month").exit_code == 0
    with running_hub(request.param, folder, SPEC) as hub:
        yield Shop(hub, tenant, project, made["id"], made["key"])


def test_from_the_first_call_to_the_bill(shop: Shop, tmp_path: Path) -> None:
    used = asyncio.run(call_until_refused(shop))
    # What a call used is told with it; what the ledger bills must be the same.
    tokens_in, tokens_out = (sum(u[name] for u in used) for name in ("prompt_tokens", "completion_tokens"))
    cost = PRICE_IN * tokens_in + PRICE_OUT * tokens_out
    [limit] = shop.json("limits", "list", "--subject", shop.key_id)
    assert (limit["used"], limit["remaining"]) == (LIMIT, 0)

    mine = ("usage", "--tenant", shop.tenant)
    wait_for(lambda: [r["calls"] for r in shop.json(*mine, "--by", "model")] == [LIMIT], 60, "the ledger")
    [row] = shop.json(*mine, "--by", "tenant,project,key,model")
    assert (row["tenant"], row["project"], row["key"]) == (shop.tenant, shop.project, shop.key_id)
    assert (Decimal(row["cost_usd"]), row["errors"]) == (cost, 0)
    budget = next(q for q in shop.json("limits", "list", "--tenant", shop.tenant) if q["unit"] == "usd")
    assert Decimal(budget["used"]) == cost

    days = shop.json(*mine, "--by", "day")
    bill_of = ("invoice", days[0]["day"][:7], "--tenant", shop.tenant)
    bill = shop.json(*bill_of)
    assert (Decimal(bill["cost_usd"]), bill["lines"][0]["calls"]) == (cost, LIMIT)
    sheet = list(csv.DictReader(io.StringIO(shop.run(*bill_of, "--csv").stdout)))
    assert [line["project_id"] for line in sheet] == [shop.project, "total"]

    report = tmp_path / "report.csv"
    report.write_text(provider_report(days, 1))
    assert shop.json("reconcile", str(report))["agrees"] is True
    report.write_text(provider_report(days, 2))
    assert shop.run("reconcile", str(report)).exit_code == 1


def provider_report(days: list[dict[str, Any]], factor: int) -> str:
    lines = [
        f"{row['day']},echo,{row['input_tokens'] * factor},{row['output_tokens']},{row['calls']}"
        for row in days
    ]
    return "\n".join(["day,model,input_tokens,output_tokens,calls", *lines])


async def call_until_refused(shop: Shop) -> list[dict[str, int]]:
    """The usage that each answer tells."""
    talk = Talk(shop.hub.url, shop.key)
    answers = [await talk.chat("echo") for _ in range(LIMIT)]
    assert [answer.status for answer in answers] == [200] * LIMIT
    refused = await talk.chat("echo")
    assert (refused.status, refused.error["type"]) == (429, "rate_limit_error"), refused
    assert (await talk.chat("other")).status in (403, 404), "the key is for one model"
    return [answer.json["usage"] for answer in answers]


def test_a_disabled_tenant_is_out_within_a_moment_and_back_again(shop: Shop) -> None:
    key = shop.json("keys", "create", "second", "--project", shop.project, "--model", "other")["key"]
    second = Shop(shop.hub, shop.tenant, shop.project, "", key)
    second.until(200)
    shop.json("tenants", "disable", shop.tenant)
    second.until(401)
    shop.json("tenants", "enable", shop.tenant)
    second.until(200)
    shop.json("projects", "disable", shop.project)
    second.until(401)
    shop.json("projects", "enable", shop.project)
    second.until(200)


def test_a_rotated_key_works_beside_its_successor_and_the_list_tells_of_its_use(shop: Shop) -> None:
    old = shop.json("keys", "create", "third", "--project", shop.project)
    Shop(shop.hub, shop.tenant, shop.project, old["id"], old["key"]).until(200)
    new = shop.json("keys", "rotate", old["id"], "--overlap", "1h")
    for card in (old, new):
        Shop(shop.hub, shop.tenant, shop.project, card["id"], card["key"]).until(200)

    def used() -> bool:
        cards = {card["id"]: card for card in shop.json("keys", "list", "--tenant", shop.tenant)}
        return bool(cards[old["id"]]["last_used_at"] and cards[new["id"]]["last_used_at"])

    wait_for(used, 90, "the last use in the list")
    shop.json("keys", "revoke", old["id"])
    Shop(shop.hub, shop.tenant, shop.project, old["id"], old["key"]).until(401)


def test_a_running_server_takes_no_price_in_the_past(shop: Shop, tmp_path: Path) -> None:
    spec = tmp_path / "hub.yaml"
    spec.write_text(SPEC + "  - {model: echo, from: 2020-01-01, input_per_mtok: 1}\n")
    address = ("--url", shop.hub.url, "--key", shop.hub.admin_key, "--json")
    refused = shop.run("apply", "-f", str(spec), *address)
    assert refused.exit_code == 4
    error = json.loads(refused.stderr)["error"]
    assert (error["param"], "2020-01-01" in error["message"]) == ("prices", True)
    offline = shop.run("apply", "-f", str(spec), "--offline", "--json")
    assert (offline.exit_code, json.loads(offline.stderr)["error"]["param"]) == (1, "prices")


def test_a_forged_log_is_found_with_the_number_of_the_entry(shop: Shop, tmp_path: Path) -> None:
    whole = shop.json("audit", "verify")
    assert whole["entries"] >= 5
    assert whole["last"]["hash"]
    acts = shop.json("audit", "list", "--limit", "1000")
    assert {"tenant.create", "project.create", "key.create", "limit.set"} <= {a["action"] for a in acts}
    assert shop.key not in json.dumps(acts)
    for number, forgery in (
        (3, "UPDATE audit_log SET actor = 'nobody' WHERE seq = 3"),
        (4, "DELETE FROM audit_log WHERE seq = 4"),
        (whole["entries"], "UPDATE audit_log SET at = at - 1 WHERE seq = (SELECT MAX(seq) FROM audit_log)"),
    ):
        # On a copy: the server's own catalog stays as it is.
        folder = tmp_path / str(number)
        folder.mkdir()
        with sqlite3.connect(shop.data_dir / "catalog.db") as source:
            copy = sqlite3.connect(folder / "catalog.db")
            source.backup(copy)
        source.close()
        for (trigger,) in copy.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'audit_log'"
        ).fetchall():
            copy.execute(f"DROP TRIGGER {trigger}")
        copy.execute(forgery)
        copy.commit()
        copy.close()
        done = type_in(folder, "audit", "verify", "--json")
        assert (done.exit_code, done.stdout) == (1, ""), forgery
        error = json.loads(done.stderr)["error"]
        assert error["code"] == "catalog_corrupt"
        assert error["message"].startswith(f"Entry {number} of the audit log "), error["message"]


def test_wrong_inputs_change_nothing(shop: Shop) -> None:
    before = shop.json("audit", "verify")
    for arguments, param in (
        (("limits", "set", shop.tenant, "-5", "requests/minute"), "limit"),
        (("limits", "set", shop.tenant, "0", "requests/minute"), "limit"),
        (("limits", "set", shop.tenant, "1" * 30, "tokens/day"), "limit"),
        (("limits", "set", shop.tenant, "5", "bananas/day"), "unit"),
        (("limits", "set", "ten_nobody", "5", "requests/day"), "subject"),
        (("keys", "create", "x", "--scope", "inference:telepathy"), "scopes"),
        (("keys", "create", "x", "--tenant", "ten_nobody"), "tenant"),
        (("invoice", "2026-99"), "month"),
    ):
        done = shop.run(*arguments, "--json")
        assert done.exit_code == 1, arguments
        assert json.loads(done.stderr)["error"]["param"] == param, arguments
    assert shop.json("audit", "verify") == before
