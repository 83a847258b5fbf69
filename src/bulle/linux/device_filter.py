"""The device rules of control groups of version 2: an eBPF program, where version 1 had files to write.

Version 2 has no ``devices`` controller; access to device nodes is decided by programs attached to a group. :func:`attach` loads one that is an
allow-list. Which devices a container gets is ``isolation.control_group``'s business. Specification: bpf(2), BPF_PROG_TYPE_CGROUP_DEVICE.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bulle.linux.libc import libc, oserror

_BPF_NUMBER = {"x86_64": 321, "aarch64": 280, "riscv64": 280}
_PROG_LOAD, _PROG_ATTACH = 5, 8
_TYPE_CGROUP_DEVICE, _ATTACH_CGROUP_DEVICE, _ALLOW_MULTI = 15, 6, 2
_ACCESS = {"m": 1, "r": 2, "w": 4}
_KIND = {"b": 1, "c": 2}


@dataclass(frozen=True)
class DeviceRule:
    """``access`` (letters of ``rwm``) to block or character devices; None for a number means any."""

    kind: Literal["b", "c"]
    major: int | None
    minor: int | None
    access: str

    def line(self) -> str:
        """The rule as ``devices.allow`` of version 1 takes it."""
        major = "*" if self.major is None else self.major
        minor = "*" if self.minor is None else self.minor
        return f"{self.kind} {major}:{minor} {self.access}"


def _instruction(code: int, destination: int, source: int, offset: int, immediate: int) -> bytes:
    return struct.pack("=BBhi", code, source << 4 | destination, offset, immediate)


def assemble(rules: Sequence[DeviceRule]) -> bytes:
    """An eBPF program that answers 1 when a rule covers the access, else 0. Its context is ``struct bpf_cgroup_dev_ctx``."""
    load, move, jump_not_equal, bit_and, shift = 0x61, 0xB7, 0x55, 0x57, 0x77
    program = [
        _instruction(load, 2, 1, 0, 0),  # r2 = access_type, the kind
        _instruction(bit_and, 2, 0, 0, 0xFFFF),
        _instruction(load, 3, 1, 0, 0),  # r3 = access_type >> 16, the access
        _instruction(shift, 3, 0, 0, 16),
        _instruction(load, 4, 1, 4, 0),  # r4 = major
        _instruction(load, 5, 1, 8, 0),  # r5 = minor
    ]
    for rule in rules:
        denied = 7 & ~sum(_ACCESS[letter] for letter in set(rule.access))
        tests = [(2, _KIND[rule.kind])]
        tests += [(4, rule.major)] if rule.major is not None else []
        tests += [(5, rule.minor)] if rule.minor is not None else []
        body = [("test", register, value) for register, value in tests]
        length = len(body) + (3 if denied else 0) + 2  # what is left when a test fails is skipped
        left = length
        for _, register, value in body:
            left -= 1
            program.append(_instruction(jump_not_equal, register, 0, left, value))
        if denied:  # r6 = access & ~allowed must be 0
            program.append(_instruction(0xBF, 6, 3, 0, 0))
            program.append(_instruction(bit_and, 6, 0, 0, denied))
            program.append(_instruction(jump_not_equal, 6, 0, 2, 0))
        program += [_instruction(move, 0, 0, 0, 1), _instruction(0x95, 0, 0, 0, 0)]
    program += [_instruction(move, 0, 0, 0, 0), _instruction(0x95, 0, 0, 0, 0)]
    return b"".join(program)


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    number = ctypes.c_long(_BPF_NUMBER.get(platform.machine(), 280))
    result = int(libc.syscall(number, ctypes.c_long(command), buffer, ctypes.c_long(len(attributes))))
    if result < 0:
        raise oserror("bpf")
    return result


def attach(group_descriptor: int, rules: Sequence[DeviceRule]) -> None:
    """Allow the group behind an open directory of version 2 these devices and no others, as long as it lives.

    Programs of groups above still have their say. Raises OSError: EPERM without CAP_BPF (or CAP_SYS_ADMIN) on the host, EINVAL or ENOSYS where the
    kernel has no CONFIG_CGROUP_BPF.
    """
    program = assemble(rules)
    code = ctypes.create_string_buffer(program, len(program))
    license_text = ctypes.create_string_buffer(b"Apache-2.0")
    load = struct.pack("=IIQQIIQI", _TYPE_CGROUP_DEVICE, len(program) // 8, ctypes.addressof(code), ctypes.addressof(license_text), 0, 0, 0, 0)
    descriptor = _bpf(_PROG_LOAD, load.ljust(72, b"\0"))
    try:
        _bpf(_PROG_ATTACH, struct.pack("=IIII", group_descriptor, descriptor, _ATTACH_CGROUP_DEVICE, _ALLOW_MULTI).ljust(24, b"\0"))
    finally:
        os.close(descriptor)
