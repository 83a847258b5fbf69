"""Questions and answers of the DNS as bytes. RFC 1035, RFC 6891 (EDNS)

Whatever arrives here was written by somebody who may mean harm: reading is bounded in time and depth, and fails with :class:`Malformed` alone.
Names stay in their wire form (``\\x02db\\x00``), the case as asked, so that nothing in a label can be mistaken for a dot. Plain answers are put
together from bytes; what needs names in records is written by dnslib. Called by :mod:`bulle.network.dns`, which knows what to answer.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import dnslib  # type: ignore[import-untyped]

A, CNAME, PTR, AAAA, OPT, SVCB, HTTPS, IXFR, AXFR, ANY = 1, 5, 12, 28, 41, 64, 65, 251, 252, 255
INTERNET = 1
NO_ERROR, FORMAT_ERROR, SERVER_FAILURE, NAME_ERROR, NOT_IMPLEMENTED, REFUSED = range(6)

OWN_TTL_S = 0
"""How long somebody may keep an answer about a container: not at all. Docker says 600; then a program that caches goes on to an address which another
container may have by now, and asking costs some microseconds on this machine."""
LARGEST_DATAGRAM = 4096
LARGEST_MESSAGE = 65535
_PLAIN_DATAGRAM = 512
_MOST_RECORDS = 1000
_MOST_JUMPS = 32
_LARGEST_REWRITTEN = 0x3FFF  # as far as pointers reach, and far more than the addresses of any name
_LONGEST_NAME = 255

_HEADER = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHIH")
_RESPONSE, _AUTHORITATIVE, _TRUNCATED, _RECURSION_DESIRED, _RECURSION_AVAILABLE, _CHECKING_DISABLED = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0010
_OPCODE = 0x7800
_DNSSEC_OK = 0x8000
_QUESTION_NAME = b"\xc0\x0c"  # a pointer to where every message has its first question


class Malformed(ValueError):
    """A message that is no message; ``code`` is what to answer the one who sent it."""

    def __init__(self, code: int = FORMAT_ERROR) -> None:
        super().__init__(f"a malformed message (response code {code})")
        self.code = code


class Question(NamedTuple):
    """What a query asks: the name as it was written, its type, and what else the answer depends on.

    ``end`` is where the question ends in the message; ``payload_bytes`` what the asker can take in a datagram; ``extended`` says that it speaks EDNS.
    """

    name: bytes
    kind: int
    flags: int
    end: int
    extended: bool = False
    payload_bytes: int = _PLAIN_DATAGRAM
    dnssec: bool = False

    @property
    def key(self) -> bytes:
        """The name as names are compared; lengths of labels (63 at most) are no letters."""
        return self.name.lower()

    @property
    def labels(self) -> tuple[bytes, ...]:
        """The name's labels, the case as asked."""
        return labels(self.name)


class Record(NamedTuple):
    """One resource record of a message: its owner in wire form and lower case, and where its data is."""

    section: int
    owner: bytes
    kind: int
    ttl_s: int
    start: int
    data_start: int
    end: int


ANSWER, AUTHORITY, ADDITIONAL = range(3)


def wire(name: str) -> bytes | None:
    """A name in its wire form and lower case, None where it cannot be asked for (a label is longer than 63 bytes)."""
    parts = name.rstrip(".").lower().encode().split(b".")
    if any(not 0 < len(part) < 64 for part in parts):
        return None
    packed = b"".join(bytes((len(part),)) + part for part in parts) + b"\0"
    return packed if len(packed) <= _LONGEST_NAME else None


def labels(name: bytes) -> tuple[bytes, ...]:
    """The labels of a name in wire form."""
    found = []
    at = 0
    while length := name[at]:
        found.append(name[at + 1 : at + 1 + length])
        at += 1 + length
    return tuple(found)


def read_question(message: bytes) -> Question | None:
    """What a query asks; None for what deserves no answer (it is one itself, or has no header). Raises Malformed."""
    if len(message) < _HEADER.size:
        return None
    _, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(message)
    if flags & _RESPONSE:
        return None
    if flags & _OPCODE:
        raise Malformed(NOT_IMPLEMENTED)
    if questions != 1 or answers or authorities or additionals > 2:
        raise Malformed
    at = _HEADER.size
    length = len(message)
    # A name in a first question cannot point anywhere: before it is only the header.
    while True:
        if at >= length or message[at] > 63:
            raise Malformed
        if not message[at]:
            break
        at += 1 + message[at]
    at += 1
    if at - _HEADER.size > _LONGEST_NAME or at + 4 > length:
        raise Malformed
    kind = message[at] << 8 | message[at + 1]
    if message[at + 2] << 8 | message[at + 3] != INTERNET:
        raise Malformed(REFUSED)
    if kind in (AXFR, IXFR):
        raise Malformed(REFUSED)
    question = Question(message[_HEADER.size : at], kind, flags, at + 4)
    return _with_extension(message, question) if additionals else question


