"""What to load and unload where: tables, and what holds for every fleet."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from inferhub.core.fleet import Deployment, Member, Placement
from inferhub.core.models import Capability, ModelSpec, ModelStatus
from inferhub.core.serving import DeviceStatus, WorkerStatus
from inferhub.orchestrator.plan import Action, Load, Scene, Unload, decide, fits, plan

GIB = 1 << 30


def model(name: str, **figures: Any) -> ModelStatus:
    return ModelStatus(ModelSpec(name, "echo"), (Capability("chat"),), "cpu", **figures)


def member(
    address: str,
    *models: ModelStatus | str,
    free_gib: int = 1,
    labels: dict[str, str] | None = None,
    devices: tuple[str, ...] = ("cpu",),
    draining: bool = False,
    is_suspect: bool = False,
) -> Member:
    has = tuple(model(m) if isinstance(m, str) else m for m in models)
    memories = tuple(DeviceStatus(d, d, 64 * GIB, free_gib * GIB) for d in devices)
    status = WorkerStatus(address, has, memories, draining, address=address, labels=labels or {})
    return Member(status, is_suspect)


def deployment(name: str, replicas: int = 0, device: str = "auto", **labels: str) -> Deployment:
    return Deployment(ModelSpec(name, "echo", device=device), Placement(replicas, labels))


def scene(members: list[Member], *wanted: Deployment, **more: Any) -> Scene:
    return Scene(members, {d.spec.name: d for d in wanted}, now_s=100.0, **more)


def short(actions: tuple[Action, ...]) -> list[str]:
    return [
        f"+{a.worker}:{a.deployment.spec.name}" if isinstance(a, Load) else f"-{a.worker}:{a.name}"
        for a in actions
    ]


LONG_AGO = {(w, n): 0.0 for w in "abcd" for n in ("m#1", "old#1")}
JUST_NOW = dict.fromkeys(LONG_AGO, 99.0)
A_WHILE = dict.fromkeys(LONG_AGO, 90.0)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (scene([]), []),
        (scene([], deployment("m#1")), []),
        # On every worker that fits.
        (scene([member("a"), member("b", "m#1")], deployment("m#1")), ["+a:m#1"]),
        (
            scene([member("a", labels={"gpu": "h100"}), member("b")], deployment("m#1", gpu="h100")),
            ["+a:m#1"],
        ),
        (scene([member("a", labels={"gpu": "t4"})], deployment("m#1", gpu="h100")), []),
        (
            scene([member("a"), member("b", devices=("cpu", "cuda:0"))], deployment("m#1", device="cuda:0")),
            ["+b:m#1"],
        ),
        (scene([member("a", devices=())], deployment("m#1", device="cuda:0")), ["+a:m#1"]),
        # Nobody who is leaving, silent, busy with it, or failed lately.
        (scene([member("a", draining=True), member("b", is_suspect=True)], deployment("m#1")), []),
        (scene([member("a")], deployment("m#1"), loading={("a", "m#1")}), []),
        (scene([member("a")], deployment("m#1"), not_before_s={("a", "m#1"): 100.5}), []),
        (scene([member("a")], deployment("m#1"), not_before_s={("a", "m#1"): 100.0}), ["+a:m#1"]),
        # One that is on its way out is loaded again after it.
        (scene([member("a", "m#1")], deployment("m#1"), unloading={("a", "m#1")}), ["+a:m#1"]),
        # So many copies: where it is, else where memory is.
        (scene([member("a", free_gib=9), member("b", "m#1")], deployment("m#1", 1)), []),
        (scene([member("a"), member("b", free_gib=9), member("c")], deployment("m#1", 1)), ["+b:m#1"]),
        (
            scene([member("c"), member("b", free_gib=9), member("a")], deployment("m#1", 2)),
            ["+b:m#1", "+a:m#1"],
        ),
        (
            scene(
                [member("a", free_gib=8), member("b", free_gib=7)], deployment("m#1", 1), deployment("n#1", 1)
            ),
            ["+a:m#1", "+b:n#1"],
        ),
        (scene([member("a", "m#1", is_suspect=True), member("b")], deployment("m#1", 1)), []),
        (scene([member("a", "m#1", draining=True), member("b")], deployment("m#1", 1)), ["+b:m#1"]),
        (
            scene([member("a"), member("b", "m#1")], deployment("m#1", 2), loading={("a", "m#1")}),
            [],
        ),
        (
            scene([member("a"), member("b")], deployment("m#1", 1), not_before_s={("a", "m#1"): 101.0}),
            ["+b:m#1"],
        ),
        # While many are silent at once, what has a copy waits for the others; what has none does not.
        (scene([member("a", "m#1"), member("b")], deployment("m#1", 2), may_replace=False), []),
        (scene([member("a")], deployment("m#1", 2), may_replace=False), ["+a:m#1"]),
        # Unloading: ours, long enough, and idle, or so long that its calls had their time.
        (scene([member("a", "old#1")], unneeded_since_s=LONG_AGO), ["-a:old#1"]),
        (scene([member("a", "old#1")], unneeded_since_s=JUST_NOW), []),
        (scene([member("a", "old#1")]), []),
        (scene([member("a", "old#1")], unneeded_since_s=LONG_AGO, may_unload=False), []),
        (scene([member("a", "operators-own")], unneeded_since_s={("a", "operators-own"): 0.0}), []),
        (scene([member("a", model("old#1", running=1))], unneeded_since_s=A_WHILE), []),
        (scene([member("a", model("old#1", queued=1))], unneeded_since_s=A_WHILE), []),
        (scene([member("a", model("old#1", running=1))], unneeded_since_s=LONG_AGO), ["-a:old#1"]),
        (scene([member("a", "old#1", is_suspect=True)], unneeded_since_s=LONG_AGO), []),
        (scene([member("a", "old#1", draining=True)], unneeded_since_s=LONG_AGO), []),
        (scene([member("a", "old#1")], unneeded_since_s=LONG_AGO, unloading={("a", "old#1")}), []),
        (
            scene([member("a", "old#1")], unneeded_since_s=LONG_AGO, not_before_s={("a", "old#1"): 101.0}),
            [],
        ),
        # Too many copies, or at the wrong place: given up only when the right ones are there.
        (
            scene([member("a", "m#1"), member("b", "m#1")], deployment("m#1", 1), unneeded_since_s=LONG_AGO),
            ["-b:m#1"],
        ),
        (
            scene(
                [member("a", model("m#1", ready=False)), member("b", "m#1")],
                deployment("m#1", 1),
                unneeded_since_s=LONG_AGO,
            ),
            ["-a:m#1"],
        ),
        (
            scene(
                [member("a", "m#1"), member("b", labels={"gpu": "t4"})],
                deployment("m#1", gpu="t4"),
                unneeded_since_s=LONG_AGO,
            ),
            ["+b:m#1"],
        ),
        (
            scene(
                [member("a", "m#1"), member("b", labels={"gpu": "t4"})],
                deployment("m#1", gpu="t4"),
                unneeded_since_s=LONG_AGO,
                loading={("b", "m#1")},
            ),
            [],
        ),
        (
            scene(
                [member("a", "m#1"), member("b", "m#1", labels={"gpu": "t4"})],
                deployment("m#1", gpu="t4"),
                unneeded_since_s=LONG_AGO,
            ),
            ["-a:m#1"],
        ),
        # A worker that took note of it and does not serve such models.
        (
            scene(
                [
                    member("a", ModelStatus(ModelSpec("m#1", "echo"), (), "auto", ready=False, loaded=False)),
                    member("b"),
                ],
                deployment("m#1", 1),
                unneeded_since_s=LONG_AGO,
            ),
            ["+b:m#1"],
        ),
    ],
)
def test_the_plan(case: Scene, expected: list[str]) -> None:
    assert short(plan(case)) == expected


def test_what_runs_after_its_grace_is_ended_by_force_and_says_so() -> None:
    case = scene([member("a", model("old#1", running=1)), member("b", "old#1")], unneeded_since_s=LONG_AGO)
    forced, idle = plan(case)
    assert isinstance(forced, Unload)
    assert isinstance(idle, Unload)
    assert (forced.is_forced, idle.is_forced) == (True, False)
    assert "grace" in forced.reason


def test_every_action_has_a_reason() -> None:
    case = scene(
        [member("a"), member("b", "old#1")],
        deployment("m#1", 2),
        deployment("n#1"),
        unneeded_since_s=LONG_AGO,
    )
    assert [a.reason for a in plan(case)] == [
        "0 of 2 copies are there",
        "0 of 2 copies are there",
        "every worker that fits has it",
        "every worker that fits has it",
        "nobody wants it",
    ]


def test_a_worker_fits_that_has_all_labels() -> None:
    worker = member("a", labels={"gpu": "h100", "region": "eu"}).worker
    assert fits(worker, deployment("m", gpu="h100", region="eu"))
    assert not fits(worker, deployment("m", gpu="h100", region="us"))
    assert not fits(worker, deployment("m", gpu="h100", zone="1"))


def random_scene(rng: random.Random) -> Scene:
    names = [f"m{n}#1" for n in range(4)]
    members = [
        member(
            f"w{n}",
            *(model(name, running=rng.randrange(2)) for name in names if rng.random() < 0.4),
            free_gib=rng.randrange(1, 9),
            labels={"zone": rng.choice("xy")},
            draining=rng.random() < 0.1,
            is_suspect=rng.random() < 0.1,
        )
        for n in range(rng.randrange(8))
    ]
    wanted = [
        deployment(name, rng.randrange(4), **({"zone": rng.choice("xy")} if rng.random() < 0.3 else {}))
        for name in names
        if rng.random() < 0.7
    ]
    pairs = [(m.worker.address, name) for m in members for name in names]
    return scene(
        members,
        *wanted,
        not_before_s={pair: 200.0 for pair in pairs if rng.random() < 0.1},
        unneeded_since_s={pair: rng.choice((0.0, 90.0, 99.5)) for pair in pairs},
        loading={pair for pair in pairs if rng.random() < 0.05},
        unloading={pair for pair in pairs if rng.random() < 0.05},
        may_unload=rng.random() < 0.8,
        may_replace=rng.random() < 0.8,
    )


def applied(case: Scene, actions: tuple[Action, ...]) -> Scene:
    """The same fleet after all of it was done, and all calls had ended."""
    models = {m.worker.address: {s.spec.name for s in m.worker.models} for m in case.members}
    for worker, name in case.loading:
        models[worker].add(name)
    for worker, name in case.unloading:
        models[worker].discard(name)
    for action in actions:
        if isinstance(action, Load):
            models[action.worker].add(action.deployment.spec.name)
        else:
            models[action.worker].discard(action.name)
    members = [
        replace(m, worker=replace(m.worker, models=tuple(map(model, sorted(models[m.worker.address])))))
        for m in case.members
    ]
    return replace(case, members=members, loading=(), unloading=())


@pytest.mark.parametrize("seed", range(400))
def test_what_holds_for_every_fleet(seed: int) -> None:
    rng = random.Random(seed)
    case = random_scene(rng)
    actions = plan(case)
    workers = {m.worker.address: m for m in case.members}
    assert len({(a.worker, short((a,))[0]) for a in actions}) == len(actions), "twice the same"
    for action in actions:
        target = workers[action.worker]
        assert not target.is_suspect
        assert not target.worker.draining
        has = {m.spec.name for m in target.worker.models}
        if isinstance(action, Load):
            pair = (action.worker, action.deployment.spec.name)
            assert fits(target.worker, action.deployment)
            assert pair not in case.loading
            assert pair not in case.not_before_s
            assert pair[1] not in has or pair in case.unloading
        else:
            assert case.may_unload
            assert "#" in action.name
            assert action.name in has
    # The order in which members are known decides nothing.
    shuffled = replace(case, members=rng.sample(case.members, len(case.members)))
    assert sorted(short(plan(shuffled))) == sorted(short(actions))
    assert decide(shuffled)[1] == decide(case)[1]

    calm = replace(
        applied(case, actions),
        not_before_s={},
        unneeded_since_s=dict.fromkeys(case.unneeded_since_s, 0.0),
        may_unload=True,
        may_replace=True,
    )
    for _ in range(3):
        actions = plan(calm)
        calm = applied(calm, actions)
    assert plan(calm) == (), "it does not come to rest"
    for name, wanted in calm.wanted.items():
        able = [m for m in calm.members if fits(m.worker, wanted) and not m.worker.draining]
        have = [m for m in able if name in {s.spec.name for s in m.worker.models}]
        awake = [m for m in able if not m.is_suspect]
        count = wanted.placement.replicas or len(able)
        assert len(have) >= min(count, len(awake)), "too few"
        # A suspect is left as it is.
        if wanted.placement.replicas:
            assert len([m for m in have if not m.is_suspect]) <= count, "too many"
