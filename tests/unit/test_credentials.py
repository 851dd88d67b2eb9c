"""The keys of an upstream: who is taken, who rests and how long, and what a changed file does."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from inferhub.backends.credentials import DENIED_REST_S, RATE_LIMIT_REST_S, KeyOptions, KeyRing, hint
from inferhub.core.errors import (
    SetupError,
    UpstreamDenied,
    UpstreamExhausted,
    UpstreamFailed,
    UpstreamRateLimited,
)

A, B, C = "sk-aaaaaaaaaaaaaa-0001", "sk-bbbbbbbbbbbbbb-0002", "sk-cccccccccccccc-0003"


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def ring(*keys: str | KeyOptions, clock: Clock | None = None, file: Path | None = None) -> KeyRing:
    options = [key if isinstance(key, KeyOptions) else KeyOptions(key=key) for key in keys]
    return KeyRing(options, name="m", file=file, clock=clock or Clock())


async def test_keys_take_turns_and_the_least_busy_one_is_first() -> None:
    clock = Clock()
    keys = ring(A, B, C, clock=clock)
    leases = []
    for _ in range(3):
        clock.now_s += 1
        leases.append(await keys.take())
    assert [lease.key for lease in leases] == [A, B, C]
    leases[1].release()
    assert (await keys.take()).key == B


async def test_a_rate_limited_key_rests_for_as_long_as_it_was_told() -> None:
    clock = Clock()
    keys = ring(A, B, clock=clock)
    lease = await keys.take()
    lease.release()
    lease.refused(UpstreamRateLimited(retry_after_s=20))
    for _ in range(3):
        other = await keys.take()
        assert other.key == B
        other.release()
    clock.now_s += 20.1
    assert (await keys.take({B})).key == A


async def test_when_all_rest_the_smallest_wait_is_told() -> None:
    clock = Clock()
    keys = ring(A, B, clock=clock)
    for wait_s in (20, None):
        lease = await keys.take()
        lease.release()
        lease.refused(UpstreamRateLimited(retry_after_s=wait_s))
    with pytest.raises(UpstreamRateLimited) as caught:
        await keys.take()
    assert caught.value.retry_after_s == RATE_LIMIT_REST_S
    assert caught.value.retryable


@pytest.mark.parametrize("kind", [UpstreamDenied, UpstreamExhausted])
async def test_keys_that_are_refused_for_good_rest_long_and_the_ring_says_why(
    kind: type[UpstreamFailed],
) -> None:
    clock = Clock()
    keys = ring(A, B, clock=clock)
    for _ in range(2):
        lease = await keys.take()
        lease.release()
        lease.refused(kind())
    with pytest.raises(kind):
        await keys.take()
    clock.now_s += DENIED_REST_S + 1
    assert (await keys.take()).key in {A, B}


async def test_a_failure_that_is_not_the_keys_fault_rests_nobody() -> None:
    keys = ring(A, B)
    lease = await keys.take()
    lease.release()
    lease.refused(UpstreamFailed())
    assert (await keys.take({B})).key == A


async def test_the_only_key_never_rests() -> None:
    keys = ring(A)
    for error in (UpstreamRateLimited(retry_after_s=100), UpstreamDenied()):
        lease = await keys.take()
        lease.release()
        lease.refused(error)
    assert (await keys.take()).key == A


async def test_limits_of_a_key_are_kept() -> None:
    clock = Clock()
    keys = ring(KeyOptions(key=A, requests_per_minute=2, max_concurrent=1), clock=clock)
    lease = await keys.take()
    with pytest.raises(UpstreamRateLimited) as caught:
        await keys.take()
    assert caught.value.retry_after_s == 1
    lease.release()
    clock.now_s += 10
    (await keys.take()).release()
    with pytest.raises(UpstreamRateLimited) as caught:
        await keys.take()
    assert caught.value.retry_after_s == pytest.approx(50)
    clock.now_s += 50.1
    (await keys.take()).release()


async def test_a_key_at_its_limit_leaves_the_call_to_another() -> None:
    keys = ring(KeyOptions(key=A, max_concurrent=1), B)
    assert (await keys.take()).key == A
    assert (await keys.take()).key == B
    assert (await keys.take()).key == B


async def test_a_key_that_was_tried_is_not_taken_again() -> None:
    keys = ring(A, B)
    assert (await keys.take({A})).key == B
    with pytest.raises(UpstreamDenied):
        await keys.take({A, B})


async def test_a_changed_file_is_read_again_and_what_was_known_of_a_key_stays(tmp_path: Path) -> None:
    clock = Clock()
    file = tmp_path / "keys"
    file.write_text(f"# team\n{A}\n\n{B}\n")
    keys = ring(clock=clock, file=file)
    assert keys.secrets == (A, B)
    (await keys.take({B})).refused(UpstreamRateLimited(retry_after_s=100))
    # As Kubernetes does it: another file under the same name.
    (tmp_path / "new").write_text(f"{A}\n{C}\n")
    (tmp_path / "new").replace(file)
    clock.now_s += 2
    assert (await keys.take()).key == C
    assert keys.secrets == (A, C)


async def test_a_refused_key_makes_the_file_be_read_at_once(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(A)
    keys = ring(file=file)
    lease = await keys.take()
    lease.release()
    (tmp_path / "new").write_text(B)
    (tmp_path / "new").replace(file)
    assert (await keys.take()).key == A
    lease.refused(UpstreamDenied())
    assert (await keys.take()).key == B


@pytest.mark.parametrize("damage", ["gone", "empty"])
async def test_a_file_that_became_unreadable_changes_nothing(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    file = tmp_path / "keys"
    file.write_text(A)
    keys = ring(clock=clock, file=file)
    if damage == "gone":
        file.unlink()
    else:
        file.write_text("")
    clock.now_s += 2
    with caplog.at_level(logging.WARNING):
        assert (await keys.take()).key == A
    assert "stay as they are" in caplog.text
    assert A not in caplog.text


@pytest.mark.parametrize("content", [None, b"", b"# none\n", b"two words\n", b"key\x00\n", b"x" * 300_000])
def test_a_file_without_keys_is_refused_at_the_start(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SetupError) as caught:
        ring(file=file)
    assert str(file) in caught.value.message
    assert "two words" not in caught.value.message


async def test_no_log_line_and_no_representation_holds_a_key(caplog: pytest.LogCaptureFixture) -> None:
    keys = ring(A, B)
    with caplog.at_level(logging.INFO):
        lease = await keys.take()
        lease.refused(UpstreamDenied())
    assert "Key 1 of 2 (…0001) of 'm' rests" in caplog.text
    assert A not in caplog.text
    assert A not in repr(KeyOptions(key=A))
    assert hint("short-key") == "…"
