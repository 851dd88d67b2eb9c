"""Where connections may go: the resolver's check, the last gate, and every spelling of what is inside."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Sequence
from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferhub.core.errors import DeadlineExceeded, EgressRefused, UpstreamFailed
from inferhub.egress import Fetcher, FetchLimits, check_url
from inferhub.egress.allow import parse_allow
from inferhub.egress.dial import Dialer, dialling

LIMITS = FetchLimits(connect_s=5, total_s=20)
SECRET = "s3cret"


def chain(error: BaseException | None) -> str:
    """All that a log with the causes would show."""
    text = ""
    while error is not None:
        text += f"{error} {error!r} "
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return text


async def nothing(name: str, port: int) -> Sequence[str]:
    return []


def test_the_last_gate_makes_no_socket_for_another_address() -> None:
    dialer = Dialer(parse_allow(["10.1.2.3:8080"]), nothing)
    token = dialling.set(check_url("http://a.example:8080/"))
    try:
        for address in (("127.0.0.1", 8080), ("10.1.2.3", 8081), ("8.8.8.8", 53), ("10.1.2.4", 8080)):
            with pytest.raises(PermissionError):
                dialer.open_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", address))
        dialer.open_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.1.2.3", 8080))).close()
    finally:
        dialling.reset(token)


async def test_slow_dns_is_limited_and_blocks_no_thread_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def stuck(*_: Any, **__: Any) -> list[Any]:
        release.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "later")

    monkeypatch.setattr(socket, "getaddrinfo", stuck)
    fetcher = Fetcher(limits=FetchLimits(connect_s=0.2, total_s=30))
    try:
        outcomes = await asyncio.gather(
            *(fetcher.get(f"http://a{n}.example/{SECRET}") for n in range(40)), return_exceptions=True
        )
        assert all(isinstance(outcome, DeadlineExceeded) for outcome in outcomes)
        assert all(SECRET not in chain(outcome) for outcome in outcomes if isinstance(outcome, Exception))
        async with asyncio.timeout(30):
            assert await asyncio.to_thread(lambda: "free") == "free"
    finally:
        release.set()
        await fetcher.close()


async def test_a_lookup_that_may_pass_is_told_apart() -> None:
    async def later(name: str, port: int) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "later")

    fetcher = Fetcher(resolve=later)
    with pytest.raises(UpstreamFailed) as caught:
        await fetcher.get("http://a.example/")
    assert caught.value.retryable
    await fetcher.close()


# --- every spelling of an internal address --------------------------------------------------------

_connects: list[Any] | None = None


def _note_connects(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and _connects is not None:
        _connects.append(arguments[1])


INSIDE = st.one_of(
    st.ip_addresses(v=4, network="127.0.0.0/8"),
    st.ip_addresses(v=4, network="10.0.0.0/8"),
    st.ip_addresses(v=4, network="172.16.0.0/12"),
    st.ip_addresses(v=4, network="192.168.0.0/16"),
    st.ip_addresses(v=4, network="169.254.0.0/16"),
    st.ip_addresses(v=4, network="100.64.0.0/10"),
    st.ip_addresses(v=4, network="0.0.0.0/8"),
    st.ip_addresses(v=4, network="224.0.0.0/3"),
)


def _number(value: int, base: str, pad: int) -> str:
    return {"d": str(value), "o": "0" * (pad + 1) + f"{value:o}", "x": "0x" + "0" * pad + f"{value:x}",
            "X": "0X" + "0" * pad + f"{value:X}"}[base]  # fmt: skip


@st.composite
def spellings(draw: st.DrawFn) -> str:
    """A host that some reader somewhere takes for an internal address."""
    number = int(draw(INSIDE))
    cut = draw(st.integers(1, 4))
    parts = [(number >> shift) & 255 for shift in (24, 16, 8)[: cut - 1]]
    parts.append(number & ((1 << (8 * (5 - cut))) - 1))
    bases = draw(st.lists(st.sampled_from("doxX"), min_size=cut, max_size=cut))
    host = ".".join(
        _number(part, base, draw(st.integers(0, 2))) for part, base in zip(parts, bases, strict=True)
    )
    low = f"{number >> 16:x}:{number & 0xFFFF:x}"
    dotted = str(IPv4Address(number))
    sixes = [
        f"[::ffff:{dotted}]", f"[::ffff:{low}]", f"[::{dotted}]", f"[::ffff:0:{low}]", f"[64:ff9b::{dotted}]",
        f"[64:ff9b:1::{low}]", f"[2002:{low}::]", f"[2002:{low}::1]", f"[2001:0:{low}::1]", f"[2600::5efe:{dotted}]",
        f"[fe80::{low}%25lo]", f"[fec0::{low}]", f"[fd00::{low}]", "[::1]", "[::]", f"[ff02::{low}]",
    ]  # fmt: skip
    host = draw(st.sampled_from([host, dotted, f"n{number}.example", *sixes]))
    dress = draw(
        st.sampled_from(["{}", "{}", "{}.", "a@{}", "a:b@{}", "8.8.8.8\\@{}", "8.8.8.8#@{}", "%5b{}", "{}%00", "{}\t", " {}"])
    )  # fmt: skip
    host = dress.format(host)
    if draw(st.booleans()):
        wide = {ord(c): 0xFF10 + int(c) for c in "0123456789"} | {ord("."): 0x3002}
        host = host.translate({key: wide[key] for key in draw(st.sets(st.sampled_from(sorted(wide))))})
    return host


def test_no_spelling_of_an_internal_address_is_ever_called() -> None:
    """Measured where connections are made, in the interpreter; with the most obliging DNS there could be."""
    global _connects  # noqa: PLW0603
    sys.addaudithook(_note_connects)

    async def obliging(name: str, port: int) -> Sequence[str]:
        try:
            return [socket.inet_ntoa(socket.inet_aton(name))]
        except OSError:
            return ["127.0.0.1"]

    with asyncio.Runner() as runner:
        fetcher = Fetcher(limits=LIMITS, resolve=obliging)

        @settings(max_examples=500, deadline=None)
        @given(
            spellings(),
            st.sampled_from(["http", "https", "HTTP"]),
            st.sampled_from(["", ":80", ":8080", ":6379"]),
        )
        def never(host: str, scheme: str, port: str) -> None:
            global _connects  # noqa: PLW0603
            _connects = []
            for call in (fetcher.get, lambda url: fetcher.post(url, b"", {})):
                with pytest.raises(EgressRefused):
                    runner.run(call(f"{scheme}://{host}{port}/"))
            assert _connects == []

        try:
            never()
            # The instrument works: an allowed address is seen to be called.
            _connects = []
            with socket.socket() as taken:
                taken.bind(("127.0.0.1", 0))
                port = taken.getsockname()[1]
                sure = Fetcher(allow=["127.0.0.1"], limits=LIMITS)
                with pytest.raises(UpstreamFailed):
                    runner.run(sure.get(f"http://127.0.0.1:{port}/"))
            assert _connects == [("127.0.0.1", port)]
        finally:
            _connects = None
            runner.run(fetcher.close())
            runner.run(sure.close())


@settings(max_examples=200, deadline=None)
@given(st.ip_addresses())
def test_only_public_answers_of_the_dns_become_sockets(address: Any) -> None:
    async def resolve(name: str, port: int) -> Sequence[str]:
        return [str(address)]

    dialer = Dialer(parse_allow([]), resolve)
    try:
        found = asyncio.run(dialer.resolve("a.example", 443))
    except EgressRefused:
        return
    assert [ip_address(answer["host"]) for answer in found] == [address]
    assert address.is_global
    assert not address.is_multicast
