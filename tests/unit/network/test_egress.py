"""The texts of ``--egress``, and which addresses are not the internet."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulle.errors import BulleError, InvalidInput
from bulle.model.network import Destination, Egress
from bulle.network.egress import is_listed, is_name, is_private, narrower, parse_egress


@pytest.mark.parametrize("word", ["none", "internet", "all"])
def test_words(word: str) -> None:
    assert parse_egress(word) == Egress(mode=word)  # type: ignore[arg-type]


def test_a_list_has_names_addresses_and_ports() -> None:
    text = "allow:PyPI.org:443, *.debian.org.,10.0.0.0/8:5432,10.0.0.0/8:22,192.168.1.7,2001:db8::/32,[2a00::1]:53,[2a00::2],pypi.org:80"
    egress = parse_egress(text)
    assert egress == Egress(
        mode="allow",
        destinations=(
            Destination("pypi.org", (80, 443)),
            Destination("*.debian.org"),
            Destination("10.0.0.0/8", (22, 5432)),
            Destination("192.168.1.7/32"),
            Destination("2001:db8::/32"),
            Destination("2a00::1/128", (53,)),
            Destination("2a00::2/128"),
        ),
    )
    assert [is_name(destination.target) for destination in egress.destinations] == [True, True, False, False, False, False, False]


def test_all_ports_win_over_some() -> None:
    assert parse_egress("allow:a.org:80,a.org,a.org:443").destinations == (Destination("a.org"),)


@pytest.mark.parametrize(
    "text",
    [
        "", "some", "None", "allow", "allow:", "allow:,", "allow:a.org,,b.org", "allow:a.org:", "allow:a.org:0", "allow:a.org:65536",
        "allow:a.org:http", "allow:a.org:80:90", "allow:a.org:+80", "allow:a.org:٣", "allow:10.0.0.0/33", "allow:10.0.0.1/8", "allow:10.0.0/8",
        "allow:1.2.3",
        "allow:300.1.1.1", "allow:*", "allow:*.*.org", "allow:a.*.org", "allow:*a.org", "allow:-a.org", "allow:a_.org.-", "allow:a b.org",
        "allow:münchen.de",
        "allow:[2a00::1", "allow:[2a00::1]80", "allow:[2a00::1]:", "allow:fe80::1%eth0", "allow:" + "a" * 64 + ".org", "allow:" + "abc." * 64 + "org",
        "none:a.org", "internet:", "allow:a.org; drop", 'allow:"a"',
    ],
)  # fmt: skip
def test_what_is_no_egress_is_said_in_a_sentence(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_egress(text)
    assert "egress" in str(caught.value)
    assert "; " in str(caught.value), "what to write instead"


def test_a_network_with_bits_beyond_its_prefix_is_told_what_it_is() -> None:
    with pytest.raises(InvalidInput, match=r"write 10\.0\.0\.0/8"):
        parse_egress("allow:10.0.0.1/8")


@given(st.text(alphabet="allow:,.*[]/0123456789abcdef-_ %", max_size=40))
def test_any_text_is_data_or_an_error_of_ours(text: str) -> None:
    for whole in (text, f"allow:{text}"):
        try:
            egress = parse_egress(whole)
        except BulleError:
            continue
        for destination in egress.destinations:
            if not is_name(destination.target):
                assert str(ipaddress.ip_network(destination.target)) == destination.target


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1", "168.63.129.16", "169.254.169.254", "172.16.0.1", "172.31.255.255",
        "192.0.0.192", "192.0.2.1", "192.168.0.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::ffff:8.8.8.8", "::7f00:1", "fe80::1", "fc00::1", "fd00:ec2::254", "fd20:ce::254", "fec0::1", "ff02::1", "2001::1",
        "2001:db8::1", "2002:0a00:0001::1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254",
        "64:ff9b:1::8.8.8.8", "3fff::1",
        "100::1", "5f00::1",
    ],
)  # fmt: skip
def test_what_is_not_the_internet(address: str) -> None:
    assert is_private(address)


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "172.32.0.0", "169.253.0.1", "192.0.1.1", "223.255.255.255",
     "2606:4700::1111", "2a00:1450::1", "2003::1", "64:ff9b::8.8.8.8", "2002:0808:0808::1"],
)  # fmt: skip
def test_what_is(address: str) -> None:
    assert not is_private(address)


@given(st.ip_addresses(v=4))
def test_the_world_is_as_pythons_library_knows_it(address: ipaddress.IPv4Address) -> None:
    # Ours closes some more: an old relay of 6to4, a service of one cloud, and multicast.
    ours_alone = address.is_multicast or address in ipaddress.ip_network("192.88.99.0/24") or address == ipaddress.ip_address("168.63.129.16")
    assert is_private(str(address)) or address.is_global
    assert not is_private(str(address)) or not address.is_global or ours_alone or address in ipaddress.ip_network("192.0.0.0/24")


def test_a_list_covers_its_ranges_and_ports() -> None:
    egress = parse_egress("allow:10.0.0.0/8:80,2a00::/16,example.org")
    assert is_listed(egress, "10.1.1.1", 80)
    assert not is_listed(egress, "10.1.1.1", 81)
    assert not is_listed(egress, "11.1.1.1", 80)
    assert is_listed(egress, "2a00::1", 5)


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ("all", "internet", "internet"),
        ("none", "all", "none"),
        ("internet", "internet", "internet"),
        ("allow:a.org", "none", "none"),
        ("allow:a.org:80,10.0.0.0/8", "all", "allow:a.org:80,10.0.0.0/8"),
        ("allow:a.org:80,10.0.0.0/8,1.2.3.0/24,fd00::/8,2a00::/16", "internet", "allow:a.org:80,1.2.3.0/24,2a00::/16"),
        ("allow:192.168.0.0/15:22", "internet", "allow:192.169.0.0/16:22"),
        ("allow:10.0.0.0/8", "internet", "none"),
        ("allow:a.org,b.org:80,*.c.org:443", "allow:*.org:80", "allow:a.org:80,b.org:80"),
        ("allow:*.c.org:443,*.d.org", "allow:x.c.org,*.y.d.org", "allow:x.c.org:443,*.y.d.org"),
        ("allow:c.org,xc.org", "allow:*.c.org", "none"),
        ("allow:10.0.0.0/8:80,11.0.0.0/8", "allow:10.1.0.0/16,8.0.0.0/6:53", "allow:10.1.0.0/16:80,11.0.0.0/8:53"),
        ("allow:10.0.0.0/8", "allow:a.org,fd00::/8", "none"),
    ],
)
def test_two_words_together_allow_what_both_allow(one: str, other: str, both: str) -> None:
    assert narrower(parse_egress(one), parse_egress(other)) == parse_egress(both)
    found = narrower(parse_egress(other), parse_egress(one))
    assert sorted(found.destinations, key=str) == sorted(parse_egress(both).destinations, key=str)
