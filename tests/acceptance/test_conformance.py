"""The conformance matrix: nothing is lost or broken for any vendor, and the published page says what is so."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_asyncio

from inferhub.testing.conformance import PAGE, Results, all_vendors, run
from inferhub.testing.conformance_checks import CHECKS, Verdict
from inferhub.testing.conformance_media import MEDIA_CHECKS
from inferhub.testing.conformance_page import page

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

PUBLISHED = Path(__file__).parents[2] / "docs" / "reference" / PAGE


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def results(cache_dir: Path) -> Results:
    return await run(cache_dir)


@pytest.mark.parametrize("vendor", all_vendors())
async def test_nothing_is_lost_or_broken(results: Results, vendor: str) -> None:
    found = {key[1:]: judged for key, judged in results.items() if key[0] == vendor}
    assert len(found) == sum(2 if check.streams else 1 for check in (*CHECKS, *MEDIA_CHECKS))
    bad = {
        key: judged.why for key, judged in found.items() if judged.verdict in {Verdict.LOST, Verdict.BROKEN}
    }
    assert not bad


async def test_the_page_says_what_is_so(results: Results) -> None:
    found = page(all_vendors(), results).splitlines()
    published = PUBLISHED.read_text(encoding="utf-8").splitlines()
    assert published == found, "Run `make conformance` and commit docs/reference/conformance.md."


async def test_vendors_with_a_dialect_of_their_own_are_translated_to(results: Results) -> None:
    """The verdicts do tell cases apart."""
    assert results["openai", "text", False].verdict is Verdict.YES
    assert results["anthropic", "text", False].verdict is Verdict.TRANSLATED
    assert results["anthropic", "messages", False].verdict is Verdict.YES
    assert results["anthropic", "n", False].verdict is Verdict.REFUSED
    assert results["anthropic", "rerank", False].verdict is Verdict.NOT_OFFERED
    assert results["anthropic", "made_up", False].verdict is Verdict.IGNORED
    assert results["openai", "made_up", False].verdict is Verdict.PASSED_ON
