"""Routes in hub.yaml: what loads, as what, and what is refused, where, with which words."""

from __future__ import annotations

from decimal import Decimal

import jsonschema
import pytest
import yaml

from inferhub.core.errors import SetupError
from inferhub.core.traffic import TRANSIENT, Cause, Fallback, Patience, Route, Spill, Target
from inferhub.settings.spec import json_schema, load_spec

MODELS = """\
models:
  - {name: own, backend: llamacpp, weights: own}
  - {name: cloud, options: {base_url: "https://api.example.com/v1"}}
  - {name: other, options: {base_url: "https://api.example.com/v1"}}
prices:
  - {model: cloud, input_per_mtok: "0.15"}
routes:
"""
FIRST = len(MODELS.splitlines()) + 1

FULL = """\
  - name: chat
    targets:
      - {model: own, weight: 3}
      - {model: cloud, priority: 1, weight: "${WEIGHT}"}
    fallbacks:
      - other
    prefer: latency
    spill: {first_token_s: 1.5, max_usd_per_hour: "2.50"}
    affinity: session
    hedge_after_s: 0.5
    first_token_timeout_s: 5
    idle_timeout_s: 6
    request_timeout_s: "${TOTAL}"
    resume: true
  - name: long
    model: own
    fallbacks: [{model: cloud, "on": [context_length, content_filter]}]
  - name: two
    targets: [own, cloud]
  - name: plain
    model: cloud
"""
ENV = {"WEIGHT": "2", "TOTAL": "7"}


def refusal(routes: str) -> str:
    with pytest.raises(SetupError) as caught:
        load_spec(MODELS + routes, env=ENV)
    return caught.value.message


def test_all_that_a_route_can_say() -> None:
    full, long, two, plain = load_spec(MODELS + FULL, env=ENV).routes
    assert full == Route(
        "chat",
        (Target("own", 3), Target("cloud", 2, 1)),
        (Fallback("other", TRANSIENT),),
        prefer="latency",
        spill=Spill(1.5, Decimal("2.50")),
        affinity=True,
        hedge_after_s=0.5,
        patience=Patience(5.0, 6.0, 7.0),
        resume=True,
    )
    assert full.models == ("own", "cloud", "other")
    assert long.fallbacks == (Fallback("cloud", frozenset({Cause.CONTEXT_LENGTH, Cause.CONTENT_FILTER})),)
    assert two.targets == (Target("own"), Target("cloud"))
    assert plain == Route("plain", (Target("cloud"),))


def test_editors_accept_it_and_mark_what_is_wrong() -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    assert not list(validator.iter_errors(yaml.safe_load(MODELS + FULL)))
    for wrong in (
        "  - {name: r}",
        "  - {name: r, model: own, targets: [cloud]}",
        "  - {name: r, targets: [{weight: 1}]}",
        "  - {name: r, targets: [{model: own, wight: 1}]}",
        "  - {name: r, targets: ['a b']}",
        "  - {name: r, model: own, hedge_after_s: 0}",
        "  - {name: r, model: own, prefer: speed}",
        "  - {name: r, model: own, fallbacks: [{model: cloud, 'on': []}]}",
        "  - {name: r, model: own, fallbacks: [{model: cloud, 'on': [weather]}]}",
        "  - {name: r, model: own, spill: {}}",
    ):
        assert list(validator.iter_errors(yaml.safe_load(MODELS + wrong))), wrong


