"""Which URLs are read, how, and which addresses count as public. No network."""

from __future__ import annotations

import time
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from yarl import URL

from inferhub.core.errors import EgressRefused, SetupError
from inferhub.egress import Target, check_url
from inferhub.egress.addresses import is_public
from inferhub.egress.allow import parse_allow
from inferhub.egress.target import MAX_URL_CHARS, read_redirect

REFUSED = [
    # other spellings of 127.0.0.1 and of its neighbours
    "http://127.0.0.1/", "http://127.1/", "http://127.0.1/", "http://2130706433/", "http://0x7f000001/",
    "http://0x7f.0.0.1/", "http://0X7F.1/", "http://0177.0.0.1/", "http://017700000001/", "http://127.0.0.01/",
    "http://127.0.0.1./", "http://127.0.0.0x1/", "http://0.0.0.0/", "http://0/", "http://0x/", "http://00000/",
    "http://1.1.1.1.1/", "http://1.1.1.256/", "http://08.8.8.8/", "http://4294967297/",
    # internal IPv4
    "http://10.0.0.1/", "http://172.31.255.255/", "http://192.168.0.1/", "http://169.254.169.254/latest/",
    "http://100.64.0.1/", "http://100.100.100.200/", "http://192.0.0.192/", "http://168.63.129.16/",
    "http://198.18.0.1/", "http://192.0.2.1/", "http://224.0.0.1/", "http://239.255.255.255/",
    "http://255.255.255.255/", "http://240.0.0.1/", "http://192.88.99.1/",
    # internal IPv6, and IPv4 inside of it
    "http://[::1]/", "http://[::]/", "http://[0:0:0:0:0:0:0:1]/", "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/", "http://[::127.0.0.1]/", "http://[::ffff:0:127.0.0.1]/", "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b::169.254.169.254]/", "http://[64:ff9b:1::7f00:1]/", "http://[2002:7f00:1::]/",
    "http://[2001:0:7f00:1::]/", "http://[2600::5efe:127.0.0.1]/", "http://[2600::200:5efe:a00:1]/",
    "http://[fe80::1]/", "http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/", "http://[fec0::1]/",
    "http://[fc00::1]/", "http://[fd00:ec2::254]/", "http://[ff02::1]/", "http://[100::1]/",
    "http://[2001:db8::1]/", "http://[::ffff:8.8.8.8]/",
    # names of the inside
    "http://localhost/", "http://LOCALHOST/", "http://localhost./", "http://a.localhost/", "http://redis/",
    "http://metadata.google.internal/", "http://printer.local/", "http://router.home.arpa/",
    "http://localhost.localdomain/",
    # what two readers read differently
    "http://a\\@b.example/", "http://a.example\\@127.0.0.1/", "http:\\\\127.0.0.1/", "http:/127.0.0.1/",
    "http:///127.0.0.1/", "http://a.example#@127.0.0.1/", "http://a.example/#@127.0.0.1/", "http://a.example/#f",
    "http://a@b.example/", "http://a:b@c.example/", "http://@c.example/", "http://a.example:80@127.0.0.1/",
    "http://a.example:/", "http://a.example:080/", "http://a.example: 80/", "http://a.example:+80/",
    "http://a.example:\uff180/", "http://[::1/", "http://::1/", "http://[127.0.0.1]/", "http://a.example::80/",
    "http://a..example/", "http://.a.example/", "http://a.example./", "http://-a.example/", "http://a-.example/",
    "http://%31%32%37.0.0.1/", "http://127%2e0.0.1/", "http://a%00.example/", "http://a.example%2f@b.example/",
    "http://\uff11\uff12\uff17.0.0.1/", "http://127\u30020\u30020\u30021/", "http://\u24dbocalhost/", "http://\u0430pple.example/", "http://\u00df.example/",
    " http://a.example/", "http://a.example/ ", "http://a.example/\r\nHost: b", "http://a.example\r\n/",
    "http://a.exa\tmple/", "http://a.example/\x00", "http://a.example/%", "http://a.example/%zz", "http://a.example/<b>",
    # other schemes
    "file:///etc/passwd", "gopher://a.example/", "ftp://a.example/", "dict://a.example:11211/", "data:,x",
    "javascript:alert(1)", "//a.example/", "a.example/", "", "http://", "http:", "https://?", "ws://a.example/",
    "hxxp://a.example/", "unix:///run/docker.sock", "jar:http://a.example!/", "http+unix://a.example/",
    # ports
    "http://a.example:0/", "http://a.example:22/", "http://a.example:25/", "http://a.example:65536/",
    "http://a.example:99999/", "http://a.example:100000/", "https://a.example:-1/",
    # size
    "http://a.example/" + "a" * MAX_URL_CHARS, "http://" + "a" * 64 + ".example/", "http://" + "a." * 127 + "example/",
]  # fmt: skip