def _with_extension(message: bytes, question: Question) -> Question:
    """The question with what its OPT record says, where that comes first, as everyone sends it. RFC 6891, 6.1.2"""
    at = question.end
    if len(message) < at + 11 or message[at : at + 3] != b"\0\0\x29":
        return question
    _, payload_bytes, extended_flags, _ = _RECORD.unpack_from(message, at + 1)
    payload_bytes = min(max(payload_bytes, _PLAIN_DATAGRAM), LARGEST_DATAGRAM)
    return question._replace(extended=True, payload_bytes=payload_bytes, dnssec=bool(extended_flags & _DNSSEC_OK))


def query(message: bytes, question: Question) -> bytes:
    """The same question without anything else that the asker could have put into the message."""
    flags = question.flags & (_RECURSION_DESIRED | _CHECKING_DISABLED)
    packed = _HEADER.pack(0, flags, 1, 0, 0, int(question.extended)) + message[_HEADER.size : question.end]
    if question.extended:
        packed += b"\0" + _RECORD.pack(OPT, question.payload_bytes, _DNSSEC_OK if question.dnssec else 0, 0)
    return packed


def failure(message: bytes, code: int, is_truncated: bool = False) -> bytes:
    """An answer that says only why there is none, to anything with a header; the question is repeated if it can be read."""
    end = _HEADER.size
    flags = int.from_bytes(message[2:4], "big")
    try:
        question = read_question(message)
    except Malformed:
        question = None
    if question is not None:
        end = question.end
    flags = _answer_flags(flags, code) | (_TRUNCATED if is_truncated else 0)
    packed = message[:2] + _HEADER.pack(0, flags, int(question is not None), 0, 0, 0)[2:] + message[_HEADER.size : end]
    return _extended(packed, question) if question is not None else packed


def empty(message: bytes, question: Question, code: int = NO_ERROR) -> bytes:
    """An answer without records: no such name, or (no error) a name that has nothing of the type asked for."""
    packed = message[:2] + _HEADER.pack(0, _answer_flags(question.flags, code) | _AUTHORITATIVE, 1, 0, 0, 0)[2:]
    return _extended(packed + message[_HEADER.size : question.end], question)


