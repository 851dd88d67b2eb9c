"""Money: parallel calls never overspend a budget, and whoever pays is told in time."""

from __future__ import annotations

import asyncio
import hmac
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from inferhub.testing.admin import Admin, Member, ended
from inferhub.testing.raw_http import Answer
from inferhub.testing.receiver import Receiver
from inferhub.testing.servers import Hub, running_hub, start_service
from inferhub.testing.talk import CHAT, Talk, chat_body, chunks, content

# A call of `coin` costs a cent whatever it says; one of `remote` by what it says.
SPEC = """\
models:
  - {{name: coin, backend: echo, slots: 64}}
  - {{name: remote, backend: openai_compatible, slots: 256, options: {{base_url: "{upstream}"}}}}
prices:
  - {{model: coin, per_request: "0.01"}}
  - {{model: remote, input_per_mtok: 10, output_per_mtok: 100, per_request: "0.000001"}}
"""
SETTINGS: dict[str, object] = {
    # The counters answer in time, however busy the machine: how it goes without them is another story.
    "counters_timeout_s": 5,
    "egress_allow": "127.0.0.1/32",
    "head_hold_s": 0.2,
    "ping_interval_s": 0.5,
    "drain_grace_s": 2,
}
MTOK = Decimal(10**6)
LONG = "one two three " * 4
MAX_TOKENS = 40
OUTPUT_USD = MAX_TOKENS * 100 / MTOK
"""What the answers below may cost at most."""


@pytest.fixture(scope="module")
def budgets_hub(tmp_path_factory: pytest.TempPathFactory, upstream_url: str) -> Iterator[Hub]:
    spec = SPEC.format(upstream=upstream_url)
    with running_hub("serve", tmp_path_factory.mktemp("budgets"), spec, SETTINGS) as running:
        yield running


@pytest.fixture
def admin(budgets_hub: Hub) -> Admin:
    return Admin(budgets_hub.url, budgets_hub.admin_key)


@pytest.fixture
async def member(admin: Admin) -> Member:
    return await admin.member()


async def spent(admin: Admin, member: Member, calls: int) -> Decimal:
    """The exact sum over the ledger once it has so many calls."""
    events = await admin.events(ended(calls), tenant_id=member.tenant_id)
    assert len(events) == calls
    return sum((Decimal(event["cost_usd"]) for event in events), Decimal(0))


def check_exhausted(answer: Answer) -> str:
    """Contract item 26; the message."""
    assert (answer.status, answer.error["code"]) == (429, "insufficient_quota"), answer.body
    assert (answer.head["x-should-retry"], answer.head["retry-after"]) == ("false", None)
    return str(answer.error["message"])


@pytest.mark.parametrize("mode", ["exact", "auto"])
async def test_contract_073_a_hundred_parallel_calls_never_overspend(
    admin: Admin, member: Member, mode: str
) -> None:
    limit_usd = Decimal("0.10")
    budget = await admin.limit(member.key_id, str(limit_usd), "usd/day", mode)

    async def one(number: int) -> Answer:
        # Longer and shorter ones, none longer than it said.
        script = f"script:n={number % MAX_TOKENS + 1},ttft_ms={number % 7}"
        return await member.talk.chat("remote", LONG, max_tokens=MAX_TOKENS, user=script)

    assert (await one(0)).status == 200
    answered, requested, level = 1, Decimal("0.0001"), await admin.level(budget["id"])
    while Decimal(level["remaining"]) >= requested:
        answers = await asyncio.gather(*(one(number) for number in range(100)))
        statuses = Counter(answer.status for answer in answers)
        assert set(statuses) <= {200, 429}
        for answer in answers:
            if answer.status == 429:
                assert (
                    "'max_tokens' (1024 where it is left out), or ask for a higher budget"
                    in check_exhausted(answer)
                )
        answered += statuses[200]
        requested = max(map(_requested, answers))
        level = await admin.level(budget["id"])
        assert Decimal(level["used"]) <= limit_usd
    cost = await spent(admin, member, answered)
    print(f"{answered} calls for ${cost}")
    assert cost <= limit_usd
    # Less was left than one call reserves.
    assert OUTPUT_USD < requested < 2 * OUTPUT_USD
    assert cost > limit_usd - requested
    # The counter and the ledger agree to the last digit.
    assert Decimal((await admin.level(budget["id"]))["used"]) == cost


