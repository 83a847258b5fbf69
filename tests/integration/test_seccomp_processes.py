"""Filters on real processes: what the kernel answers to calls of 64 and 32 bits once the default profile is on.

Refusals of the filter are given an errno of their own here, so that none is mistaken for the kernel's; no call would do harm if it were allowed.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import json
import mmap
import os
import platform
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator

import pytest

from bulle.isolation.docker_seccomp import parse
from bulle.isolation.seccomp_profile import default_profile, program_for
from bulle.linux import capabilities, seccomp
from bulle.linux.libc import libc
from bulle.linux.syscall_numbers import numbers

REFUSED, MISSING = 133, 134
PR_SET_NO_NEW_PRIVS = 38
X86_64 = platform.machine() == "x86_64"
needs_x86_64 = pytest.mark.skipif(not X86_64, reason="32-bit calls are tried on x86_64")


def in_child(body: Callable[[], object]) -> object:
    """What ``body`` returns (JSON) in a forked process; its end by a signal as ``signal N``."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writer, json.dumps(body()).encode())
        except BaseException as error:  # noqa: BLE001 -- reported to the parent
            os.write(writer, json.dumps(f"{type(error).__name__}: {error}").encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        text = file.read()
    status = os.waitpid(pid, 0)[1]
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else json.loads(text)


def marked(profile: seccomp.SeccompProfile) -> bytes:
    """The profile with errnos that no kernel uses for these calls."""
    swap = {seccomp.errno_action(errno.EPERM): seccomp.errno_action(REFUSED), seccomp.errno_action(errno.ENOSYS): seccomp.errno_action(MISSING)}
    rules = tuple(dataclasses.replace(rule, action=swap.get(rule.action, rule.action)) for rule in profile.rules)
    default, unknown = (swap.get(action, action) for action in (profile.default_action, profile.unknown_action))
    return seccomp.compile_profile(seccomp.SeccompProfile(rules, default, unknown, profile.abis))


def confine(program: bytes) -> None:
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    seccomp.install(program)


def native(name: str, *arguments: int) -> int:
    """The result of a raw call, -errno for an error."""
    number = numbers(platform.machine())[name]
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(a & (1 << 64) - 1) for a in arguments))
    return -ctypes.get_errno() if result == -1 else int(result)


class Calls32:
    """Calls through ``int 0x80``, the gate of 32-bit programs, from a few bytes of machine code; ``memory`` is an address that 32 bits can hold."""

    def __init__(self) -> None:
        code = bytes.fromhex("53 4989f8 418b00 418b5804 418b4808 418b500c 418b7010 418b7814 cd80 4898 5b c3")
        self._code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._code.write(code)
        self._data = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40)  # MAP_32BIT
        self._function = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p)(ctypes.addressof(ctypes.c_char.from_buffer(self._code)))
        self.memory = ctypes.addressof(ctypes.c_char.from_buffer(self._data))

    def words(self, *values: int) -> int:
        ctypes.memmove(self.memory, b"".join(value.to_bytes(4, sys.byteorder) for value in values), 4 * len(values))
        return self.memory

    def __call__(self, name: str, *arguments: int) -> int:
        values = [numbers("i386")[name], *arguments, 0, 0, 0, 0, 0]
        registers = (ctypes.c_uint32 * 6)(*(value & 0xFFFFFFFF for value in values[:6]))
        return int(self._function(ctypes.addressof(registers)))


@pytest.fixture
def default() -> bytes:
    return marked(default_profile(capabilities.DOCKER_DEFAULT))


