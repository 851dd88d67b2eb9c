"""`PUT /admin/v1/spec`: checked whole, swapped in one step under load, or left as it was."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from inferhub.testing.servers import Hub, run_command, wait_for
from inferhub.testing.talk import CHAT, Talk, chat_body

SPEC_PATH = "/admin/v1/spec"


def spec(*models: str, routes: str = "") -> str:
    return "models:\n" + "".join(f"  - {{{model}}}\n" for model in models) + routes


BASE = ("name: echo, backend: echo, slots: 64", "name: slow, backend: echo, options: {gap_s: 0.02}")


@pytest.fixture
async def admin(plain_hub: Hub) -> Talk:
    """Raw HTTP to a hub whose spec may be changed; it has the base spec again."""
    talk = Talk(plain_hub.url, plain_hub.admin_key)
    assert (await talk.ask("PUT", SPEC_PATH, {}, spec(*BASE).encode())).status == 200
    return talk


async def put(talk: Talk, text: str, **headers: str) -> tuple[int, str]:
    """(status, revision)"""
    answer = await talk.ask("PUT", SPEC_PATH, headers, text.encode())
    return answer.status, answer.head["etag"] or answer.body.decode()


async def test_models_come_and_go(admin: Talk) -> None:
    text = spec(*BASE, "name: new, backend: echo", routes="routes:\n  - {name: fresh, model: new}\n")
    assert (await put(admin, text))[0] == 200
    assert (await admin.get(SPEC_PATH)).body.decode() == text
    for name in ("new", "fresh", "echo"):
        assert (await admin.chat(name)).status == 200, name
    assert (await put(admin, spec(*BASE)))[0] == 200
    for name in ("new", "fresh"):
        assert (await admin.chat(name)).error["code"] == "model_not_found"
    assert [card["id"] for card in (await admin.get("/v1/models")).json["data"]] == ["echo", "slow"]


async def test_revisions_guard_against_each_other(admin: Talk) -> None:
    current = (await admin.get(SPEC_PATH)).head["etag"] or ""
    status, after = await put(admin, spec(*BASE, "name: more, backend: echo"), if_match=current)
    assert status == 200
    assert int(after.strip('"')) == int(current.strip('"')) + 1
    late = await admin.ask("PUT", SPEC_PATH, {"if-match": current}, spec(*BASE).encode())
    assert (late.status, late.error["code"]) == (409, "conflict")
    assert (await admin.chat("more")).status == 200


async def test_swapped_under_load_without_a_failure(admin: Talk) -> None:
    """Clients that never pause see no 404 and no 5xx for models that are in both specs."""
    outcomes: Counter[tuple[str, int, bool]] = Counter()
    is_over = asyncio.Event()

    async def ask_all_the_time(model: str, stream: bool) -> None:
        while not is_over.is_set():
            async with admin.opened(CHAT, chat_body(model, "a b c d e", stream=stream)) as call:
                head = await call.head()
                body = await call.connection.body(head)
            outcomes[model, head.status, b"[DONE]" in body or not stream] += 1

    async with asyncio.TaskGroup() as group:
        for model in ("echo", "slow", "changing"):
            if model == "changing":
                assert (await put(admin, spec(*BASE, "name: changing, backend: echo, slots: 1")))[0] == 200
            for stream in (True, False):
                group.create_task(ask_all_the_time(model, stream))
        for turn in range(6):
            # `changing` is another deployment each time; `echo` and `slow` stay as they are.
            text = spec(
                *BASE, f"name: changing, backend: echo, slots: {turn + 2}", f"name: m{turn}, backend: echo"
            )
            assert (await put(admin, text))[0] == 200
            await asyncio.sleep(0.2)
        is_over.set()
    assert {key[1:] for key in outcomes} == {(200, True)}, outcomes
    assert all(outcomes[model, 200, True] > 5 for model in ("echo", "slow", "changing")), outcomes


async def test_running_calls_finish_on_the_model_they_began_with(admin: Talk, plain_hub: Hub) -> None:
    async with admin.opened(CHAT, chat_body("slow", " ".join(["word"] * 60), stream=True)) as call:
        head = await call.head()
        assert (await put(admin, spec(BASE[0])))[0] == 200
        assert (await admin.chat("slow")).status == 404
        events = [event async for event in call.connection.events(head)]
    assert events[-1].data == "[DONE]"
    await asyncio.to_thread(wait_for, lambda: "slow" not in deployed(plain_hub), 10, "slow to be unloaded")


def deployed(hub: Hub) -> list[str]:
    workers = hub.get("/admin/v1/workers")["data"]
    return sorted(model["name"] for worker in workers for model in worker.get("models", ()))


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("models: [", "1:10", "YAML"),
        ("models:\n  - {name: good, backend: echo}\n  - {name: echo, backend: ekko}\n", "3:", "ekko"),
        ("models:\n  - {name: echo, backend: echo, slot: 4}\n", "2:33", "slots"),
        (
            "models:\n  - {name: good, backend: echo}\n  - {name: echo, backend: echo, slots: many}\n",
            "3:",
            "many",
        ),
        (
            "models:\n  - {name: good, backend: echo}\n  - {name: echo, backend: echo, options: {gap: 1}}\n",
            "3:",
            "gap_s",
        ),
        ("models:\n  - {name: a, backend: echo}\n  - {name: a, backend: echo}\n", "3:6", "taken"),
        ("models:\n  - {name: a, backend: echo}\nroutes:\n  - {name: b, model: c}\n", "4:15", "'c'"),
        ("models:\n  - {name: good, backend: echo}\n  - {name: a, backend: llamacpp}\n", "3:", "weights"),
        (
            "models:\n  - {name: good, backend: echo}\n  - {name: a, backend: openai_compatible, options: {base_url: '${NO_SUCH}'}}\n",
            "3:",
            "NO_SUCH",
        ),
        ("!!python/object/apply:os.system ['true']", "1", "tags"),
        ("", "1:1", "models"),
    ],
)
async def test_a_bad_spec_is_refused_whole(
    admin: Talk, plain_hub: Hub, text: str, place: str, said: str
) -> None:
    before = await admin.get(SPEC_PATH)
    answer = await admin.ask("PUT", SPEC_PATH, {}, text.encode())
    assert answer.status == 400
    assert f"hub.yaml:{place}" in answer.error["message"]
    assert said in answer.error["message"]
    after = await admin.get(SPEC_PATH)
    assert (after.body, after.head["etag"]) == (before.body, before.head["etag"])
    assert (await admin.chat("good")).status == 404
    assert (await admin.chat("echo")).status == 200
    assert "good" not in deployed(plain_hub)


async def test_a_model_that_cannot_be_loaded_takes_nothing_with_it(admin: Talk, plain_hub: Hub) -> None:
    """Found out only while loading, after another new model was loaded already."""
    missing = plain_hub.folder / "none.gguf"
    text = spec(*BASE, "name: good, backend: echo", f'name: bad, backend: llamacpp, weights: "{missing}"')
    answer = await admin.ask("PUT", SPEC_PATH, {}, text.encode())
    assert answer.status == 400
    assert "'bad'" in answer.error["message"]
    assert (await admin.chat("good")).status == 404
    assert (await admin.chat("echo")).status == 200
    assert "good" not in deployed(plain_hub)
    assert deployed(plain_hub) == ["echo", "slow"]


async def test_apply_of_the_command_line(admin: Talk, plain_hub: Hub) -> None:
    file = plain_hub.folder / "applied.yaml"
    file.write_text(spec(*BASE, "name: by-cli, backend: echo"))
    arguments = ("apply", "-f", str(file), "--url", plain_hub.url, "--key", plain_hub.admin_key)
    done = await asyncio.to_thread(run_command, *arguments, data_dir=plain_hub.data_dir)
    assert done.exit_code == 0, done.stderr
    assert (await admin.chat("by-cli")).status == 200
    file.write_text("models:\n  - {name: echo, backend: nonsense}\n")
    failed = await asyncio.to_thread(run_command, *arguments, data_dir=plain_hub.data_dir)
    assert failed.exit_code not in (0, 2)
    assert ":2:" in failed.stderr
    assert (await admin.chat("by-cli")).status == 200


async def test_a_huge_spec_is_refused(admin: Talk) -> None:
    answer = await admin.ask("PUT", SPEC_PATH, {}, b"# " + b"x" * 2**21)
    assert answer.status == 413
    assert answer.error