def answers(message: bytes, question: Question, addresses: Sequence[bytes], largest_bytes: int) -> list[bytes]:
    """Answers with these addresses (packed, all of the type asked for), without their first two bytes (the id): each begins with another one.

    Who cannot take all of them in one datagram gets as many as fit and a mark that there are more, for which it asks again by TCP.
    """
    records = [_QUESTION_NAME + _RECORD.pack(question.kind, INTERNET, OWN_TTL_S, len(address)) + address for address in addresses]
    asked = message[_HEADER.size : question.end]
    room = largest_bytes - _HEADER.size - len(asked) - 11
    fitting = max(0, min(len(records), room // len(records[0])))
    flags = _answer_flags(question.flags, NO_ERROR) | _AUTHORITATIVE | (_TRUNCATED if fitting < len(records) else 0)
    head = _HEADER.pack(0, flags, 1, fitting, 0, 0)[2:] + asked
    step = max(1, len(records) // 32)
    turns = range(0, len(records), step)
    return [_extended(head + b"".join((records[turn:] + records[:turn])[:fitting]), question, missing=2) for turn in turns]


def pointer(message: bytes, question: Question, name: bytes) -> bytes:
    """The answer to a question for the name of an address."""
    reply = _reply(question, authoritative=True)
    reply.add_answer(dnslib.RR(reply.q.qname, PTR, ttl=OWN_TTL_S, rdata=dnslib.PTR(dnslib.DNSLabel(list(labels(name))))))
    return _extended(message[:2] + bytes(reply.pack())[2:], question)


def records(message: bytes, question_end: int) -> list[Record]:
    """All records of an answer in the order of their sections. Raises Malformed."""
    counts = _HEADER.unpack_from(message)[3:]
    if sum(counts) > _MOST_RECORDS:
        raise Malformed(SERVER_FAILURE)
    found = []
    at = question_end
    for section, count in enumerate(counts):
        for _ in range(count):
            start = at
            owner, at = name_at(message, at)
            if at + _RECORD.size > len(message):
                raise Malformed(SERVER_FAILURE)
            kind, _, ttl_s, length = _RECORD.unpack_from(message, at)
            data_start = at + _RECORD.size
            at = data_start + length
            if at > len(message) or (kind == A and length != 4) or (kind == AAAA and length != 16):
                raise Malformed(SERVER_FAILURE)
            found.append(Record(section, owner, kind, ttl_s, start, data_start, at))
    return found


def name_at(message: bytes, at: int) -> tuple[bytes, int]:
    """A name that may be compressed, in wire form and lower case, and where it ends. Raises Malformed."""
    parts = []
    size = 1
    end = 0  # set by the first jump: what follows the name in the message follows that
    lowest = at
    for _ in range(_MOST_JUMPS):
        while at < len(message) and 0 < message[at] < 64:
            parts.append(message[at : at + 1 + message[at]])
            size += len(parts[-1])
            at += 1 + message[at]
            if size > _LONGEST_NAME:
                raise Malformed(SERVER_FAILURE)
        if at >= len(message):
            raise Malformed(SERVER_FAILURE)
        if not message[at]:
            return b"".join((*parts, b"\0")).lower(), end or at + 1
        if message[at] < 0xC0 or at + 2 > len(message):
            raise Malformed(SERVER_FAILURE)
        end = end or at + 2
        at = (message[at] & 0x3F) << 8 | message[at + 1]
        if not _HEADER.size <= at < lowest:  # only backwards, so that it ends
            raise Malformed(SERVER_FAILURE)
        lowest = at
    raise Malformed(SERVER_FAILURE)


def cut(message: bytes, question: Question, kept: Sequence[Record]) -> bytes:
    """The first sections of an answer, up to the last of these records, without the rest. Pointers lead backwards, so they stay right."""
    counts = [sum(record.section == section for record in kept) for section in (ANSWER, AUTHORITY)]
    end = kept[-1].end if kept else question.end
    return _extended(message[:6] + struct.pack("!HHH", *counts, 0) + message[12:end], question)


def rewritten(message: bytes, question: Question, kept: Sequence[Record], longest_s: int, largest_bytes: int) -> bytes:
    """An answer anew from some of its own records: addresses, aliases and services, the only types that can stand in it."""
    reply = _reply(question)
    reply.header.bitmap = _answer_flags(question.flags, message[3] & 0xF) | (message[2] << 8 & _TRUNCATED)
    for record in kept:
        data = message[record.data_start : record.end]
        if record.kind == A:
            content = dnslib.A(tuple(data))
        elif record.kind == AAAA:
            content = dnslib.AAAA(tuple(data))
        elif record.kind == CNAME:
            content = dnslib.CNAME(dnslib.DNSLabel(list(labels(name_at(message, record.data_start)[0]))))
        else:
            content = dnslib.RD(data)
        reply.add_answer(dnslib.RR(dnslib.DNSLabel(list(labels(record.owner))), record.kind, ttl=min(record.ttl_s, longest_s), rdata=content))
    packed = _extended(message[:2] + bytes(reply.pack())[2:], question)
    if len(packed) > _LARGEST_REWRITTEN:
        raise Malformed(SERVER_FAILURE)
    if len(packed) <= largest_bytes:
        return packed
    head = message[:2] + struct.pack("!HHHHH", reply.header.bitmap | _TRUNCATED, 1, 0, 0, 0)
    return _extended(head + message[_HEADER.size : question.end], question)


def code_of(message: bytes) -> int:
    """The response code of an answer."""
    return message[3] & 0xF


def is_truncated(message: bytes) -> bool:
    """Whether an answer is only the beginning of one, which can be had by a stream."""
    return bool(message[2] << 8 & _TRUNCATED)


def _reply(question: Question, authoritative: bool = False) -> dnslib.DNSRecord:
    flags = _answer_flags(question.flags, NO_ERROR) | (_AUTHORITATIVE if authoritative else 0)
    asked = dnslib.DNSQuestion(dnslib.DNSLabel(list(question.labels)), question.kind, INTERNET)
    return dnslib.DNSRecord(dnslib.DNSHeader(id=0, bitmap=flags), q=asked)


def _answer_flags(flags: int, code: int) -> int:
    return flags & (_OPCODE | _RECURSION_DESIRED | _CHECKING_DISABLED) | _RESPONSE | _RECURSION_AVAILABLE | code


def _extended(packed: bytes, question: Question, missing: int = 0) -> bytes:
    """An answer with an OPT record for an asker who sent one; ``missing`` bytes (the id) are not there yet. RFC 6891, 6.1.1"""
    if not question.extended:
        return packed
    extension = b"\0" + _RECORD.pack(OPT, LARGEST_DATAGRAM, _DNSSEC_OK if question.dnssec else 0, 0)
    return packed[: 10 - missing] + b"\0\1" + packed[12 - missing :] + extension