HARMLESS: dict[str, tuple[int, ...]] = {
    "add_key": (0, 0, 0, 0, 0),
    "keyctl": (9999,),
    "request_key": (0, 0, 0, 0),
    "bpf": (9999, 0, 0),
    "userfaultfd": (0xFFFF,),
    "io_uring_setup": (0, 0),
    "io_uring_enter": (2**31, 0, 0, 0, 0, 0),
    "io_uring_register": (2**31, 0, 0, 0),
    "unshare": (0x10000000,),
    "setns": (2**31, 0),
    "mount": (0, 0, 0, 0, 0),
    "umount2": (0, 0),
    "pivot_root": (0, 0),
    "open_tree": (2**31, 0, 0),
    "fsopen": (0, 0),
    "move_mount": (2**31, 0, 2**31, 0, 0),
    "init_module": (0, 0, 0),
    "finit_module": (2**31, 0, 0),
    "delete_module": (0, 0),
    "kexec_load": (0, 0, 0, 2**31),
    "reboot": (0, 0, 0, 0),
    "swapon": (0, 0),
    "perf_event_open": (0, 0, 0, 0, 0),
    "open_by_handle_at": (2**31, 0, 0),
    "personality": (0x0040000,),
    "clone": (0x10000000 | signal.SIGCHLD, 0, 0, 0, 0),
    "quotactl": (0, 0, 0, 0),
    "syslog": (99, 0, 0),
    "acct": (1,),
    "sethostname": (0, 1 << 30),
}
ALLOWED: dict[str, tuple[int, ...]] = {
    "getpid": (),
    "capget": (0, 0),
    "personality": (0xFFFFFFFF,),
    "ptrace": (9999, 0, 0, 0),
    "process_vm_readv": (0, 0, 0, 0, 0, 1),
    "chroot": (0,),
    "setresuid": (2**32 - 1, 2**32 - 1, 2**32 - 1),
    "setresgid": (2**32 - 1, 2**32 - 1, 2**32 - 1),
    "capset": (0, 0),
    "execve": (0, 0, 0),
    "openat2": (0, 0, 0, 0),
    "statx": (0, 0, 0, 0, 0),
    "memfd_create": (0, 0),
    "landlock_create_ruleset": (0, 0, 1),
}


def test_dangerous_calls_are_refused_by_the_filter(default: bytes) -> None:
    def body() -> dict[str, int]:
        confine(default)
        return {name: native(name, *arguments) for name, arguments in HARMLESS.items()}

    assert in_child(body) == dict.fromkeys(HARMLESS, -REFUSED)


def test_ordinary_calls_reach_the_kernel(default: bytes) -> None:
    def body() -> dict[str, int]:
        confine(default)
        return {name: native(name, *arguments) for name, arguments in ALLOWED.items()}

    results = in_child(body)
    assert isinstance(results, dict)
    assert {name for name, result in results.items() if result in (-REFUSED, -MISSING)} == set()


def test_clone3_and_newer_calls_do_not_exist(default: bytes) -> None:
    def body() -> list[int]:
        confine(default)
        unknown = libc.syscall(ctypes.c_long(4000))
        newer = ctypes.get_errno() if unknown == -1 else 0
        return [native("clone3", 0, 0), native("open_tree_attr", -1, 0, 0, 0, 0), -newer]

    assert in_child(body) == [-MISSING] * 3


def test_sockets_of_refused_families(default: bytes) -> None:
    """Also with upper bits, which the kernel cuts off before it looks."""

    def body() -> list[int]:
        confine(default)
        return [native("socket", family, socket.SOCK_SEQPACKET, 0) for family in (38, 40, 1 << 32 | 38, 1 << 32 | 40)]

    assert in_child(body) == [-REFUSED] * 4

    def others() -> list[bool]:
        confine(default)
        return [native("socket", family, kind, 0) >= 0 for family, kind in ((1, 1), (2, 1), (2, 2), (10, 2), (16, 3), (1 << 32 | 2, 1))]

    assert in_child(others) == [True] * 6


def test_threads_processes_and_pipes_work_under_the_default() -> None:
    program = program_for("default", capabilities.DOCKER_DEFAULT, None)
    assert program

    def body() -> list[object]:
        import subprocess
        import threading

        confine(program)
        seen: list[object] = []
        thread = threading.Thread(target=seen.append, args=("thread",))
        thread.start()
        thread.join()
        seen.append(subprocess.run(["/bin/echo", "process"], capture_output=True, text=True, check=True).stdout.strip())
        return seen

    assert in_child(body) == ["thread", "process"]


