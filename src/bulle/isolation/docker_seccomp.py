"""Reader of seccomp profiles in Docker's JSON (``--security-opt seccomp=FILE``), also in the form of the OCI runtime specification.

Conditions on capabilities, architectures and kernel versions are resolved here; what comes out are plain rules for ``linux.seccomp``. As in runc, a
call above the highest number that the profile mentions answers ENOSYS unless the profile allows by default. Differences: of the rules of one call
those with arguments are tried first, in order (libseccomp forgets them when another rule has none), ``socket`` says nothing about ``socketcall``, and
x32 is always refused. Specification: https://docs.docker.com/engine/security/seccomp/, config-linux.md#seccomp.
"""

from __future__ import annotations

import errno
import os
import platform
import re

import msgspec

from bulle.errors import InvalidInput, Unsupported
from bulle.linux.seccomp import (
    SECCOMP_RET_ALLOW,
    SECCOMP_RET_ERRNO,
    SECCOMP_RET_KILL_PROCESS,
    SECCOMP_RET_KILL_THREAD,
    SECCOMP_RET_LOG,
    SECCOMP_RET_TRACE,
    SECCOMP_RET_TRAP,
    Condition,
    Operator,
    Rule,
    SeccompProfile,
    errno_action,
    machine_abis,
)

_ACTIONS = {
    "SCMP_ACT_ALLOW": SECCOMP_RET_ALLOW,
    "SCMP_ACT_ERRNO": SECCOMP_RET_ERRNO,
    "SCMP_ACT_KILL": SECCOMP_RET_KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": SECCOMP_RET_KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": SECCOMP_RET_KILL_PROCESS,
    "SCMP_ACT_TRAP": SECCOMP_RET_TRAP,
    "SCMP_ACT_LOG": SECCOMP_RET_LOG,
    "SCMP_ACT_TRACE": SECCOMP_RET_TRACE,
}
_OPERATORS: dict[str, Operator] = {
    "SCMP_CMP_NE": "NE",
    "SCMP_CMP_LT": "LT",
    "SCMP_CMP_LE": "LE",
    "SCMP_CMP_EQ": "EQ",
    "SCMP_CMP_GE": "GE",
    "SCMP_CMP_GT": "GT",
}
_ABIS = {
    "SCMP_ARCH_X86_64": "x86_64",
    "SCMP_ARCH_X86": "i386",
    "SCMP_ARCH_AARCH64": "aarch64",
    "SCMP_ARCH_ARM": "arm",
    "SCMP_ARCH_RISCV64": "riscv64",
}
_GO_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}


class _Argument(msgspec.Struct, rename="camel"):
    index: int
    op: str
    value: int = 0
    value_two: int = 0


class _Filter(msgspec.Struct, rename="camel"):
    caps: list[str] | None = None
    arches: list[str] | None = None
    min_kernel: str = ""


class _SystemCall(msgspec.Struct, rename="camel"):
    action: str
    names: list[str] | None = None
    name: str = ""
    errno_ret: int | None = None
    args: list[_Argument] | None = None
    includes: _Filter | None = None
    excludes: _Filter | None = None


class _Architecture(msgspec.Struct, rename="camel"):
    architecture: str
    sub_architectures: list[str] | None = None


class _Document(msgspec.Struct, rename="camel"):
    default_action: str
    default_errno_ret: int | None = None
    architectures: list[str] | None = None
    arch_map: list[_Architecture] | None = None
    listener_path: str = ""
    syscalls: list[_SystemCall] | None = None


