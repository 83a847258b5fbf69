"""Which system calls a container may make: the default profile, and the cache of what profiles compile to.

The default allows what ordinary programs need and refuses the rest with EPERM, as Docker's does, and is a little tighter: AF_ALG and AF_VSOCK
sockets are refused also where a caller hides the family behind upper bits or socketcall(2), the 32-bit multiplexer whose arguments no filter can
see (a 32-bit program that knows no other way to a socket needs the profile named ``default+socketcall``); x32 is refused whole. clone3 and calls
newer than the profile answer ENOSYS, so that C libraries fall back. capset, setres*id and execve always pass: without no_new_privs the filter is
installed before the privilege for it is given up. A driver asks :func:`program_for` and installs the answer with ``linux.seccomp.install``.
Profiles in Docker's JSON are read by :mod:`bulle.isolation.docker_seccomp`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import platform
from collections.abc import Iterable
from pathlib import Path

from bulle.errors import Unavailable
from bulle.linux.seccomp import COMPILER_REVISION, SECCOMP_RET_ALLOW, Condition, Rule, SeccompProfile, compile_profile, errno_action, machine_abis
from bulle.linux.syscall_numbers import TABLE_REVISION

UNCONFINED = "unconfined"
DEFAULT = "default"
DEFAULT_WITH_SOCKETCALL = "default+socketcall"

_FILES = """
access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64 fadvise64_64 arm_fadvise64_64
fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat
fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 getxattr getxattrat ioctl lchown lchown32
lgetxattr link linkat listmount listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat
name_to_handle_at newfstatat open openat openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat
readv removexattr removexattrat rename renameat renameat2 rmdir sendfile sendfile64 setxattr setxattrat splice stat stat64 statfs statfs64
statmount statx symlink symlinkat sync sync_file_range arm_sync_file_range syncfs tee truncate truncate64 umask unlink unlinkat
utime utimensat utimensat_time64 utimes vmsplice write writev
"""
_WAITING = """
epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 fanotify_mark futex
futex_requeue futex_time64 futex_wait futex_waitv futex_wake inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy
io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit pause poll ppoll ppoll_time64 pselect6 pselect6_time64 select _newselect
signalfd signalfd4
"""
_MEMORY = """
brk cachestat cacheflush madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2 mprotect mremap
mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages riscv_flush_icache
"""
_PROCESSES = """
arch_prctl breakpoint execve execveat exit exit_group fork get_robust_list get_thread_area getcpu getpgid getpgrp getpid getppid getpriority
getrlimit getrusage getsid gettid ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self modify_ldt pidfd_open
pidfd_send_signal prctl prlimit64 process_mrelease process_vm_readv process_vm_writev ptrace restart_syscall riscv_hwprobe rseq
rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo
sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp set_robust_list set_thread_area
set_tid_address set_tls setpgid setpriority setrlimit setsid sigaltstack sigprocmask sigreturn sysinfo tgkill times tkill ugetrlimit uname uretprobe
vfork wait4 waitid waitpid
"""
_IDENTITY = """
capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid getresgid32 getresuid getresuid32 getuid getuid32
setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setregid setregid32 setresgid setresgid32 setresuid setresuid32
setreuid setreuid32 setuid setuid32
"""
_TIME = """
adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64
getitimer getrandom gettimeofday nanosleep setitimer time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime
timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64
"""
_COMMUNICATION = """
accept accept4 bind connect getpeername getsockname getsockopt ipc listen mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64
mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd recv recvfrom recvmmsg recvmmsg_time64 recvmsg semctl semget semop semtimedop
semtimedop_time64 send sendmmsg sendmsg sendto setsockopt shmat shmctl shmdt shmget shutdown socketpair
"""

_BY_CAPABILITY = {
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_ADMIN": "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules "
    "lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd "
    "setdomainname sethostname setns syslog umount umount2 unshare",
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module init_module finit_module",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "CAP_SYS_RAWIO": "iopl ioperm",
    "CAP_SYS_TIME": "settimeofday stime clock_settime clock_settime64",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYSLOG": "syslog",
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
}
"""Calls that exist for the holder of a capability only; to the others the kernel would refuse most of them anyway."""

_LOW_32_BITS = 0xFFFFFFFF
_AF_ALG, _AF_VSOCK = 38, 40
_SYS_SOCKET = 1
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET; NEWTIME lies in the byte that clone(2) takes for the signal.
_NEW_NAMESPACES = 0x7E020000
# PER_LINUX, PER_LINUX32, UNAME26 with either, and the question what it is.
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)


def default_profile(capabilities: Iterable[str], *, socketcall: bool = False) -> SeccompProfile:
    """The profile of a container that holds ``capabilities``; ``socketcall`` lets 32-bit programs open sockets through the old multiplexer."""
    held = frozenset(capabilities)
    refused, missing = errno_action(errno.EPERM), errno_action(errno.ENOSYS)
    names = " ".join((_FILES, _WAITING, _MEMORY, _PROCESSES, _IDENTITY, _TIME, _COMMUNICATION)).split()
    for capability, calls in _BY_CAPABILITY.items():
        if capability in held:
            names += calls.split()
    rules = [
        Rule(tuple(dict.fromkeys(names)), SECCOMP_RET_ALLOW),
        Rule(("socket",), refused, (Condition(0, "EQ", _AF_ALG, _LOW_32_BITS),)),
        Rule(("socket",), refused, (Condition(0, "EQ", _AF_VSOCK, _LOW_32_BITS),)),
        Rule(("socket",), SECCOMP_RET_ALLOW),
        Rule(("socketcall",), SECCOMP_RET_ALLOW),
    ]
    if not socketcall:
        rules.append(Rule(("socketcall",), missing, (Condition(0, "EQ", _SYS_SOCKET, _LOW_32_BITS),)))
    rules += [Rule(("personality",), SECCOMP_RET_ALLOW, (Condition(0, "EQ", value),)) for value in _PERSONALITIES]
    if "CAP_SYS_ADMIN" not in held:
        rules.append(Rule(("clone",), SECCOMP_RET_ALLOW, (Condition(0, "EQ", 0, _NEW_NAMESPACES),)))
        rules.append(Rule(("clone3",), missing))
    return SeccompProfile(tuple(rules), default_action=refused, unknown_action=missing)


def program_for(seccomp: str, capabilities: Iterable[str], cache_dir: Path | None, machine: str = "") -> bytes | None:
    """The filter for a plan's ``security.seccomp`` and the capabilities that its process gets, ready to install; None for ``unconfined``.

    ``machine`` is whose calls they are, as uname(2) says it: this machine's, or a guest's.
    ``cache_dir`` is a directory of the host, made when missing, where programs are kept under the digest of all that they depend on; None keeps them
    in this process only. Raises InvalidInput for a text that is no profile, Unavailable on a machine whose calls are not known.
    """
    return _program_for(seccomp, frozenset(capabilities), cache_dir, machine or platform.machine())


@functools.lru_cache(maxsize=64)
def _program_for(seccomp: str, capabilities: frozenset[str], cache_dir: Path | None, machine: str) -> bytes | None:
    if seccomp == UNCONFINED:
        return None
    if not machine_abis(machine):
        raise Unavailable(
            "system calls cannot be filtered",
            f"the calls of {machine} are not known to Bulle",
            "run with --security-opt seccomp=unconfined",
        )
    if cache_dir is None:
        return compile_profile(_profile(seccomp, capabilities, machine), machine)
    path = cache_dir / f"seccomp-{_key(seccomp, capabilities, machine)}"
    program = _read(path)
    if program is None:
        program = compile_profile(_profile(seccomp, capabilities, machine), machine)
        _write(path, program)
    return program


def _profile(seccomp: str, capabilities: frozenset[str], machine: str) -> SeccompProfile:
    if seccomp in (DEFAULT, DEFAULT_WITH_SOCKETCALL):
        return default_profile(capabilities, socketcall=seccomp == DEFAULT_WITH_SOCKETCALL)
    from bulle.isolation.docker_seccomp import parse  # rarely needed, and costs the building of its decoder

    return parse(seccomp, capabilities, machine)


def _key(seccomp: str, capabilities: frozenset[str], machine: str) -> str:
    """The digest of everything that the program depends on, so that a new version of Bulle never finds an old one's program."""
    import hashlib

    built_in = repr((_FILES, _WAITING, _MEMORY, _PROCESSES, _IDENTITY, _TIME, _COMMUNICATION, _BY_CAPABILITY, _PERSONALITIES, _NEW_NAMESPACES))
    kernel = "" if seccomp.startswith(DEFAULT) else os.uname().release
    parts = (COMPILER_REVISION, PROFILE_REVISION, TABLE_REVISION, machine, kernel, sorted(capabilities), seccomp, built_in)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


PROFILE_REVISION = 1
"""Part of the cache's key; raise it when :func:`default_profile` or the reader of Docker's JSON makes other rules of the same data."""


def _read(path: Path) -> bytes | None:
    """A cached program; None when there is none, or when it is not whole (its digest stands before it)."""
    import hashlib

    try:
        data = path.read_bytes()
    except OSError:
        return None
    digest, program = data[:32], data[32:]
    return program if program and hashlib.sha256(program).digest() == digest else None


def _write(path: Path, program: bytes) -> None:
    """Keep a program; a cache that cannot be written costs time, nothing else."""
    import hashlib

    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.write_bytes(hashlib.sha256(program).digest() + program)
        temporary.replace(path)
