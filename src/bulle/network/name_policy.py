"""Which foreign names a container may ask for, and what of an answer it may see: the DNS side of ``--egress``.

The addresses themselves are held by :mod:`bulle.network.rules`; here nothing leaves the machine that should not (a name can carry data), and an
answer of a stranger cannot lead to an address that only this machine's network should reach (*rebinding*). Knows nothing of sockets.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Sequence
from typing import NamedTuple

from bulle.model.network import Destination, Egress
from bulle.network import dns_messages
from bulle.network.dns_messages import AAAA, ANSWER, CNAME, HTTPS, NAME_ERROR, NO_ERROR, SVCB, A, Malformed, Question, Record

SHORTEST_LIFETIME_S, LONGEST_LIFETIME_S = 300, 3600
"""For how long an answer with allowed addresses is good: at least (a program resolves once and connects again later) and at most."""


class Screened(NamedTuple):
    """What of an answer goes on; ``addresses`` have to be open for ``lifetime_s`` before it does."""

    message: bytes
    addresses: tuple[str, ...] = ()
    lifetime_s: int = 0


class NamePolicy:
    """The rules for one container's foreign names."""

    def __init__(self, egress: Egress) -> None:
        self._mode = egress.mode
        self._names: list[tuple[bytes, bool, tuple[int, ...]]] = []
        self._ranges: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        for destination in egress.destinations if egress.mode == "allow" else ():
            self._add(destination)

    def _add(self, destination: Destination) -> None:
        try:
            self._ranges.append(ipaddress.ip_network(destination.target, strict=False))
        except ValueError:
            below = destination.target.startswith("*.")
            name = dns_messages.wire(_encoded(destination.target[2 * below :]))
            if name is not None:
                self._names.append((name, below, destination.ports))

    def refusal(self, question: Question) -> int | None:
        """What to answer instead of asking anybody: a response code (no error: there is nothing of this type), None where it may be asked.

        It is "no such name", never "refused": resolvers take that for an answer, and do not ask again until they give up.
        """
        if self._mode == "none":
            return NAME_ERROR
        if self._mode == "allow":
            if not self._entries(question.key):
                return NAME_ERROR
            # Only what leads to an address: anything else carries data, or names of other places (services).
            return None if question.kind in (A, AAAA, CNAME) else NO_ERROR
        return None

    def ports(self, question: Question) -> tuple[int, ...]:
        """The ports that the list opens for a name, none for all of them."""
        entries = self._entries(question.key)
        return () if any(not ports for ports in entries) else tuple(sorted({port for ports in entries for port in ports}))

    def outgoing(self, message: bytes, question: Question) -> bytes:
        """What is asked in the end: without anything that could carry data to somebody who is not on the list."""
        return dns_messages.query(message, question) if self._mode == "allow" else message

    def screen(self, message: bytes, question: Question, largest_bytes: int) -> Screened:
        """What of an answer goes on. Raises Malformed."""
        if self._mode == "all":
            return Screened(message)
        records = dns_messages.records(message, question.end)
        if self._mode == "allow":
            return self._screen_listed(message, question, records, largest_bytes)
        fine = [record for record in records if self._fine(message, record)]
        if len(fine) == len(records):
            return Screened(message[: records[-1].end if records else question.end])
        answers = [record for record in records if record.section == ANSWER]
        if all(self._fine(message, record) for record in answers):
            return Screened(dns_messages.cut(message, question, answers))
        kept = [record for record in fine if record.section == ANSWER and record.kind in (A, AAAA, CNAME, HTTPS, SVCB)]
        return Screened(dns_messages.rewritten(message, question, kept, LONGEST_LIFETIME_S, largest_bytes))

    def _entries(self, name: bytes) -> list[tuple[int, ...]]:
        """The ports of all entries of the list that cover a name."""
        return [
            ports
            for entry, below, ports in self._names
            if (name == entry if not below else len(name) > len(entry) and name.endswith(entry) and _at_label(name, len(name) - len(entry)))
        ]

    def _screen_listed(self, message: bytes, question: Question, records: Sequence[Record], largest_bytes: int) -> Screened:
        """The addresses at the end of the aliases that begin with the name itself, and nothing else."""
        owners = {question.key}
        aliases = {record.owner: record for record in reversed(records) if record.section == ANSWER and record.kind == CNAME}
        name = question.key
        while name in aliases:
            name, _ = dns_messages.name_at(message, aliases[name].data_start)
            if name in owners:
                break
            owners.add(name)
        kept = [
            record
            for record in records
            if record.section == ANSWER and record.owner in owners and record.kind in (question.kind, CNAME) and self._fine(message, record)
        ]
        found = [message[record.data_start : record.end] for record in kept if record.kind in (A, AAAA)]
        # An address that only a range of the list covers is not opened by a name: whoever owns the name could choose the port otherwise.
        opened = tuple(str(ipaddress.ip_address(address)) for address in found if is_foreign(address))
        lifetime_s = max((record.ttl_s for record in kept), default=0)
        lifetime_s = min(max(lifetime_s, SHORTEST_LIFETIME_S), LONGEST_LIFETIME_S)
        return Screened(dns_messages.rewritten(message, question, kept, LONGEST_LIFETIME_S, largest_bytes), opened, lifetime_s)

    def _fine(self, message: bytes, record: Record) -> bool:
        """Whether a record of a stranger names only addresses that a stranger can have."""
        if record.kind in (A, AAAA):
            found = [message[record.data_start : record.end]]
        elif record.kind in (HTTPS, SVCB):
            found = _hints(message[record.data_start : record.end])
        else:
            return True
        return all(is_foreign(address) or self._in_ranges(address) for address in found)

    def _in_ranges(self, packed: bytes) -> bool:
        address = ipaddress.ip_address(packed)
        return any(address in network for network in self._ranges)