@pytest.mark.parametrize("url", REFUSED, ids=lambda url: ascii(url)[:60])
def test_url_is_refused(url: str) -> None:
    with pytest.raises(EgressRefused) as caught:
        check_url(url, param="webhook.url")
    assert caught.value.param == "webhook.url"
    assert (caught.value.http, caught.value.code) == (400, "url_not_allowed")


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://a.example", Target("http", "a.example", 80, "/")),
        ("HTTPS://Hooks.Example.com:8443", Target("https", "hooks.example.com", 8443, "/")),
        ("https://a.example?x=1", Target("https", "a.example", 443, "/?x=1")),
        ("https://a.example/a/../b%2Fc;d=@:?x[]=1|2&y=%0a?", None),
        ("https://xn--bcher-kva.example/", Target("https", "xn--bcher-kva.example", 443, "/")),
        ("http://a_b.example:65535/", Target("http", "a_b.example", 65535, "/")),
        ("http://8.8.8.8/", Target("http", "8.8.8.8", 80, "/")),
        ("http://[2606:4700:0:0::1111]:8080/x", Target("http", "2606:4700::1111", 8080, "/x")),
        ("http://[64:ff9b::808:808]/", Target("http", "64:ff9b::808:808", 80, "/")),
        ("http://1e100.example/", Target("http", "1e100.example", 80, "/")),
    ],
)
def test_url_is_read(url: str, target: Target | None) -> None:
    found = check_url(url)
    assert target is None or found == target
    assert target is not None or found.url == url


def test_messages_and_reprs_hold_no_secret() -> None:
    for url in (
        "https://user:s3cret@a.example/",
        "ftp://a.example/s3cret",
        "http://127.0.0.1/s3cret?s3cret",
        "http://a.example/s3cret\\",
        "http://a.example:22/s3cret?k=s3cret",
        "http://redis/s3cret",
        "http://a.example/?s3cret#s3cret",
    ):
        with pytest.raises(EgressRefused) as caught:
            check_url(url)
        assert "s3cret" not in repr(caught.value)
    target = check_url("https://a.example/s3cret?k=s3cret")
    assert "s3cret" not in repr(target) + target.shown


ALLOWED = [
    (["hooks.internal"], "http://hooks.internal:8080/", True),
    (["hooks.internal"], "http://Hooks.Internal/", True),
    (["hooks.internal:8080"], "http://hooks.internal:8080/", True),
    (["hooks.internal:8080"], "http://hooks.internal:8081/", False),
    (["hooks.internal"], "http://x.hooks.internal/", False),
    (["hooks.internal"], "http://hooks.internal:22/", False),
    (["hooks.internal:22"], "http://hooks.internal:22/", True),
    (["redis"], "http://redis/", True),
    (["10.0.0.0/8"], "http://10.1.2.3/", True),
    (["10.0.0.0/8"], "http://11.1.2.3:81/", False),
    (["10.0.0.0/8"], "http://192.168.0.1/", False),
    (["10.1.2.3"], "http://10.1.2.3:9000/", True),
    (["10.1.2.3:9000"], "http://10.1.2.3:9000/", True),
    (["10.1.2.3:9000"], "http://10.1.2.3:9001/", False),
    (["10.1.2.3"], "http://[::ffff:10.1.2.3]/", False),
    (["fd00::/8"], "http://[fd00::1]/", True),
    (["fd00::1"], "http://[fd00:0::1]:8080/", True),
    (["[fd00::1]:8080"], "http://[fd00::1]:8080/", True),
    (["[fd00::1]:8080"], "http://[fd00::1]:8081/", False),
    (["169.254.169.254"], "http://169.254.169.254/", True),
    (["0.0.0.0/0"], "http://127.1/", False),
]


@pytest.mark.parametrize(("allow", "url", "good"), ALLOWED)
def test_allowed_hosts(allow: list[str], url: str, good: bool) -> None:
    if good:
        check_url(url, allow)
    else:
        with pytest.raises(EgressRefused):
            check_url(url, allow)


@pytest.mark.parametrize(
    "entry",
    ["", "10.0.0/8", "10.0.0.1/8", "127.1", "a b", "*.internal", "http://a", "a:0", "a:65536", "a:b", "a/b", "[::1", "::1:x", "\u00e9"],
)  # fmt: skip
def test_wrong_entries_are_named(entry: str) -> None:
    with pytest.raises(SetupError, match="egress_allow"):
        parse_allow([entry])


