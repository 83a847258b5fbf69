"""seccomp(2) filters: a small compiler from rules by name to classic BPF, and their installation.

A filter is a list of :class:`Rule` over names of system calls. :func:`compile_profile` turns it into one program that covers every ABI that a
process of the machine can switch to (x86_64 with i386, aarch64 with arm): 32-bit calls never go around it, and x32, which shares x86_64's audit
number, is refused whole. The numbers of one ABI become sorted ranges and a balanced tree of comparisons, because the kernel walks the program once
for each number when it is installed (it remembers which are always allowed) and compiles it: a short program is a fast start. What the rules
*should* be is ``isolation.seccomp_profile``'s business. Specification: seccomp(2), Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bulle.linux.libc import libc, oserror
from bulle.linux.syscall_numbers import numbers

SECCOMP_RET_KILL_PROCESS = 0x80000000
SECCOMP_RET_KILL_THREAD = 0x00000000
SECCOMP_RET_TRAP = 0x00030000
SECCOMP_RET_ERRNO = 0x00050000
SECCOMP_RET_TRACE = 0x7FF00000
SECCOMP_RET_LOG = 0x7FFC0000
SECCOMP_RET_ALLOW = 0x7FFF0000

SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_LOG = 1 << 1
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 1 << 2

BPF_MAXINSNS = 4096
COMPILER_REVISION = 1
"""Part of the key under which programs are cached; raise it when the same rules compile to another program."""

Operator = Literal["NE", "LT", "LE", "EQ", "GE", "GT"]

_LOAD, _AND, _JUMP, _EQUAL, _GREATER, _GREATER_EQUAL, _RETURN = 0x20, 0x54, 0x05, 0x15, 0x25, 0x35, 0x06
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
_X32_BIT = 0x40000000
_PRIVATE = 0x10000  # above are arm's few own calls, whose numbers say nothing about their age
_AUDIT = {"x86_64": 0xC000003E, "i386": 0x40000003, "aarch64": 0xC00000B7, "arm": 0x40000028, "riscv64": 0xC00000F3}
_COMPATIBLE = {"x86_64": ("x86_64", "i386"), "aarch64": ("aarch64", "arm"), "riscv64": ("riscv64",)}
_NUMBER = ctypes.c_long(317 if platform.machine() == "x86_64" else 277)


def machine_abis(machine: str = "") -> tuple[str, ...]:
    """The ABIs that a process on ``machine`` (as uname(2) says it; this one by default) can use, native first; empty when not supported."""
    return _COMPATIBLE.get(machine or platform.machine(), ())


def errno_action(number: int) -> int:
    """The action that refuses a call with this errno."""
    return SECCOMP_RET_ERRNO | number & 0xFFFF


@dataclass(frozen=True)
class Condition:
    """``argument[index] & mask`` compared with ``value``, unsigned.

    The kernel cuts most arguments to 32 bits, a filter sees all 64: give the mask 0xFFFFFFFF where a refusal depends on the value, or the upper half
    goes around it.
    """

    index: int
    operator: Operator
    value: int
    mask: int = 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True)
class Rule:
    """``action`` for each of the calls ``names`` when all ``conditions`` hold."""

    names: tuple[str, ...]
    action: int
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True)
class SeccompProfile:
    """Rules, and what happens to the rest.

    Of the rules of one call, those with conditions are tried in order, then the first without. ``default_action`` is for calls without rules,
    ``unknown_action`` for those that the table does not know and those newer (of a higher number) than all that the rules name. ``abis`` limits the
    ABIs: a process that uses one that is left out is killed (empty: all of the machine).
    """

    rules: tuple[Rule, ...]
    default_action: int = SECCOMP_RET_ERRNO | errno.EPERM
    unknown_action: int = SECCOMP_RET_ERRNO | errno.ENOSYS
    abis: tuple[str, ...] = ()


_Leaf = int | tuple[Rule, ...]


class _Assembler:
    """Instructions, written from the last to the first: every jump of classic BPF goes forward, so its distance is known when it is written.

    A label is the distance of an instruction from the program's end.
    """

    def __init__(self) -> None:
        self._reversed: list[tuple[int, int, int, int]] = []
        self._returns: dict[int, int] = {}

    def program(self) -> bytes:
        if len(self._reversed) > BPF_MAXINSNS:
            raise ValueError(f"the filter has {len(self._reversed)} instructions, the kernel takes {BPF_MAXINSNS}")
        return b"".join(struct.pack("=HBBI", *instruction) for instruction in reversed(self._reversed))

    def _emit(self, code: int, constant: int, true: int = 0, false: int = 0) -> int:
        self._reversed.append((code, true, false, constant))
        return len(self._reversed)

    def _go(self, label: int) -> int:
        return self._emit(_JUMP, len(self._reversed) - label)

    def action(self, action: int) -> int:
        """A return of ``action``, shared while a conditional jump can still reach it."""
        label = self._returns.get(action, 0)
        if not label or len(self._reversed) - label > 200:
            label = self._returns[action] = self._emit(_RETURN, action)
        return label

    def jump(self, code: int, constant: int, true: int, false: int) -> int:
        if true == false:
            return true
        while True:
            here = len(self._reversed)
            if here - true > 255:
                true = self._go(true)
            elif here - false > 255:
                false = self._go(false)
            else:
                return self._emit(code, constant, here - true, here - false)

    def load(self, offset: int, following: int, mask: int = 0xFFFFFFFF) -> int:
        if following != len(self._reversed):
            following = self._go(following)
        if mask != 0xFFFFFFFF:
            self._emit(_AND, mask)
        return self._emit(_LOAD, offset)

    def compare(self, operator: Operator, value: int, true: int, false: int) -> int:
        """Compare the loaded 32 bits."""
        if operator == "EQ":
            return self.jump(_EQUAL, value, true, false)
        if operator == "NE":
            return self.jump(_EQUAL, value, false, true)
        if operator == "GT":
            return self.jump(_GREATER, value, true, false)
        if operator == "LE":
            return self.jump(_GREATER, value, false, true)
        if operator == "GE":
            return self.jump(_GREATER_EQUAL, value, true, false)
        return self.jump(_GREATER_EQUAL, value, false, true)

    def condition(self, condition: Condition, true: int, false: int) -> int:
        """Compare one 64-bit argument, upper half first; a half that the mask hides is not looked at."""
        offset = _ARGUMENTS_OFFSET + 8 * condition.index
        upper, lower = condition.value >> 32, condition.value & 0xFFFFFFFF
        upper_mask, lower_mask = condition.mask >> 32, condition.mask & 0xFFFFFFFF
        label = self.load(offset, self.compare(condition.operator, lower, true, false), lower_mask)
        if not upper_mask:
            return label
        if condition.operator in ("EQ", "NE"):
            differs = false if condition.operator == "EQ" else true
            label = self.compare("EQ", upper, label, differs)
        else:
            decided = self.compare("GT" if condition.operator in ("GT", "GE") else "LT", upper, true, false)
            label = self.compare("EQ", upper, label, decided)
        return self.load(offset + 4, label, upper_mask)

    def rules(self, rules: Sequence[Rule], otherwise: int) -> int:
        """The rules of one call, in order."""
        label = self.action(otherwise)
        for rule in reversed(rules):
            true, false = self.action(rule.action), label
            for condition in reversed(rule.conditions):
                true = self.condition(condition, true, false)
            label = true
        return label


def _leaves(profile: SeccompProfile, abi: str) -> list[tuple[int, _Leaf]]:
    """The decision of each range of numbers of one ABI: (first number, action or rules), ascending, neighbours that agree joined."""
    chains: dict[str, list[Rule]] = {}
    for rule in profile.rules:
        for name in rule.names:
            chains.setdefault(name, []).append(rule)
    decisions: dict[int, _Leaf] = {}
    for name, number in numbers(abi).items():
        chain = chains.get(name, [])
        conditional = [rule for rule in chain if rule.conditions]
        final = next((rule.action for rule in chain if not rule.conditions), profile.default_action)
        decisions[number] = (*conditional, Rule((), final)) if conditional else final
    table = numbers(abi)
    newest = max((table[name] for name in chains if table.get(name, _PRIVATE) < _PRIVATE), default=0)
    for name, number in table.items():
        if newest < number < _PRIVATE and name not in chains:
            decisions[number] = profile.unknown_action
    leaves: list[tuple[int, _Leaf]] = []

    def add(first: int, leaf: _Leaf) -> None:
        if not leaves or leaves[-1][1] != leaf:
            leaves.append((first, leaf))

    following = 0
    for number in sorted(decisions):
        if number > following:
            add(following, profile.unknown_action)
        add(number, decisions[number])
        following = number + 1
    add(following, profile.unknown_action)
    if abi == "x86_64":
        add(_X32_BIT, errno_action(errno.ENOSYS))
    return leaves


def _tree(assembler: _Assembler, leaves: Sequence[tuple[int, _Leaf]]) -> int:
    """A balanced tree of comparisons of the loaded number."""
    if len(leaves) == 1:
        leaf = leaves[0][1]
        return assembler.action(leaf) if isinstance(leaf, int) else assembler.rules(leaf[:-1], leaf[-1].action)
    middle = len(leaves) // 2
    upper = _tree(assembler, leaves[middle:])
    lower = _tree(assembler, leaves[:middle])
    return assembler.jump(_GREATER_EQUAL, leaves[middle][0], upper, lower)


def compile_profile(profile: SeccompProfile, machine: str = "") -> bytes:
    """The profile as a program for ``machine`` (uname(2); this one by default): packed ``struct sock_filter``.

    Raises ValueError for a machine that is not supported or a program beyond the kernel's 4096 instructions.
    """
    abis = machine_abis(machine)
    if not abis:
        raise ValueError(f"no table of system calls for {machine or platform.machine()}")
    assembler = _Assembler()
    label = assembler.action(SECCOMP_RET_KILL_PROCESS)
    for abi in reversed([abi for abi in abis if not profile.abis or abi in profile.abis]):
        block = assembler.load(_NUMBER_OFFSET, _tree(assembler, _leaves(profile, abi)))
        label = assembler.jump(_EQUAL, _AUDIT[abi], block, label)
    assembler.load(_ARCHITECTURE_OFFSET, label)
    return assembler.program()


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install(program: bytes, log: bool = False) -> None:
    """Put a compiled program on the calling thread and all that it becomes; it cannot be taken off.

    Needs CAP_SYS_ADMIN in the thread's user namespace, or no_new_privs. ``log`` writes every refusal to the audit log (``journalctl -k`` or ``dmesg``
    without auditd); off by default, since a container could flood the host's log with it. Raises OSError: EACCES without the privilege, EINVAL
    where the kernel has no filters. seccomp(2)
    """
    argument = _FilterProgram(len(program) // 8, program)  # points into the bytes; a ctypes array would be a new type for each length, and slow
    # SPEC_ALLOW: without it kernels before 5.16 slow every filtered process down (speculative store bypass); runc asks for it as well.
    for flags in (SECCOMP_FILTER_FLAG_SPEC_ALLOW | (SECCOMP_FILTER_FLAG_LOG if log else 0), 0):
        if libc.syscall(_NUMBER, ctypes.c_long(SECCOMP_SET_MODE_FILTER), ctypes.c_long(flags), ctypes.byref(argument)) == 0:
            return
        if ctypes.get_errno() != errno.EINVAL:
            break
    raise oserror("seccomp")
