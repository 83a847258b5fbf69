"""The default profile beside the one that the installed dockerd really puts on a container: its program is read back and interpreted."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bulle.isolation.seccomp_profile import default_profile
from bulle.linux.capabilities import DOCKER_DEFAULT
from bulle.linux.libc import libc, oserror
from bulle.linux.seccomp import SECCOMP_RET_ALLOW, compile_profile, machine_abis
from bulle.linux.syscall_numbers import numbers
from bulle_testing.bpf import answer

PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH, PTRACE_SECCOMP_GET_FILTER = 0x4206, 0x4207, 17, 0x420C

ARGUMENTS = (0, 1, 2, 8, 16, 17, 0x26, 0x28, 0x20000, 0x10000000, 0x40000000, 0xFFFFFFFF, 0x100000026, 0x100000028, 0x100000008)

# Calls that Docker's profile learned after 20.10, the release that Debian 12 carries; ours has them as the one of 2026 does.
LEARNED_LATER = (
    "cachestat fchmodat2 futex_requeue futex_wait futex_waitv futex_wake getxattrat landlock_add_rule landlock_create_ruleset landlock_restrict_self "
    "listmount listxattrat map_shadow_stack memfd_secret mseal name_to_handle_at pkey_alloc pkey_free pkey_mprotect process_mrelease "
    "process_vm_readv process_vm_writev removexattrat setxattrat statmount uretprobe"
)
# What ours refuses and Docker's may allow: crypto sockets, sockets whose family cannot be seen; before 25, io_uring and AF_VSOCK too.
TIGHTER = {("socket", 0x26), ("socket", 0x28), ("socket", 0x100000026), ("socket", 0x100000028), ("socketcall", 1)}
TIGHTER |= {(name, argument) for name in ("io_uring_setup", "io_uring_enter", "io_uring_register") for argument in ARGUMENTS}


def filter_of(pid: int) -> bytes:
    """The newest seccomp program of another process. ptrace(2)"""

    def ptrace(request: int, address: int, data: object) -> int:
        result = int(libc.ptrace(ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_long(address), data))
        if result < 0:
            raise oserror("ptrace")
        return result

    ptrace(PTRACE_SEIZE, 0, None)
    try:
        ptrace(PTRACE_INTERRUPT, 0, None)
        os.waitpid(pid, 0x40000000)  # __WALL
        size = ptrace(PTRACE_SECCOMP_GET_FILTER, 0, None)
        buffer = ctypes.create_string_buffer(size * 8)
        ptrace(PTRACE_SECCOMP_GET_FILTER, 0, buffer)
        return buffer.raw
    finally:
        ptrace(PTRACE_DETACH, 0, None)


@pytest.mark.root
@pytest.mark.slow
def test_ours_allows_what_docker_allows_and_nothing_more(dockerd: Callable[..., object], busybox_image: Path) -> None:
    dockerd("load", "-i", str(busybox_image))
    identity = dockerd("run", "-d", "--network", "none", "busybox:latest", "sleep", "1000").stdout.strip()  # type: ignore[attr-defined]
    try:
        pid = int(dockerd("inspect", "-f", "{{.State.Pid}}", identity).stdout)  # type: ignore[attr-defined]
        theirs = filter_of(pid)
    finally:
        dockerd("rm", "-f", identity)
    ours = compile_profile(default_profile(DOCKER_DEFAULT))
    looser, tighter = set(), set()
    for abi in machine_abis():
        for name, number in numbers(abi).items():
            for argument in [argument for argument in ARGUMENTS if abi not in ("i386", "arm") or argument < 1 << 32]:
                mine, other = (answer(program, abi, number, argument) == SECCOMP_RET_ALLOW for program in (ours, theirs))
                if mine and not other:
                    looser.add(name)
                if other and not mine:
                    tighter.add((name, argument))
    assert looser <= set(LEARNED_LATER.split())
    assert tighter <= TIGHTER
    assert ("socket", 0x26) in tighter  # as far as Docker is known: the comparison does compare
    assert len(ours) < len(theirs) / 2