def parse(text: str, capabilities: frozenset[str], machine: str = "") -> SeccompProfile:
    """The profile in ``text`` for a process that holds ``capabilities``, on ``machine`` (uname(2); this one by default).

    Raises InvalidInput, Unsupported for a profile that asks another process."""
    try:
        document = msgspec.json.decode(text, type=_Document)
    except msgspec.DecodeError as error:
        raise InvalidInput("the seccomp profile cannot be read", str(error), "give a file in Docker's JSON, or `unconfined`") from error
    if document.listener_path:
        raise Unsupported("seccomp profile with a listener", "seccomp")
    if document.architectures and document.arch_map:
        raise InvalidInput("the seccomp profile cannot be used", "it has both architectures and archMap", "keep one of them")
    default = _action(document.default_action, document.default_errno_ret)
    rules: list[Rule] = []
    for call in document.syscalls or []:
        names = tuple(call.names or ()) or ((call.name,) if call.name else ())
        if not names:
            raise InvalidInput("the seccomp profile cannot be used", "one of its rules names no system call")
        if _applies(call, capabilities, machine):
            action = _action(call.action, call.errno_ret)
            rules += [Rule(names, action, conditions) for conditions in _conditions(call.args or [])]
    permissive = default in (SECCOMP_RET_ALLOW, SECCOMP_RET_LOG)
    return SeccompProfile(
        tuple(rules),
        default_action=default,
        unknown_action=default if permissive else errno_action(errno.ENOSYS),
        abis=_abis(document, machine),
    )


def _action(name: str, errno_return: int | None) -> int:
    if name == "SCMP_ACT_NOTIFY":
        raise Unsupported("seccomp action SCMP_ACT_NOTIFY", "seccomp")
    if name not in _ACTIONS:
        raise InvalidInput("the seccomp profile cannot be used", f"{name!r} is no action", "see seccomp.md of the OCI runtime specification")
    if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        return _ACTIONS[name] | (errno.EPERM if errno_return is None else errno_return) & 0xFFFF
    return _ACTIONS[name]


def _conditions(arguments: list[_Argument]) -> list[tuple[Condition, ...]]:
    """All must hold; as in runc, where two look at the same argument each is a rule of its own."""
    conditions = [_condition(argument) for argument in arguments]
    if len({condition.index for condition in conditions}) < len(conditions):
        return [(condition,) for condition in conditions]
    return [tuple(conditions)]


def _condition(argument: _Argument) -> Condition:
    wrong = not 0 <= argument.index <= 5 or not 0 <= argument.value < 1 << 64 or not 0 <= argument.value_two < 1 << 64
    if wrong or argument.op not in (*_OPERATORS, "SCMP_CMP_MASKED_EQ"):
        raise InvalidInput("the seccomp profile cannot be used", f"a condition on argument {argument.index} ({argument.op}) is not possible")
    if argument.op == "SCMP_CMP_MASKED_EQ":
        return Condition(argument.index, "EQ", argument.value_two & argument.value, argument.value)
    return Condition(argument.index, _OPERATORS[argument.op], argument.value)


def _applies(call: _SystemCall, capabilities: frozenset[str], machine: str) -> bool:
    """Whether the rule is meant for this container on this machine."""
    architecture = _GO_ARCHITECTURES.get(machine or platform.machine(), "")
    includes, excludes = call.includes or _Filter(), call.excludes or _Filter()
    if includes.arches and architecture not in includes.arches:
        return False
    if includes.caps and not capabilities.issuperset(includes.caps):
        return False
    if includes.min_kernel and _version(os.uname().release) < _version(includes.min_kernel):
        return False
    if excludes.arches and architecture in excludes.arches:
        return False
    if excludes.caps and not capabilities.isdisjoint(excludes.caps):
        return False
    return not (excludes.min_kernel and _version(os.uname().release) >= _version(excludes.min_kernel))


def _version(release: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", release)
    if not match:
        raise InvalidInput("the seccomp profile cannot be used", f"{release!r} is no kernel version")
    return int(match[1]), int(match[2])


def _abis(document: _Document, machine: str) -> tuple[str, ...]:
    """The ABIs that the profile covers; the native one is always in it."""
    abis = machine_abis(machine)
    named = list(document.architectures or [])
    for entry in document.arch_map or []:
        if _ABIS.get(entry.architecture) == abis[0]:
            named += [entry.architecture, *(entry.sub_architectures or [])]
    return tuple(abi for abi in abis if abi == abis[0] or abi in {_ABIS.get(name) for name in named})