def _encoded(name: str) -> str:
    """A name as it is asked for, also one with other letters than those of ASCII. RFC 3490"""
    try:
        return name if name.isascii() else name.encode("idna").decode("ascii")
    except UnicodeError:
        return name


def _at_label(name: bytes, offset: int) -> bool:
    """Whether a label of a name in wire form begins there, and not only bytes that look like one."""
    at = 0
    while at < offset:
        at += 1 + name[at]
    return at == offset


_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: leads to the IPv4 address in its last bytes
_NOT_FOREIGN = tuple(
    ipaddress.ip_network(text)
    # Besides what :mod:`ipaddress` knows: a cloud's metadata at a public address, an old relay, and IPv6 ways to IPv4 addresses of whatever kind.
    for text in ("168.63.129.16/32", "192.88.99.0/24", "::/96", "::ffff:0:0/96", "64:ff9b:1::/48", "2001::/32", "2002::/16", "fec0::/10")
)


@functools.lru_cache(4096)
def is_foreign(packed: bytes) -> bool:
    """Whether an address (packed) is one of the internet at large: not private, loopback, link-local, shared, multicast, metadata or reserved."""
    address = ipaddress.ip_address(packed)
    if address in _TRANSLATED:
        address = ipaddress.ip_address(packed[12:])
    return address.is_global and not address.is_multicast and not any(address in network for network in _NOT_FOREIGN)


def _hints(data: bytes) -> list[bytes]:
    """The addresses within a service's record: its parameters 4 and 6. RFC 9460, 2.2 and 7.3. Raises Malformed."""
    _, at = dns_messages.name_at(data, 2)
    found: list[bytes] = []
    while at < len(data):
        key, length = int.from_bytes(data[at : at + 2], "big"), int.from_bytes(data[at + 2 : at + 4], "big")
        at += 4
        size = {4: 4, 6: 16}.get(key, 0)
        if at + length > len(data) or (size and length % size):
            raise Malformed(dns_messages.SERVER_FAILURE)
        found += [data[at + offset : at + offset + size] for offset in range(0, length if size else 0, size or 1)]
        at += length
    return found
