"""The name server of containers: their own names, forwarding, egress rules for names, and messages that mean harm; on loopback sockets."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import random
import socket
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import dnslib
import pytest

from bulle.errors import Unavailable
from bulle.model.network import Destination, Egress
from bulle.network import forwarding
from bulle.network.dns import View
from bulle.network.name_policy import is_foreign
from bulle.network.resolvers import HostResolvers
from bulle_testing.name_servers import Names, Upstream, ask, exchange, no_more_descriptors, values

FRONT, BACK = "f" * 64, "b" * 64
ASKER, WEB, OTHER = "a1" * 32, "c2" * 32, "d3" * 32


@pytest.fixture
def names() -> Iterator[Names]:
    made = Names()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def place(names: Names) -> tuple[str, int]:
    """A container on the network front, where web and a second one are; db is on back."""
    names.do("set_network", FRONT, "front")
    names.do("set_network", BACK, "back.office")
    names.do("set_names", WEB, {FRONT: (("www", "Site"), ("10.8.0.2", "fd00:8::2"))}, "web")
    names.do("set_names", OTHER, {FRONT: (("www",), ("10.8.0.3",)), BACK: (("db.service",), ("10.9.0.3",))}, "db")
    return names.add(ASKER, View((FRONT,)))


@pytest.mark.parametrize("name", ["web", "WeB", "site", WEB[:12], "web.front", "SITE.Front", "web."])
@pytest.mark.parametrize("tcp", [False, True])
def test_a_container_is_found_by_name_alias_and_short_id(place: tuple[str, int], name: str, tcp: bool) -> None:
    answer = ask(place, name, tcp=tcp)
    assert values(answer) == ["10.8.0.2"]
    assert str(answer.rr[0].rname) == name.rstrip(".") + "."  # the case as asked: some check it
    assert answer.header.ra == 1
    assert values(ask(place, name, "AAAA", tcp=tcp)) == ["fd00:8::2"]


def test_a_name_without_such_records_exists(place: tuple[str, int]) -> None:
    for kind in ("AAAA", "MX", "TXT", "HTTPS", "ANY"):
        answer = ask(place, "db", kind)
        assert (answer.header.rcode, answer.rr) == (0, []), kind


def test_names_of_other_networks_are_not_seen(names: Names, place: tuple[str, int]) -> None:
    upstream = names.upstream(lambda asked: _no_such_name(asked))
    assert values(ask(place, "db")) == ["10.8.0.3"]
    assert values(ask(place, "db.service")) == ["NXDOMAIN"]
    assert values(ask(place, "db.back.office")) == ["NXDOMAIN"]
    assert upstream.names() == ["db.service.", "db.back.office."]
    names.do("change", ASKER, View((BACK, FRONT)))
    assert values(ask(place, "db.service")) == ["10.9.0.3"]
    assert values(ask(place, "db.service.back.office")) == ["10.9.0.3"]
    assert values(ask(place, "db")) == ["10.9.0.3"]
    assert values(ask(place, "db.front")) == ["10.8.0.3"]


def test_several_addresses_take_turns(place: tuple[str, int]) -> None:
    for tcp in (False, True):
        first = Counter(values(ask(place, "www", tcp=tcp))[0] for _ in range(20))
        assert first == {"10.8.0.2": 10, "10.8.0.3": 10}


@pytest.mark.programs("dig")
def test_those_who_never_ask_in_the_same_words_take_turns(place: tuple[str, int]) -> None:
    first = Counter(_dig(place, "+short", "+cookie", "www").split()[0] for _ in range(8))
    assert first == {"10.8.0.2": 4, "10.8.0.3": 4}


def test_addresses_have_names_on_networks_of_the_asker_only(names: Names, place: tuple[str, int]) -> None:
    names.upstream(lambda asked: _no_such_name(asked))
    assert values(ask(place, "2.0.8.10.in-addr.arpa", "PTR")) == ["web.front."]
    assert values(ask(place, "3.0.8.10.IN-ADDR.arpa", "PTR")) == ["db.front."]
    reverse = ".".join(reversed("fd000008" + 23 * "0" + "2")) + ".ip6.arpa"
    assert values(ask(place, reverse, "PTR")) == ["web.front."]
    assert ask(place, "2.0.8.10.in-addr.arpa", "A").rr == []
    for other in ("3.0.9.10.in-addr.arpa", "0.8.10.in-addr.arpa", "2.0.8.010.in-addr.arpa", "1.2.0.8.10.in-addr.arpa", "x.0.8.10.in-addr.arpa"):
        assert values(ask(place, other, "PTR")) == ["NXDOMAIN"]


def test_names_follow_at_once_and_are_not_kept(names: Names, place: tuple[str, int]) -> None:
    names.upstream(lambda asked: _no_such_name(asked))
    for number in range(2, 30):
        names.do("set_names", WEB, {FRONT: ((), (f"10.8.7.{number}",))}, "web")
        answer = ask(place, "web")
        assert values(answer) == [f"10.8.7.{number}"]
        assert answer.rr[0].ttl == 0
        assert values(ask(place, f"{number}.7.8.10.in-addr.arpa", "PTR")) == ["web.front."]
        assert values(ask(place, f"{number - 1}.7.8.10.in-addr.arpa", "PTR")) == ["NXDOMAIN"]
    names.do("forget_names", WEB)
    assert values(ask(place, "web")) == ["NXDOMAIN"]
    names.do("forget_names", WEB)


def test_an_address_that_is_anothers_by_now_stays_its(names: Names, place: tuple[str, int]) -> None:
    names.do("set_names", "e" * 64, {FRONT: ((), ("10.8.0.2",))}, "next")
    names.do("forget_names", WEB)
    assert values(ask(place, "2.0.8.10.in-addr.arpa", "PTR")) == ["next.front."]


def test_names_that_cannot_be_asked_for_harm_nobody(names: Names, place: tuple[str, int]) -> None:
    long = "x" * 70
    names.do("set_names", WEB, {FRONT: ((long, "", "a..b", "ok"), ("10.8.0.2",))}, long)
    assert values(ask(place, "ok")) == ["10.8.0.2"]
    assert values(ask(place, "2.0.8.10.in-addr.arpa", "PTR")) == [f"{WEB[:12]}.front."]


def test_a_dot_in_a_label_is_no_dot(names: Names, place: tuple[str, int]) -> None:
    names.upstream(lambda asked: _no_such_name(asked))
    message = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\x09web.front\0\0\1\0\1"
    assert exchange(place, message)[3] & 15 == dnslib.RCODE.NXDOMAIN


def test_more_than_a_datagram_holds_comes_by_stream(names: Names, place: tuple[str, int]) -> None:
    addresses = [f"10.8.{number // 200}.{number % 200 + 1}" for number in range(400)]
    for number, address in enumerate(addresses):
        names.do("set_names", f"{number:064x}", {FRONT: (("many",), (address,))}, f"c{number}")
    short = ask(place, "many")
    assert short.header.tc == 1
    assert 25 <= len(short.rr) <= 31
    assert sorted(values(ask(place, "many", tcp=True))) == sorted(addresses)
    question = dnslib.DNSRecord.question("many")
    question.add_ar(dnslib.EDNS0(udp_len=1232))
    raw = exchange(place, question.pack())
    answer = dnslib.DNSRecord.parse(raw)
    assert 1200 < len(raw) <= 1232
    assert answer.header.tc == 1
    assert answer.ar[0].rtype == dnslib.QTYPE.OPT
    # However the first ones are drawn, everyone is met.
    met = {address for _ in range(80) for address in values(ask(place, "many"))}
    assert met == set(addresses)


@pytest.mark.programs("dig")
def test_dig_has_nothing_to_complain_about(place: tuple[str, int]) -> None:
    for options in ((), ("+tcp",), ("+noedns",), ("+dnssec",), ("+bufsize=4096",)):
        text = _dig(place, *options, "www")
        assert "status: NOERROR" in text
        assert ";; WARNING" not in text
        assert text.count("10.8.0.") == 2
        assert ("OPT PSEUDOSECTION" in text) == (options != ("+noedns",))
    assert "front." in _dig(place, "-x", "10.8.0.2")


# Forwarding


def test_foreign_names_are_asked_of_the_hosts_servers(names: Names, place: tuple[str, int]) -> None:
    upstream = names.upstream(
        lambda asked: "example.org. 77 A 192.0.2.1\nexample.org. 77 A 127.0.0.1" if asked.q.qtype == 1 else _no_such_name(asked)
    )
    for tcp in (False, True):
        answer = ask(place, "example.org", tcp=tcp)
        assert values(answer) == ["192.0.2.1", "127.0.0.1"]  # no rules: as the server said it
        assert answer.rr[0].ttl == 77
    assert values(ask(place, "example.org", "MX")) == ["NXDOMAIN"]
    assert [by for _, by, _ in upstream.seen] == ["udp", "tcp", "udp"]


def test_a_container_has_servers_of_its_own(names: Names, place: tuple[str, int]) -> None:
    hosts = names.upstream(lambda asked: "example.org. 1 A 192.0.2.1")
    names.do("change", ASKER, View((FRONT,), upstreams=("127.0.0.99", "not.an.address")))
    assert values(ask(place, "example.org")) == ["SERVFAIL"]
    assert hosts.seen == []


def test_without_servers_it_is_said_at_once(place: tuple[str, int]) -> None:
    before = time.monotonic()
    assert values(ask(place, "example.org")) == ["SERVFAIL"]
    assert values(ask(place, "example.org", tcp=True)) == ["SERVFAIL"]
    assert time.monotonic() - before < 1


def test_extensions_and_truncation_pass_through(names: Names, place: tuple[str, int]) -> None:
    def reply(asked: dnslib.DNSRecord) -> dnslib.DNSRecord:
        answer = asked.reply()
        answer.add_answer(*dnslib.RR.fromZone("\n".join(f"big.example. 5 TXT {'x' * 200}{number}" for number in range(12))))
        return answer

    upstream = names.upstream(reply)
    assert ask(place, "big.example", "TXT").header.tc == 1
    assert len(ask(place, "big.example", "TXT", tcp=True).rr) == 12
    question = dnslib.DNSRecord.question("big.example", "TXT")
    question.add_ar(dnslib.EDNS0(flags="do", udp_len=4000, opts=[dnslib.EDNSOption(65001, b"data")]))
    assert len(dnslib.DNSRecord.parse(exchange(place, question.pack())).rr) == 12
    extension = upstream.seen[-1][0].ar[0]
    assert (extension.edns_len, extension.edns_do, extension.rdata[0].data) == (4000, 1, b"data")


def test_a_server_that_is_silent_refuses_or_is_not_there_is_passed_over(names: Names, place: tuple[str, int]) -> None:
    silent = names.upstream(lambda asked: None)
    answering = names.upstream(lambda asked: "example.org. 1 A 192.0.2.4")
    before = time.monotonic()
    assert values(ask(place, "example.org")) == ["192.0.2.4"]
    assert 1.5 < time.monotonic() - before < 4
    before = time.monotonic()
    assert values(ask(place, "example.org")) == ["192.0.2.4"]  # which is asked first from now on
    assert time.monotonic() - before < 1
    assert (len(silent.seen), len(answering.seen)) == (1, 2)

    refusing = names.upstream(lambda asked: _failed(asked, dnslib.RCODE.REFUSED))
    names.upstreams[:] = [("127.0.0.98", 9), ("::1", 9), refusing.server]
    assert values(ask(place, "example.org")) == ["REFUSED"]
    names.upstreams[:] = [("127.0.0.98", 9), refusing.server, answering.server]
    assert values(ask(place, "example.org")) == ["192.0.2.4"]
    assert values(ask(place, "example.org", tcp=True)) == ["192.0.2.4"]


def test_a_late_answer_is_taken(names: Names, place: tuple[str, int]) -> None:
    def late(asked: dnslib.DNSRecord) -> str:
        time.sleep(2.6)
        return "example.org. 1 A 192.0.2.5"

    names.upstream(late)
    names.upstream(lambda asked: None)
    assert values(ask(place, "example.org")) == ["192.0.2.5"]


def test_a_failure_without_a_question_is_passed_on(names: Names, place: tuple[str, int]) -> None:
    names.upstream(lambda asked: asked.pack()[:2] + b"\x81\x81" + bytes(8))
    assert values(ask(place, "example.org")) == ["FORMERR"]


def test_answers_of_nobody_that_was_asked_are_not_believed(names: Names, place: tuple[str, int]) -> None:
    wrong = "example.org. 1 A 192.0.2.66"
    upstream: Upstream

    def reply(asked: dnslib.DNSRecord) -> str:
        sender = upstream.seen[-1][2]
        forged = asked.reply()
        forged.add_answer(*dnslib.RR.fromZone(wrong))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(forged.pack(), sender)  # right in everything but where it comes from
        for change in ("id", "question", "query"):
            other = dnslib.DNSRecord.parse(forged.pack())
            if change == "id":
                other.header.id ^= 1
            elif change == "question":
                other.q.qname = "example.com"
            else:
                other.header.qr = 0
            upstream.udp.sendto(other.pack(), sender)
        upstream.udp.sendto(b"\0", sender)
        return "example.org. 1 A 192.0.2.7"

    upstream = names.upstream(reply)
    assert values(ask(place, "example.org")) == ["192.0.2.7"]


def test_ports_and_ids_of_questions_are_not_to_be_guessed(names: Names, place: tuple[str, int]) -> None:
    upstream = names.upstream(lambda asked: "example.org. 1 A 192.0.2.7")
    for _ in range(40):
        ask(place, "example.org")
    ports = [sender[1] for *_, sender in upstream.seen]
    ids = [asked.header.id for asked, *_ in upstream.seen]
    for values_seen in (ports, ids):
        assert len(set(values_seen)) > 35
        steps = Counter(after - before for before, after in itertools.pairwise(values_seen))
        assert steps.most_common(1)[0][1] < 5


@pytest.mark.parametrize("floods", [1, 12])
def test_floods_of_some_containers_leave_others_their_answers(names: Names, place: tuple[str, int], floods: int) -> None:
    """They ask for thousands of names of a server that never answers: what others ask is answered as ever."""
    silent = Upstream(lambda asked: None)
    names._foreign.append(silent)
    answering = names.upstream(lambda asked: "example.org. 1 A 192.0.2.7")
    flooded = [names.add(f"{number:064x}", View((FRONT,))) for number in range(floods)]
    names.upstreams[:] = [silent.server]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for number in range(3000):
            client.sendto(dnslib.DNSRecord.question(f"n{number}.example").pack(), flooded[number % floods])
        names.do("set_network", "0" * 64, "unrelated")  # has been read by now
        names.upstreams[:] = [answering.server]
        before = time.monotonic()
        assert values(ask(place, "web")) == ["10.8.0.2"]
        assert values(ask(place, "example.org")) == ["192.0.2.7"]
        assert time.monotonic() - before < 1
    assert len(silent.seen) <= min(64 * floods, 600)
    assert len(silent.seen) >= 50
    for number in range(floods):
        names.do("remove", f"{number:064x}")


def test_who_waits_is_served_when_a_flood_is_ended(names: Names, place: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "_MOST_ASKING", 2)
    monkeypatch.setattr(forwarding, "_RESERVED", 0)
    names.upstream(lambda asked: "example.org. 1 A 192.0.2.7" if str(asked.q.qname) == "example.org." else None)
    flooded = names.add(OTHER, View((FRONT,)))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for number in range(10):
            client.sendto(dnslib.DNSRecord.question(f"n{number}.example").pack(), flooded)
        client.settimeout(9)
        names.do("set_network", "0" * 64, "unrelated")  # has been read by now
        client.sendto(dnslib.DNSRecord.question("example.org").pack(), place)
        names.do("set_network", "0" * 64, "unrelated")
        before = time.monotonic()
        names.do("remove", OTHER)
        assert values(dnslib.DNSRecord.parse(client.recv(512))) == ["192.0.2.7"]
        assert time.monotonic() - before < 1


def test_without_descriptors_the_loop_rests_and_goes_on_later(names: Names, place: tuple[str, int]) -> None:
    names.upstreams[:] = [("127.0.0.98", 9)]
    with socket.socket() as stream, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client, no_more_descriptors():
        stream.connect(place)
        assert names.thread.turns_in(0.3) < 20
        client.settimeout(9)
        for name, wanted in (("web", "10.8.0.2"), ("example.org", "SERVFAIL")):
            client.sendto(dnslib.DNSRecord.question(name).pack(), place)
            assert values(dnslib.DNSRecord.parse(client.recv(512))) == [wanted]
    names.upstreams.clear()
    names.upstream(lambda asked: "example.org. 1 A 192.0.2.7")
    assert values(ask(place, "example.org", tcp=True)) == ["192.0.2.7"]


def test_resolv_conf_is_read_anew_when_it_changes(tmp_path: Path) -> None:
    now = [0.0]
    path = tmp_path / "resolv.conf"
    resolvers = HostResolvers(path, lambda: now[0])
    assert resolvers() == ()
    now[0] += 2
    path.write_text("# nameserver 9.9.9.9\nsearch x\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver host.name\nnameserver\n")
    assert resolvers() == (("192.0.2.1", 53), ("fe80::1%eth0", 53))
    path.unlink()
    path.write_text("nameserver 127.0.0.53\n")
    assert len(resolvers()) == 2  # it looks once in a second
    now[0] += 2
    assert resolvers() == (("127.0.0.53", 53),)


# Egress rules for names


def test_none_knows_containers_only(names: Names, place: tuple[str, int]) -> None:
    upstream = names.upstream(lambda asked: "example.org. 1 A 192.0.2.7")
    names.do("change", ASKER, View((FRONT,), egress=Egress("none")))
    for tcp in (False, True):
        assert values(ask(place, "example.org", tcp=tcp)) == ["NXDOMAIN"]
        assert values(ask(place, "4.4.8.8.in-addr.arpa", "PTR", tcp=tcp)) == ["NXDOMAIN"]
        assert values(ask(place, "web", tcp=tcp)) == ["10.8.0.2"]
    assert upstream.seen == []


INSIDE = ("10.1.2.3", "172.16.0.1", "192.168.1.1", "127.0.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255")
INSIDE_6 = ("::1", "fe80::1", "fd00:ec2::254", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "ff02::1", "::", "::10.0.0.1")


@pytest.mark.parametrize("address", (*INSIDE, *INSIDE_6, "168.63.129.16", "fec0::1", "192.0.0.1", "198.18.0.1", "64:ff9b:1::a00:1"))
def test_addresses_inside_are_not_foreign(address: str) -> None:
    assert not is_foreign(socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address))


@pytest.mark.parametrize("address", ["8.8.8.8", "151.101.0.223", "2a04:4e42::223", "64:ff9b::808:808", "172.32.0.1", "100.128.0.1"])
def test_addresses_of_the_internet_are_foreign(address: str) -> None:
    assert is_foreign(socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address))


@pytest.mark.parametrize("tcp", [False, True])
def test_internet_removes_addresses_inside(names: Names, place: tuple[str, int], tcp: bool) -> None:
    inside = {"A": INSIDE, "AAAA": INSIDE_6}

    def reply(asked: dnslib.DNSRecord) -> str:
        kind = dnslib.QTYPE[asked.q.qtype]
        good = {"A": "8.8.8.8", "AAAA": "2a04:4e42::223"}[kind]
        lines = [f"rebind.example. 60 CNAME x.example.\nx.example. 60 {kind} {good}"]
        return "\n".join(lines + [f"x.example. 60 {kind} {ipaddress.ip_address(address).exploded}" for address in inside[kind]])

    names.upstream(reply)
    names.do("change", ASKER, View((FRONT,), egress=Egress("internet")))
    assert values(ask(place, "rebind.example", tcp=True)) == ["x.example.", "8.8.8.8"]
    assert values(ask(place, "rebind.example", "AAAA", tcp=True)) == ["x.example.", "2a04:4e42::223"]


def test_internet_looks_at_all_sections_and_hints(names: Names, place: tuple[str, int]) -> None:
    def reply(asked: dnslib.DNSRecord) -> dnslib.DNSRecord:
        answer = asked.reply()
        if asked.q.qtype == dnslib.QTYPE.MX:
            answer.add_answer(*dnslib.RR.fromZone("example.org. 9 MX 10 mail.example.org."))
            answer.add_ar(*dnslib.RR.fromZone("mail.example.org. 9 A 10.0.0.25"))
        elif asked.q.qtype == dnslib.QTYPE.HTTPS:
            answer.add_answer(
                *dnslib.RR.fromZone("example.org. 9 HTTPS 1 . alpn=h2 ipv4hint=8.8.8.8\nexample.org. 9 HTTPS 2 . ipv4hint=8.8.4.4,10.0.0.1")
            )
        else:
            answer.add_answer(*dnslib.RR.fromZone("example.org. 9 A 8.8.8.8"))
            answer.add_ar(*dnslib.RR.fromZone("ns.example.org. 9 A 8.8.4.4"))
        return answer

    names.upstream(reply)
    names.do("change", ASKER, View((FRONT,), egress=Egress("internet")))
    mail = ask(place, "example.org", "MX")
    assert (values(mail), mail.ar) == (["10 mail.example.org."], [])
    services = values(ask(place, "example.org", "HTTPS"))
    assert len(services) == 1
    assert services[0].startswith("1 ")
    assert len(ask(place, "example.org").ar) == 1  # what is harmless goes through as it came


@pytest.fixture
def allowed(names: Names, place: tuple[str, int]) -> list[tuple]:
    """The asker may go to some names; what was opened for it."""
    opened: list[tuple] = []
    destinations = (
        Destination("pypi.org", (443,)),
        Destination("*.debian.org"),
        Destination("*.pypi.org", (80, 443)),
        Destination("files.pypi.org", (8080,)),
        Destination("10.7.0.0/16", (5432,)),
    )
    names.server.on_allowed = lambda *arguments: opened.append(arguments)
    names.do("change", ASKER, View((FRONT,), egress=Egress("allow", destinations)))
    return opened


def test_allowed_names_are_opened_before_they_are_answered(names: Names, place: tuple[str, int], allowed: list[tuple]) -> None:
    def reply(asked: dnslib.DNSRecord) -> dnslib.DNSRecord:
        answer = asked.reply()
        name = str(asked.q.qname)
        answer.add_answer(
            *dnslib.RR.fromZone(f"{name} 20 CNAME cdn.example.\ncdn.example. 7000 A 151.101.0.1\nevil.example. 60 A 8.8.8.8\n{name} 5 TXT x")
        )
        answer.add_ar(*dnslib.RR.fromZone("cdn.example. 60 A 9.9.9.9"))
        return answer

    upstream = names.upstream(reply)
    answer = ask(place, "PyPI.org")
    assert values(answer) == ["cdn.example.", "151.101.0.1"]
    assert [record.ttl for record in answer.rr] == [20, 3600]
    assert answer.ar == []
    assert allowed == [(ASKER, ("151.101.0.1",), (443,), 7200)]
    assert values(ask(place, "pypi.org", tcp=True)) == ["cdn.example.", "151.101.0.1"]
    assert len(allowed) == 1  # it is open for long enough
    assert values(ask(place, "a.b.debian.org", tcp=True)) == ["cdn.example.", "151.101.0.1"]
    assert allowed[1][2] == ()
    assert values(ask(place, "files.pypi.org")) == ["cdn.example.", "151.101.0.1"]
    assert allowed[2][2] == (80, 443, 8080)
    assert len(upstream.seen) == 4
    assert values(ask(place, "web")) == ["10.8.0.2"]
    assert len(allowed) == 3


def test_what_could_not_be_opened_is_not_answered(names: Names, place: tuple[str, int], allowed: list[tuple]) -> None:
    names.upstream(lambda asked: "pypi.org. 60 A 8.8.8.8")

    def fail(*arguments: object) -> None:
        raise Unavailable("cannot change the rules")

    names.server.on_allowed = fail
    assert values(ask(place, "pypi.org")) == ["SERVFAIL"]
    names.server.on_allowed = lambda *arguments: allowed.append(arguments)
    assert values(ask(place, "pypi.org")) == ["8.8.8.8"]
    assert len(allowed) == 1


def test_rules_that_changed_hold_for_answers_on_their_way(names: Names, place: tuple[str, int], allowed: list[tuple]) -> None:
    def reply(asked: dnslib.DNSRecord) -> str:
        names.do("change", ASKER, View((FRONT,), egress=Egress("none")))
        return "pypi.org. 60 A 8.8.8.8"

    names.upstream(reply)
    assert values(ask(place, "pypi.org")) == ["NXDOMAIN"]
    assert allowed == []


def test_allowed_names_may_have_other_letters(names: Names, place: tuple[str, int]) -> None:
    names.upstream(lambda asked: f"{asked.q.qname} 60 A 8.8.8.8")
    names.do("change", ASKER, View((FRONT,), egress=Egress("allow", (Destination("*.bücher.example"), Destination("x" * 80)))))
    assert values(ask(place, "www.xn--bcher-kva.example")) == ["8.8.8.8"]
    assert values(ask(place, "x.example")) == ["NXDOMAIN"]


@pytest.mark.parametrize("name", ["example.org", "debian.org", "xdebian.org", "pypi.org.example", "cdn.example", "1.0.101.151.in-addr.arpa", "pypi"])
def test_other_names_do_not_leave_the_machine(names: Names, place: tuple[str, int], allowed: list[tuple], name: str) -> None:
    upstream = names.upstream(lambda asked: f"{asked.q.qname} 1 A 8.8.8.8")
    for kind in ("A", "TXT", "PTR"):
        for tcp in (False, True):
            assert values(ask(place, name, kind, tcp=tcp)) == ["NXDOMAIN"]
    assert (upstream.seen, allowed) == ([], [])


def test_a_label_that_only_ends_like_an_allowed_name_is_another(names: Names, place: tuple[str, int], allowed: list[tuple]) -> None:
    """``\\006debian\\003org`` within one label looks like the end of an allowed name to who compares bytes."""
    upstream = names.upstream(lambda asked: f"{asked.q.qname} 1 A 8.8.8.8")
    label = b"x\x06debian\x03org"
    message = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0" + bytes((len(label),)) + label + b"\0\0\1\0\1"
    assert exchange(place, message)[3] & 15 == dnslib.RCODE.NXDOMAIN
    assert upstream.seen == []


def test_allowed_names_carry_nothing_else_out(names: Names, place: tuple[str, int], allowed: list[tuple]) -> None:
    upstream = names.upstream(lambda asked: "pypi.org. 1 A 8.8.8.8")
    for kind in ("TXT", "MX", "SRV", "HTTPS", "NULL", "ANY", "NS"):
        answer = ask(place, "pypi.org", kind)
        assert (answer.header.rcode, answer.rr) == (0, [])
    assert upstream.seen == []
    question = dnslib.DNSRecord.question("pypi.org")
    question.add_ar(dnslib.EDNS0(flags="do", udp_len=1400, opts=[dnslib.EDNSOption(65001, b"secret")]))
    raw = question.pack() + b"secret behind the end"
    answer = dnslib.DNSRecord.parse(exchange(place, raw))
    assert values(answer) == ["8.8.8.8"]
    assert answer.ar[0].rtype == dnslib.QTYPE.OPT
    asked = upstream.seen[0][0]
    assert b"secret" not in asked.pack()
    assert (asked.ar[0].edns_len, asked.ar[0].edns_do) == (1400, 1)


def test_allowed_names_cannot_lead_inside(names: Names, place: tuple[str, int], allowed: list[tuple]) -> None:
    names.upstream(lambda asked: "\n".join(f"pypi.org. 60 A {address}" for address in (*INSIDE, "10.7.1.1", "8.8.8.8")))
    assert values(ask(place, "pypi.org", tcp=True)) == ["10.7.1.1", "8.8.8.8"]
    # What a range of the list covers is answered, but a name opens no more of it than the range says.
    assert allowed == [(ASKER, ("8.8.8.8",), (443,), 600)]


def test_aliases_that_lead_round_in_a_circle_end(names: Names, place: tuple[str, int], allowed: list[tuple]) -> None:
    names.upstream(lambda asked: "pypi.org. 9 CNAME b.example.\nb.example. 9 CNAME c.example.\nc.example. 9 CNAME b.example.")
    assert values(ask(place, "pypi.org")) == ["b.example.", "c.example.", "b.example."]
    assert allowed == []


# Messages that mean harm


def _hostile(chance: random.Random) -> bytes:
    """A message from nearly right to noise."""
    name = b"".join(
        bytes((len(label),)) + label for label in (bytes(chance.choices(b"abcWEB\x00\xff.", k=chance.randrange(1, 12))) for _ in range(3))
    )
    header = struct.pack(
        "!HHHHHH", 7, chance.choice([0x0100, 0, chance.getrandbits(16) & 0x7FFF]), *(chance.choice([0, 1, 1, 2, 65535]) for _ in range(4))
    )
    return chance.choice(
        (
            lambda: chance.randbytes(chance.randrange(0, 80)),
            lambda: header + chance.randbytes(chance.randrange(0, 300)),
            lambda: header + name + b"\xc0\x0c\0\1\0\1",  # a pointer to itself, in a way
            lambda: header + b"\xc0\x0c\0\1\0\1" * chance.randrange(1, 50),
            lambda: header + b"\x3f" + b"x" * 63 + (b"\x3f" + b"y" * 63) * 5 + b"\0\0\1\0\1",
            lambda: header[:4] + b"\0\1\0\0\0\0\0\0" + name + b"\0" + chance.randbytes(4),
            lambda: header[:4] + b"\0\1\0\0\0\0\0\1" + name + b"\0\0\1\0\1\0\0\x29" + chance.randbytes(chance.randrange(0, 20)),
            lambda: header[:4] + b"\0\1\0\0\0\0\0\0" + b"\1a" * 200 + b"\0\0\1\0\1",
        )
    )()


@pytest.mark.parametrize("seed", range(4))
def test_noise_from_containers_ends_nothing(names: Names, place: tuple[str, int], seed: int) -> None:
    chance = random.Random(seed)
    names.do("change", ASKER, View((FRONT,), egress=Egress("none")))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for _ in range(1500):
            client.sendto(_hostile(chance), place)
            if chance.random() < 0.02:
                assert values(ask(place, "web")) == ["10.8.0.2"]
    for _ in range(30):
        with socket.create_connection(place) as stream:
            stream.sendall(b"".join(len(message).to_bytes(2, "big") + message for message in (_hostile(chance) for _ in range(30))))
    assert values(ask(place, "web", tcp=True)) == ["10.8.0.2"]


@pytest.mark.parametrize("mode", ["all", "internet", "allow"])
def test_noise_from_servers_ends_nothing(names: Names, place: tuple[str, int], mode: str) -> None:
    chance = random.Random(mode)

    def reply(asked: dnslib.DNSRecord) -> bytes:
        answer = asked.reply()
        answer.add_answer(*dnslib.RR.fromZone("x.org. 1 CNAME y.org.\ny.org. 1 A 8.8.8.8\ny.org. 1 A 10.0.0.1\nx.org. 1 HTTPS 1 . ipv4hint=8.8.8.8"))
        raw = bytearray(answer.pack())
        start = 12 + len(bytes(asked.q.qname.label[0])) + 10
        for _ in range(chance.randrange(1, 6)):
            raw[chance.choice((3, *range(6, 12), *range(start, len(raw))))] = chance.choice((0, 1, 0xC0, 0xFF, chance.randrange(256)))
        return bytes(raw[: chance.choice((len(raw), chance.randrange(start, len(raw))))]) + chance.randbytes(chance.choice((0, 50)))

    names.upstream(reply)
    destinations = (Destination("*.org"),) if mode == "allow" else ()
    names.do("change", ASKER, View((FRONT,), egress=Egress(mode, destinations)))
    question = dnslib.DNSRecord.question("x.org").pack()
    counts: Counter = Counter()
    for number in range(600):
        raw = exchange(place, question, tcp=number % 3 == 0)
        assert raw[:2] == question[:2]
        with contextlib.suppress(dnslib.DNSError, ValueError):
            understood = dnslib.DNSRecord.parse(raw)
            counts[understood.header.rcode] += 1
            assert mode == "all" or not any(str(record.rdata) == "10.0.0.1" and record.rtype == 1 for record in (*understood.rr, *understood.ar))
    assert values(ask(place, "web")) == ["10.8.0.2"]
    assert counts[dnslib.RCODE.NOERROR] > 50
    assert mode == "all" or counts[dnslib.RCODE.SERVFAIL] > 50


def test_chains_of_pointers_cost_little(names: Names, place: tuple[str, int]) -> None:
    """A large answer in which every name is a long way of pointers is given up, not followed for seconds."""
    chain = b"".join(struct.pack("!H", 0xC000 | (31 + 2 * (number - 1) if number else 12)) for number in range(5000))

    def reply(asked: dnslib.DNSRecord) -> bytes:
        records = b"\xc0\x0c\xff\xfe\0\1\0\0\0\1" + struct.pack("!H", len(chain)) + chain
        records += b"".join(struct.pack("!HHHIH", 0xC000 | (8001 + 2 * (number % 90)), 5, 1, 1, 2) + b"\xdf\x41" for number in range(900))
        return asked.pack()[:2] + b"\x81\x80\0\1" + struct.pack("!HHH", 901, 0, 0) + asked.pack()[12:] + records

    names.upstream(reply)
    names.do("change", ASKER, View((FRONT,), egress=Egress("internet")))
    before = time.monotonic()
    assert values(ask(place, "x", tcp=True)) == ["SERVFAIL"]
    assert time.monotonic() - before < 1


def test_streams_may_be_slow_many_pipelined_and_half_closed(names: Names, place: tuple[str, int]) -> None:
    names.upstream(lambda asked: f"{asked.q.qname} 1 A 8.8.8.8")
    idle = [socket.create_connection(place) for _ in range(70)]  # more than there is room for: the oldest go
    try:
        questions = [dnslib.DNSRecord.question(name).pack() for number in range(60) for name in ("web", f"n{number}.example")]
        sent = b"".join(len(question).to_bytes(2, "big") + question for question in questions)
        with socket.create_connection(place, timeout=9) as client, client.makefile("rb") as file:
            for at in range(0, len(sent), 1001):
                client.sendall(sent[at : at + 1001])
            client.shutdown(socket.SHUT_WR)
            answers = []
            while head := file.read(2):
                answers.append(dnslib.DNSRecord.parse(file.read(int.from_bytes(head, "big"))))
        assert Counter(answer.header.id for answer in answers) == Counter(int.from_bytes(question[:2], "big") for question in questions)
        assert Counter(str(answer.rr[0].rdata) for answer in answers) == {"10.8.0.2": 60, "8.8.8.8": 60}
        assert idle[0].recv(1) == b""
    finally:
        for connection in idle:
            connection.close()


def test_a_removed_container_is_answered_no_more(names: Names, place: tuple[str, int]) -> None:
    names.upstream(lambda asked: None)
    with socket.create_connection(place) as stream, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(dnslib.DNSRecord.question("waits.example").pack(), place)
        names.do("remove", ASKER)
        names.do("remove", ASKER)
        names.do("change", ASKER, View(()))
        assert stream.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        ask(place, "web", tcp=True)


def _no_such_name(asked: dnslib.DNSRecord) -> dnslib.DNSRecord:
    return _failed(asked, dnslib.RCODE.NXDOMAIN)


def _failed(asked: dnslib.DNSRecord, code: int) -> dnslib.DNSRecord:
    answer = asked.reply()
    answer.header.rcode = code
    return answer


def _dig(place: tuple[str, int], *arguments: str) -> str:
    command = ["dig", f"@{place[0]}", "-p", str(place[1]), "+tries=1", "+time=4", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
