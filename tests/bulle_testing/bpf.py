"""A small interpreter of classic BPF, to ask a seccomp filter what it would answer to a call, in every ABI, without making the call."""

from __future__ import annotations

import struct

AUDIT = {"x86_64": 0xC000003E, "i386": 0x40000003, "aarch64": 0xC00000B7, "arm": 0x40000028, "riscv64": 0xC00000F3}


def answer(program: bytes, abi: str, number: int, *arguments: int) -> int:
    """What the kernel would do with the call: the action of the filter. Knows every instruction that Bulle and libseccomp write."""
    data = struct.pack("=IIQ6Q", number, AUDIT[abi], 0, *arguments, *[0] * (6 - len(arguments)))
    instructions = list(struct.iter_unpack("=HBBI", program))
    position = accumulator = 0
    while True:
        code, true, false, constant = instructions[position]
        position += 1
        if code == 0x20:
            accumulator = struct.unpack_from("=I", data, constant)[0]
        elif code == 0x54:
            accumulator &= constant
        elif code == 0x05:
            position += constant
        elif code == 0x06:
            return constant
        else:
            equal, greater, common = accumulator == constant, accumulator > constant, bool(accumulator & constant)
            position += true if {0x15: equal, 0x25: greater, 0x35: equal or greater, 0x45: common}[code] else false