def test_an_allowed_name_opens_the_own_network_but_no_metadata_service() -> None:
    allow = parse_allow(["hooks.internal:80"])
    for text, good in {
        "10.0.0.1": True, "127.0.0.1": True, "fd00::1": True, "::1": True, "8.8.8.8": True,
        "169.254.169.254": False, "fe80::1": False, "0.0.0.1": False, "::": False, "224.0.0.1": False,
        "::ffff:10.0.0.1": False, "168.63.129.16": False,
    }.items():  # fmt: skip
        assert allow.permits("hooks.internal", ip_address(text), 80) is good, text
    assert not allow.permits("hooks.internal", ip_address("10.0.0.1"), 81)
    assert not allow.permits("other.internal", ip_address("10.0.0.1"), 80)


HERE = check_url("https://a.example:8443/dir/page?q")


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/x", "https://a.example:8443/x"),
        ("y?z", "https://a.example:8443/dir/y?z"),
        ("../x", "https://a.example:8443/x"),
        ("?z", "https://a.example:8443/dir/page?z"),
        ("//b.example/", "https://b.example/"),
        ("https://b.example/x#part", "https://b.example/x"),
        ("http://a.example/", None),
        ("//127.0.0.1/", None),
        ("/\\127.0.0.1/", None),
        ("https:127.0.0.1", None),
        ("https:b.example", None),
        ("///b.example/", None),
        ("mailto:a@b.example", None),
        ("x:y", None),
        ("./x:y", "https://a.example:8443/dir/x:y"),
        ("https://u@b.example/", None),
        ("file:///etc/passwd", None),
        ("/x\r\ny", None),
        ("#", None),
        ("/" + "x" * MAX_URL_CHARS, None),
    ],
)
def test_redirects(location: str, url: str | None) -> None:
    if url is None:
        with pytest.raises(EgressRefused):
            read_redirect(HERE, location, parse_allow([]))
    else:
        assert read_redirect(HERE, location, parse_allow([])).url == url


PIECES = st.sampled_from(
    ["http", "https", "file", "://", ":", "/", "//", "\\", "@", "#", "?", "[", "]", ".", "%", "%2e", "127.0.0.1",
     "0x7f.1", "::1", "a.example", "localhost", "8.8.8.8", "80", "8080", "\t", "\n", " ", "\uff11", "xn--a", "-", "_", "|"]
)  # fmt: skip
URLS = st.one_of(
    st.lists(PIECES, max_size=12).map("".join),
    st.lists(PIECES, max_size=9).map(lambda pieces: "http://" + "".join(pieces)),
    st.text(max_size=40),
)


@settings(max_examples=2000, deadline=None)
@given(URLS)
@example("http://a.example/[")
def test_whatever_is_accepted_is_read_alike_by_other_readers(url: str) -> None:
    try:
        target = check_url(url)
    except EgressRefused:
        return
    assert check_url(target.url) == target
    split, library = urlsplit(url), URL(url, encoded=True)
    assert split.hostname is not None
    assert library.raw_host is not None
    if ":" in target.host:
        assert IPv6Address(split.hostname) == IPv6Address(library.raw_host) == IPv6Address(target.host)
    else:
        assert split.hostname == library.raw_host.lower() == target.host
    assert (split.port or target.port) == library.port == target.port
    assert split.scheme == library.scheme == target.scheme
    assert split.username is library.raw_user is None


@settings(max_examples=3000, deadline=None)
@given(st.ip_addresses())
def test_public_is_at_most_what_the_standard_library_calls_global(address: IPv4Address | IPv6Address) -> None:
    if is_public(address):
        if address.version == 6 and int(address) >> 32 == int(IPv6Address("64:ff9b::")) >> 32:
            address = IPv4Address(int(address) & 0xFFFFFFFF)
        assert address.is_global
        odd = ("multicast", "private", "loopback", "link_local", "reserved", "unspecified")
        assert not any(getattr(address, f"is_{kind}") for kind in odd)
        if isinstance(address, IPv6Address):
            assert (address.ipv4_mapped, address.sixtofour, address.teredo) == (None, None, None)
            assert not address.is_site_local


@given(st.ip_addresses(v=4))
def test_an_ordinary_address_is_public(address: IPv4Address) -> None:
    ordinary = address.is_global and not address.is_multicast
    odd = ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")
    assert is_public(address) is (ordinary and not any(address in IPv4Network(text) for text in odd))


def test_time_is_not_wasted_on_a_refusal() -> None:
    """A URL of the largest size, made to be slow for careless patterns, is read in no time."""
    begun = time.process_time()
    for url in (
        "http://" + "a." * 2000,
        "http://a.example/" + "%" * 4000,
        "h" * 4096,
        "http://" + "1." * 2000,
    ):
        with pytest.raises(EgressRefused):
            check_url(url)
    assert time.process_time() - begun < 1