def _requested(answer: Answer) -> Decimal:
    """What a refused call would have reserved."""
    if answer.status == 200:
        return Decimal(0)
    return Decimal(answer.error["message"].partition("requested $")[2].partition(",")[0])


async def test_a_budget_is_spent_to_the_last_cent_and_not_beyond(admin: Admin, member: Member) -> None:
    budget = await admin.limit(member.tenant_id, "0.10", "usd/month")
    answers = await asyncio.gather(*(member.talk.chat("coin") for _ in range(100)))
    assert Counter(answer.status for answer in answers) == {200: 10, 429: 90}
    assert await spent(admin, member, 10) == Decimal("0.10")
    level = await admin.level(budget["id"])
    assert (Decimal(level["used"]), Decimal(level["remaining"])) == (Decimal("0.10"), 0)
    message = check_exhausted(await member.talk.chat("coin"))
    assert "left $0.00" in message
    assert "wait for the next month" in message


async def test_contract_026_what_the_remedy_says_helps(admin: Admin, member: Member) -> None:
    """1,024 tokens of answer cost 10 cents here: without `max_tokens` a budget of 5 holds no call at all."""
    await admin.limit(member.project_id, "0.05", "usd/day")
    message = check_exhausted(await member.talk.chat("remote"))
    assert "Request too large for budget per day of this project: limit $0.05, requested $0.10" in message
    assert "Send a lower 'max_tokens' (1024 where it is left out), or ask for a higher budget." in message
    assert (await member.talk.chat("remote", max_tokens=100)).status == 200


async def test_a_stream_that_uses_up_the_budget_ends_as_it_would_have(admin: Admin, member: Member) -> None:
    """What was let in is finished; what it cost beyond its estimate counts, and nothing more is let in."""
    budget = await admin.limit(member.key_id, "0.01", "usd/day")
    events = await member.talk.stream("remote", max_tokens=40, user="script:n=300")
    assert (events[-1].data, content(events).count("word")) == ("[DONE]", 300)
    assert "error" not in chunks(events)[-1]
    cost = await spent(admin, member, 1)
    assert cost > Decimal("0.03")
    level = await admin.until(lambda: admin.level(budget["id"]), lambda level: Decimal(level["used"]) == cost)
    assert Decimal(level["remaining"]) == 0
    check_exhausted(await member.talk.chat("remote", max_tokens=1))


async def test_a_call_that_is_given_up_gives_its_room_back(admin: Admin, member: Member) -> None:
    budget = await admin.limit(member.key_id, "0.10", "usd/day")
    body = chat_body("remote", max_tokens=900, user="script:ttft_ms=600000", stream=True)
    async with member.talk.opened(CHAT, body) as call:
        assert (await call.head()).status == 200
        assert Decimal((await admin.level(budget["id"]))["used"]) > Decimal("0.09")
        check_exhausted(await member.talk.chat("remote", max_tokens=900))
    await admin.until(lambda: admin.level(budget["id"]), lambda level: Decimal(level["used"]) == 0)

    async def ask() -> int:
        return (await member.talk.chat("remote", max_tokens=900)).status

    # A gateway remembers for a moment that there was no room.
    await admin.until(ask, lambda status: status == 200)


async def test_a_model_without_a_price_needs_no_budget(admin: Admin, member: Member) -> None:
    spec = (await admin.talk.get("/admin/v1/spec")).body.decode()
    assert "free" not in spec
    assert (
        await admin.apply(spec.replace("prices:", "  - {name: free, backend: echo}\nprices:"))
    ).status == 200
    await admin.limit(member.key_id, "0.01", "usd/day")
    assert (await member.talk.chat("coin")).status == 200
    check_exhausted(await member.talk.chat("coin"))
    assert (await member.talk.chat("free")).status == 200
    assert (await admin.apply(spec)).status == 200


