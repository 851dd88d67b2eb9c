"""How the conformance matrix judges: every verdict has its case, and bad ones say why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from inferhub.testing.client_dialects import Outcome
from inferhub.testing.conformance_checks import CHECKS, Check, Judged, Seen, Verdict, judge
from inferhub.testing.conformance_media import MEDIA_CHECKS, MediaCheck
from inferhub.testing.conformance_page import page

CHECK = Check(name="seed", endpoint="chat", body={}, param="seed", sent=("987654",))
FINE = Outcome(200, "word0 word1 ", None, True, "r", {})
SENT = Seen(outcome=FINE, sent='{"seed":987654}', spoken="openai", violations=(), is_streamed=False)


def refused(status: int, param: str | None, message: str = "no") -> Seen:
    error: dict[str, Any] = {"message": message, "param": param}
    return replace(SENT, outcome=Outcome(status, "", error, False, "r", {}), sent=None)


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        (SENT, Verdict.YES),
        (replace(SENT, spoken="gemini"), Verdict.TRANSLATED),
        (replace(SENT, sent=None), Verdict.YES),
        (replace(SENT, sent="{}"), Verdict.LOST),
        (replace(SENT, violations=("it is wrong",)), Verdict.BROKEN),
        (replace(SENT, outcome=replace(FINE, is_complete=False)), Verdict.BROKEN),
        (
            replace(SENT, outcome=replace(FINE, headers={"x-inferhub-ignored-params": "a, seed"})),
            Verdict.IGNORED,
        ),
        (refused(400, "seed"), Verdict.REFUSED),
        (refused(400, "messages[0].seed"), Verdict.REFUSED),
        (refused(400, "temperature"), Verdict.BROKEN),
        (refused(502, "seed"), Verdict.BROKEN),
        (refused(404, "model"), Verdict.NOT_OFFERED),
        (refused(400, None, "The model 'x' does not answer this."), Verdict.NOT_OFFERED),
    ],
)
def test_each_case_has_its_verdict(seen: Seen, verdict: Verdict) -> None:
    judged = judge(CHECK, seen)
    assert judged.verdict is verdict
    assert bool(judged.why) == (verdict in {Verdict.BROKEN, Verdict.LOST})


def test_hints_may_be_left_out() -> None:
    assert judge(replace(CHECK, is_hint=True), replace(SENT, sent="{}")).verdict is Verdict.NO


def test_an_answer_has_to_hold() -> None:
    assert judge(replace(CHECK, holds=lambda _: False), SENT).verdict is Verdict.BROKEN


def test_checks_have_names_of_their_own() -> None:
    names = [check.name for check in CHECKS] + [check.name for check in MEDIA_CHECKS]
    assert len(set(names)) == len(names)


def test_the_page_has_every_vendor_and_check() -> None:
    asked: tuple[Check | MediaCheck, ...] = (*CHECKS, *MEDIA_CHECKS)
    results = {
        (vendor, check.name, stream): Judged(Verdict.REFUSED if stream else Verdict.YES, "")
        for vendor in ("one", "two")
        for check in asked
        for stream in (False, True)
    }
    text = page(("one", "two"), results)
    assert text.count("| one |") == text.count("| two |") == 4
    assert text.count("yes / 400") == 2 * sum(check.streams for check in asked)