@pytest.mark.parametrize(
    ("route", "column", "reason"),
    [
        ("{name: r}", 5, "the route leads nowhere; give 'model' or 'targets'"),
        ("{name: r, targets: []}", 5, "the route leads nowhere"),
        ("{name: r, model: own, targets: [cloud]}", 27, "give 'model' or 'targets', not both"),
        ("{name: r, targets: [own, clout]}", 30, "unknown model 'clout'. Did you mean 'cloud'? Models: own"),
        ("{name: r, targets: [{model: r}]}", 26, "unknown model 'r'. It is a route; a route leads to models only"),
        ("{name: r, model: own, fallbacks: [othr]}", 39, "unknown model 'othr'. Did you mean 'other'?"),
        ("{name: r, targets: [own, own]}", 30, "model 'own' is in this route already: targets[0]"),
        ("{name: r, model: own, fallbacks: [own]}", 39, "model 'own' is in this route already: model"),
        ("{name: r, targets: [{model: own, wieght: 2}]}", 38, "unknown key 'wieght'. Did you mean 'weight'? Allowed: model, weight, priority"),
        ("{name: r, targets: [{weight: 2}]}", 25, "the key 'model' is missing"),
        ("{name: r, targets: [{model: own, weight: true}]}", 38, "weight cannot be True; allowed: a whole number from 0 to 1000"),
        ("{name: r, targets: [{model: own, priority: -1}]}", 38, "priority cannot be -1; allowed: a whole number from 0 to 9"),
        ("{name: r, targets: [{model: own, weight: 0}]}", 15, "every weight is 0"),
        ("{name: r, targets: own}", 15, "targets cannot be 'own'; allowed: a list of at most 32 models"),
        ("{name: r, targets: [own, 3]}", 30, "an entry of targets cannot be 3"),
        ("{name: r, targets: [own, 'a b']}", 30, "model cannot be 'a b'; allowed: 1 to 128 letters"),
        ("{name: r, model: own, fallbacks: [{model: cloud, on: []}]}", 54, "on cannot be a list; allowed: a list of causes: rate_limit, overload"),
        ("{name: r, model: own, fallbacks: [{model: cloud, on: [rain]}]}", 59, "an entry of on cannot be 'rain'; allowed: a list of causes"),
        ("{name: r, model: own, fallbacks: [{model: cloud, for: [failure]}]}", 54, "unknown key 'for'. Allowed: model, on"),
        ("{name: r, model: own, prefer: speed}", 27, "prefer cannot be 'speed'; allowed: weight, latency or cost"),
        ("{name: r, targets: [own, other], prefer: cost}", 38, "no target has a price under 'prices'"),
        ("{name: r, targets: [own, cloud], spill: {first_token_s: 1}}", 38, "calls can spill over only to a target of another priority"),
        ("{name: r, model: own, spill: {first_token_s: 1}}", 27, "calls can spill over only to a target of another priority"),
        ("{name: r, model: own, spill: {}}", 27, "the key 'first_token_s' is missing"),
        ("{name: r, model: own, spill: {first_token_s: 1, usd: 3}}", 53, "unknown key 'usd'. Allowed: first_token_s, max_usd_per_hour"),
        ("{name: r, targets: [own, {model: other, priority: 1}], spill: {first_token_s: 1, max_usd_per_hour: 1}}", 86, "the cap counts prices, and none of other has one under 'prices'"),
        ("{name: r, model: own, affinity: user}", 27, "affinity cannot be 'user'; allowed: session"),
        ("{name: r, model: own, hedge_after_s: true}", 27, "hedge_after_s cannot be True; allowed: seconds, more than 0"),
        ("{name: r, model: own, idle_timeout_s: .inf}", 27, "idle_timeout_s cannot be '.inf'"),
        ("{name: r, model: own, request_timeout_s: inf}", 27, "request_timeout_s cannot be 'inf'"),
        ("{name: r, model: cloud, hedge_after_s: 1}", 29, "there is no second endpoint to ask: 'cloud' is in one place"),
        ("{name: r, model: cloud, hedge_after_s: 1, fallbacks: [{model: own, on: [rate_limit]}]}", 29, "there is no second endpoint to ask"),
        ("{name: r, model: own, hedge_after_s: 9, first_token_timeout_s: 9}", 27, "9 is not before first_token_timeout_s, which is 9"),
        ("{name: r, model: own, resume: maybe}", 27, "resume cannot be 'maybe'; allowed: true or false"),
    ],
)  # fmt: skip
def test_what_is_refused(route: str, column: int, reason: str) -> None:
    message = refusal(f"  - {route}")
    assert f"hub.yaml:{FIRST}:" in message
    assert reason in message
    found = next(part for part in message.split("hub.yaml:") if reason in part)
    assert int(found.split(":")[1]) == column, message


def test_a_hedge_may_go_to_another_worker_or_to_a_fallback() -> None:
    for route in (
        "{name: r, model: own, hedge_after_s: 1}",
        "{name: r, targets: [cloud, other], hedge_after_s: 1}",
        "{name: r, model: cloud, hedge_after_s: 1, fallbacks: [other]}",
    ):
        assert load_spec(MODELS + f"  - {route}", env={}).routes


def test_a_price_of_a_route_names_the_way_out() -> None:
    with pytest.raises(SetupError, match="It is a route; name the models that it leads to"):
        load_spec(
            "models: [{name: a, backend: echo}]\nroutes: [{name: r, model: a}]\nprices: [{model: r}]", env={}
        )


def test_every_problem_is_told_at_once() -> None:
    message = refusal(
        "  - {name: r, targets: [own, nobody], prefer: speed}\n  - {name: s, model: own, targets: [own]}"
    )
    for reason in ("unknown model 'nobody'", "prefer cannot be 'speed'", "not both"):
        assert reason in message