# --- alerts -------------------------------------------------------------------------------------------


async def test_each_threshold_is_told_once_though_two_gateways_look(
    budgets_hub: Hub, admin: Admin, tmp_path: Path
) -> None:
    settings = {**SETTINGS, "data_dir": budgets_hub.data_dir, "spec_file": budgets_hub.folder / "hub.yaml"}
    async with Receiver() as receiver:
        made = await admin.post("tenants", name="pays", webhook_url=receiver.url)
        key = await admin.key(made["id"], made["project_id"])
        await admin.limit(made["id"], "0.10", "usd/month")
        with start_service("serve", tmp_path, settings, name="second") as second:
            urls = [budgets_hub.url, (await asyncio.to_thread(second.announcement))["url"]]
            told = 0
            for calls, thresholds in ((4, 0), (1, 1), (3, 2), (2, 3)):
                for number in range(calls):
                    answer = await Talk(urls[number % 2], key["key"]).chat("coin")
                    assert answer.status == 200, answer.body
                messages = await receiver.wait_for(thresholds)
                assert len(messages) == thresholds >= told
                told = thresholds
            # Both have looked several times since: they do so every two seconds.
            await asyncio.sleep(5)
        assert [message.json["threshold_percent"] for message in receiver.received] == [50, 80, 100]
        for message, used in zip(receiver.received, ("0.05", "0.08", "0.1"), strict=True):
            said = message.json
            assert Decimal(said["used_usd"]) == Decimal(used)
            assert (said["tenant_id"], Decimal(said["limit_usd"])) == (made["id"], Decimal("0.1"))
            stamp, _, mac = message.headers["x-inferhub-signature"].partition(",v1=")
            signed = f"{stamp.removeprefix('t=')}.".encode() + message.body
            assert mac == hmac.new(made["webhook_secret"].encode(), signed, "sha256").hexdigest()


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1/hook",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/hook",
        "http://127.0.0.2/hook",
        "http://localhost/hook",
        "file:///etc/passwd",
        "http://user:secret@hooks.example.com/",
        "not a url",
    ],
)
async def test_an_address_that_may_not_be_called_is_not_stored(admin: Admin, url: str) -> None:
    before = await admin.get("tenants?limit=1000")
    answer = await admin.talk.post("/admin/v1/tenants", {"name": "inside", "webhook_url": url})
    assert (answer.status, answer.error["param"]) == (400, "webhook_url"), answer.body
    member = await admin.member()
    changed = await admin.talk.ask("PATCH", f"/admin/v1/tenants/{member.tenant_id}", {}, {"webhook_url": url})
    assert (changed.status, changed.error["param"]) == (400, "webhook_url")
    after = await admin.get("tenants?limit=1000")
    assert len(after["data"]) == len(before["data"]) + 1
    assert (await admin.get(f"tenants/{member.tenant_id}"))["webhook_url"] is None


@pytest.mark.parametrize(
    ("limit", "per", "param"),
    [
        ("0", "usd/day", "limit"),
        ("-1", "usd/day", "limit"),
        ("1e3", "usd/day", "limit"),
        ("NaN", "usd/day", "limit"),
        ("0.0000000001", "usd/day", "limit"),
        ("1000000.01", "usd/month", "limit"),
        ("5", "usd/minute", "window"),
        (0, "requests/minute", "limit"),
        (-5, "tokens/minute", "limit"),
        (10**13, "requests/minute", "limit"),
        (1, "bananas/minute", "unit"),
        (1, "concurrent/day", "window"),
    ],
)
async def test_a_limit_that_makes_no_sense_is_refused_by_its_field(
    admin: Admin, member: Member, limit: int | str, per: str, param: str
) -> None:
    unit, _, window = per.partition("/")
    body = {"level": "key", "subject_id": member.key_id, "unit": unit, "window": window, "limit": limit}
    answer = await admin.talk.post("/admin/v1/limits", body)
    assert (answer.status, answer.error["param"]) == (400, param), answer.body
    assert (await admin.get(f"limits?subject_id={member.key_id}"))["data"] == []
    assert (await member.talk.chat("coin")).status == 200