@needs_x86_64
def test_calls_of_32_bits_do_not_go_around_the_filter(default: bytes) -> None:
    def body() -> dict[str, int]:
        calls = Calls32()
        confine(default)
        results = {name: calls(name, *arguments) for name, arguments in HARMLESS.items()}
        return results | {"getpid": calls("getpid") - os.getpid(), "clone3": calls("clone3", 0, 0), "open": calls("open", 0, 0, 0)}

    assert in_child(body) == dict.fromkeys(HARMLESS, -REFUSED) | {"getpid": 0, "clone3": -MISSING, "open": -errno.EFAULT}


@needs_x86_64
def test_sockets_of_32_bits(default: bytes) -> None:
    """socket(2) by its family; socketcall(2), which hides the family in memory, opens none, but its other calls work."""

    def body() -> list[int]:
        calls = Calls32()
        confine(default)
        by_socket = [calls("socket", family, 5, 0) for family in (38, 40)] + [min(calls("socket", 2, 1, 0), 0)]
        by_socketcall = [calls("socketcall", 1, calls.words(family, kind, 0)) for family, kind in ((38, 5), (2, 1))]
        listening = calls("socketcall", 4, calls.words(2**31 - 1, 1))
        return by_socket + by_socketcall + [listening]

    assert in_child(body) == [-REFUSED, -REFUSED, 0, -MISSING, -MISSING, -errno.EBADF]

    def old() -> list[int]:
        calls = Calls32()
        confine(marked(default_profile(capabilities.DOCKER_DEFAULT, socketcall=True)))
        return [min(calls("socketcall", 1, calls.words(2, 1, 0)), 0), calls("socket", 38, 5, 0)]

    assert in_child(old) == [0, -REFUSED]


@needs_x86_64
def test_x32_is_refused(default: bytes) -> None:
    def body() -> list[int]:
        confine(default)
        libc.syscall(ctypes.c_long(0x40000000 | numbers("x86_64")["getpid"]))
        return [ctypes.get_errno()]

    assert in_child(body) == [errno.ENOSYS]


@needs_x86_64
def test_an_architecture_that_a_profile_leaves_out_is_killed() -> None:
    text = json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"]})

    def body() -> int:
        calls = Calls32()
        confine(seccomp.compile_profile(parse(text, frozenset())))
        return calls("getpid")

    assert in_child(body) == f"signal {signal.SIGSYS}"


def test_namespaces_are_open_to_the_holder_of_sys_admin() -> None:
    def body() -> list[int]:
        confine(marked(default_profile(["CAP_SYS_ADMIN"])))
        return [native("unshare", 0), native("setns", 2**31, 0), native("clone3", 0, 0)]

    results = in_child(body)
    assert isinstance(results, list)
    assert not {-REFUSED, -MISSING}.intersection(results)


def test_installation_without_privilege_or_no_new_privs_fails() -> None:
    def body() -> str:
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 65534)
        try:
            seccomp.install(seccomp.compile_profile(default_profile(())))
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "installed"

    assert in_child(body) == "EACCES"


def test_every_action_that_the_compiler_writes_is_taken_by_the_kernel() -> None:
    def programs() -> Iterator[bytes]:
        for held in ((), capabilities.DOCKER_DEFAULT, capabilities.known()):
            yield seccomp.compile_profile(default_profile(held))
        conditions = ((v, seccomp.Condition(0, "EQ", 2**40 + v)) for v in range(1, 300))
        many: Iterable[seccomp.Rule] = (seccomp.Rule(("read",), seccomp.errno_action(v), (condition,)) for v, condition in conditions)
        yield seccomp.compile_profile(seccomp.SeccompProfile(tuple(many), seccomp.SECCOMP_RET_ALLOW, seccomp.SECCOMP_RET_ALLOW))

    def body() -> str:
        for program in programs():
            confine(program)
        return "installed"

    assert in_child(body) == "installed"
