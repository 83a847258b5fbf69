"""Filters, judged by what they answer: every compiled program runs in a small interpreter of classic BPF, for every call of every ABI."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from bulle.errors import InvalidInput, Unsupported
from bulle.isolation import seccomp_profile
from bulle.isolation.docker_seccomp import parse
from bulle.isolation.seccomp_profile import default_profile, program_for
from bulle.linux.capabilities import CAPABILITIES, DOCKER_DEFAULT
from bulle.linux.seccomp import (
    SECCOMP_RET_ALLOW,
    SECCOMP_RET_KILL_PROCESS,
    SECCOMP_RET_LOG,
    Condition,
    Rule,
    SeccompProfile,
    compile_profile,
    errno_action,
    machine_abis,
)
from bulle.linux.syscall_numbers import ABIS, names, numbers
from bulle_testing.bpf import answer

MACHINES = {"x86_64": ("x86_64", "i386"), "aarch64": ("aarch64", "arm"), "riscv64": ("riscv64",)}
BOTH = [(machine, abi) for machine, abis in MACHINES.items() for abi in abis]
EPERM, ENOSYS = errno_action(errno.EPERM), errno_action(errno.ENOSYS)
DEFAULT = frozenset(DOCKER_DEFAULT)


def call(program: bytes, abi: str, name: str, *arguments: int) -> int:
    return answer(program, abi, numbers(abi)[name], *arguments)


@pytest.mark.parametrize(("machine", "abi"), BOTH)
def test_every_call_gets_the_action_of_its_rule(machine: str, abi: str) -> None:
    """One action for each number (so that no two ranges can join): the tree of comparisons confuses none."""
    table = numbers(abi)
    rules = tuple(Rule((name,), errno_action(100 + index)) for index, name in enumerate(table))
    program = compile_profile(SeccompProfile(rules), machine)
    by_number = {number: errno_action(100 + index) for index, number in enumerate(table.values())}
    for number in [*range(600), *table.values()]:
        assert answer(program, abi, number) == by_number.get(number, ENOSYS)


@pytest.mark.parametrize("operator", ["NE", "LT", "LE", "EQ", "GE", "GT"])
@pytest.mark.parametrize("value", [0, 5, 0xFFFFFFFF, 0x100000000, 0x500000005, 2**64 - 1])
def test_conditions_compare_64_bits_unsigned(operator: str, value: int) -> None:
    program = compile_profile(SeccompProfile((Rule(("read",), SECCOMP_RET_ALLOW, (Condition(2, operator, value),)),)), "x86_64")  # type: ignore[arg-type]
    for argument in {0, 4, 5, 6, 0xFFFFFFFE, 0xFFFFFFFF, 0x100000000, 0x400000005, 0x500000004, 0x500000005, 0x600000000, 2**64 - 1}:
        holds = {"NE": argument != value, "LT": argument < value, "LE": argument <= value, "EQ": argument == value}
        holds |= {"GE": argument >= value, "GT": argument > value}
        assert (call(program, "x86_64", "read", 1, 2, argument) == SECCOMP_RET_ALLOW) == holds[operator], hex(argument)


def test_all_conditions_of_a_rule_must_hold_and_rules_are_tried_in_order() -> None:
    rules = (
        Rule(("read",), errno_action(1), (Condition(0, "EQ", 1), Condition(1, "GT", 10))),
        Rule(("read",), errno_action(2), (Condition(0, "EQ", 1),)),
        Rule(("read",), errno_action(3)),
    )
    program = compile_profile(SeccompProfile(rules), "x86_64")
    assert call(program, "x86_64", "read", 1, 11) == errno_action(1)
    assert call(program, "x86_64", "read", 1, 10) == errno_action(2)
    assert call(program, "x86_64", "read", 2, 11) == errno_action(3)


def test_many_conditions_lie_further_than_a_jump_reaches() -> None:
    rules = tuple(Rule(("read",), errno_action(value), (Condition(0, "EQ", value),)) for value in range(1, 400))
    program = compile_profile(SeccompProfile(rules), "x86_64")
    assert [call(program, "x86_64", "read", value) for value in (1, 200, 399, 400)] == [errno_action(1), errno_action(200), errno_action(399), EPERM]
    assert call(program, "i386", "read", 399) == errno_action(399)


def test_a_program_that_the_kernel_would_not_take_is_refused() -> None:
    with pytest.raises(ValueError, match="4096"):
        compile_profile(SeccompProfile(tuple(Rule(("read",), errno_action(value), (Condition(0, "EQ", value),)) for value in range(2000))), "x86_64")


def test_an_unknown_machine_is_refused() -> None:
    with pytest.raises(ValueError, match="vax"):
        compile_profile(default_profile(DEFAULT), "vax")
    assert machine_abis("vax") == ()


def test_another_architecture_is_killed_and_x32_refused() -> None:
    program = compile_profile(default_profile(DEFAULT), "x86_64")
    assert answer(program, "arm", 3) == SECCOMP_RET_KILL_PROCESS
    permissive = compile_profile(SeccompProfile((Rule(("mount",), EPERM),), SECCOMP_RET_ALLOW, SECCOMP_RET_ALLOW), "x86_64")
    for filter_program in (program, permissive):
        assert answer(filter_program, "x86_64", 0x40000000 | numbers("x86_64")["mount"]) == ENOSYS
    native_only = compile_profile(SeccompProfile((Rule(("read",), SECCOMP_RET_ALLOW),), abis=("x86_64",)), "x86_64")
    assert call(native_only, "i386", "read") == SECCOMP_RET_KILL_PROCESS


@pytest.mark.parametrize(("machine", "abi"), BOTH)
def test_the_default_refuses_what_breaks_out(machine: str, abi: str) -> None:
    program = compile_profile(default_profile(DEFAULT), machine)
    text = (
        "add_key keyctl request_key bpf userfaultfd io_uring_setup io_uring_enter io_uring_register unshare setns mount umount2 pivot_root "
        "open_tree move_mount fsopen fsmount fsconfig fspick mount_setattr init_module finit_module delete_module kexec_load kexec_file_load "
        "swapon swapoff reboot open_by_handle_at perf_event_open fanotify_init quotactl syslog acct settimeofday clock_settime kcmp pidfd_getfd "
        "process_madvise move_pages mbind set_mempolicy lookup_dcookie vhangup sethostname setdomainname uselib ustat sysfs iopl ioperm nfsservctl"
    )
    for name in text.split():
        if name in numbers(abi):
            assert call(program, abi, name) == EPERM, name


@pytest.mark.parametrize(("machine", "abi"), BOTH)
def test_the_default_allows_what_programs_need(machine: str, abi: str) -> None:
    program = compile_profile(default_profile(DEFAULT), machine)
    text = (
        "read write openat close execve execveat exit_group mmap brk rt_sigaction clone futex ptrace process_vm_readv capset setresuid setresgid "
        "setgroups prctl seccomp chroot statx openat2 close_range pidfd_open epoll_pwait2 rseq getrandom landlock_create_ruleset memfd_create "
        "arch_prctl modify_ldt set_tls cacheflush riscv_flush_icache futex_waitv mseal faccessat2 fchmodat2"
    )
    for name in text.split():
        if name in numbers(abi):
            assert call(program, abi, name) == SECCOMP_RET_ALLOW, name


@pytest.mark.parametrize(("machine", "abi"), BOTH)
def test_sockets_personalities_and_namespaces(machine: str, abi: str) -> None:
    program = compile_profile(default_profile(DEFAULT), machine)
    for family in (38, 40, 0x100000026, 0x7700000028):
        assert call(program, abi, "socket", family) == EPERM, hex(family)
    for family in (1, 2, 10, 16, 17, 37, 39, 41):
        assert call(program, abi, "socket", family) == SECCOMP_RET_ALLOW
    for persona in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF):
        assert call(program, abi, "personality", persona) == SECCOMP_RET_ALLOW
    for persona in (0x0040000, 0x0400000, 1, 0x100000000):  # ADDR_NO_RANDOMIZE, READ_IMPLIES_EXEC...
        assert call(program, abi, "personality", persona) == EPERM
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert call(program, abi, "clone", flag | 17) == EPERM
    assert call(program, abi, "clone", 0x3D0F00) == SECCOMP_RET_ALLOW  # a thread
    assert call(program, abi, "clone3") == ENOSYS
    if "socketcall" in numbers(abi):
        assert call(program, abi, "socketcall", 1) == ENOSYS
        assert call(program, abi, "socketcall", 3) == SECCOMP_RET_ALLOW
        old = compile_profile(default_profile(DEFAULT, socketcall=True), machine)
        assert call(old, abi, "socketcall", 1) == SECCOMP_RET_ALLOW


def test_calls_newer_than_the_profile_do_not_exist() -> None:
    program = compile_profile(default_profile(DEFAULT), "x86_64")
    for number in (467, 468, 469, 472, 500, 100_000, 0x3FFFFFFF):
        assert answer(program, "x86_64", number) == ENOSYS


@pytest.mark.parametrize("capability", sorted(seccomp_profile._BY_CAPABILITY))
def test_a_capability_opens_its_calls_and_no_others(capability: str) -> None:
    opened = set(seccomp_profile._BY_CAPABILITY[capability].split())
    without, held = compile_profile(default_profile(()), "x86_64"), compile_profile(default_profile({capability}), "x86_64")
    changed = {n for n in numbers("x86_64") if call(without, "x86_64", n, 0x20000) != call(held, "x86_64", n, 0x20000)}
    assert changed == opened & set(numbers("x86_64"))


def test_the_profile_names_only_calls_that_exist() -> None:
    named = {name for rule in default_profile(CAPABILITIES).rules for name in rule.names}
    assert named <= names()


@pytest.mark.parametrize(("abi", "header"), [("x86_64", "unistd_64.h"), ("i386", "unistd_32.h")])
def test_numbers_are_those_of_the_kernel_headers(abi: str, header: str) -> None:
    path = next((p for p in (Path("/usr/include/x86_64-linux-gnu/asm"), Path("/usr/include/asm")) if (p / header).exists()), None)
    if path is None:
        pytest.skip("the kernel's headers are not installed")
    lines = [line.split() for line in (path / header).read_text().splitlines() if line.startswith("#define __NR_")]
    of_header = {words[1].removeprefix("__NR_"): int(words[2]) for words in lines}
    known = numbers(abi)
    assert {name: number for name, number in of_header.items() if number <= 471 and known.get(name) != number} == {}


def test_no_two_calls_share_a_number() -> None:
    for abi in ABIS:
        table = numbers(abi)
        assert len(set(table.values())) == len(table)


# What podman's profile (installed with it, older than Docker's) refuses or does not know, and Docker's default of 2026 allows, and so does ours.
SINCE_PODMAN = (
    "cachestat fchmodat2 futex_requeue futex_wait futex_waitv futex_wake getxattrat io_pgetevents io_pgetevents_time64 listmount listxattrat "
    "map_shadow_stack mseal removexattrat setxattrat statmount uretprobe vmsplice"
)
# What podman's allows and ours does not, nor Docker's default: what needs a capability, and three that are obsolete.
ONLY_PODMAN = (
    "clone clone3 fsconfig fsmount fsopen fspick get_mempolicy keyctl mbind mount mount_setattr move_mount open_tree pidfd_getfd pivot_root reboot "
    "set_mempolicy setns socket socketcall syslog umount umount2 unshare readdir sigaction signal sigpending sigsuspend"
)
ARGUMENTS = (0, 1, 2, 8, 16, 0x26, 0x28, 0x20000, 0x10000000, 0xFFFFFFFF, 0x100000026, 0x100000008)


def differences(theirs: bytes, abi: str) -> tuple[set[tuple[str, int]], set[tuple[str, int]]]:
    """(call, first argument) that only ours allows, and that only theirs does."""
    ours = compile_profile(default_profile(DEFAULT))
    looser, tighter = set(), set()
    for name in numbers(abi):
        for argument in ARGUMENTS:
            mine, other = (call(program, abi, name, argument) == SECCOMP_RET_ALLOW for program in (ours, theirs))
            if mine and not other:
                looser.add((name, argument))
            if other and not mine:
                tighter.add((name, argument))
    return looser, tighter


@pytest.mark.parametrize("abi", machine_abis())
def test_beside_the_profile_of_podman(abi: str) -> None:
    path = Path("/usr/share/containers/seccomp.json")
    if not path.exists():
        pytest.skip("podman's profile is not installed")
    looser, tighter = differences(compile_profile(parse(path.read_text(), DEFAULT)), abi)
    assert {name for name, _ in looser} <= set(SINCE_PODMAN.split())
    assert {name for name, _ in tighter} <= set(ONLY_PODMAN.split())


def document(**changes: object) -> str:
    base = {"defaultAction": "SCMP_ACT_ERRNO", "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}]}
    return json.dumps(base | changes)


needs_x86_64 = pytest.mark.skipif(machine_abis()[:1] != ("x86_64",), reason="the profiles in these tests are for x86_64")


@needs_x86_64
def test_dockers_json() -> None:
    calls = [
        {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
        {"name": "open", "action": "SCMP_ACT_LOG"},
        {"names": ["kill"], "action": "SCMP_ACT_KILL_PROCESS"},
        {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 97, "args": [{"index": 0, "value": 16, "op": "SCMP_CMP_EQ"}]},
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW"},
        {
            "names": ["clone"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 0x7E020000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
            "excludes": {"caps": ["CAP_SYS_ADMIN"]},
        },
        {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm64"]}},
        {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
        {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.1"}},
        {"names": ["no_such_call", "tgkill"], "action": "SCMP_ACT_ALLOW"},
    ]
    program = compile_profile(parse(document(syscalls=calls), DEFAULT))
    assert call(program, "x86_64", "read") == call(program, "i386", "read") == SECCOMP_RET_ALLOW
    assert call(program, "x86_64", "open") == SECCOMP_RET_LOG
    assert call(program, "x86_64", "kill") == SECCOMP_RET_KILL_PROCESS
    assert call(program, "x86_64", "socket", 16) == errno_action(97)
    assert call(program, "x86_64", "socket", 2) == SECCOMP_RET_ALLOW
    assert call(program, "x86_64", "clone", 17) == SECCOMP_RET_ALLOW
    assert call(program, "x86_64", "clone", 0x20000) == EPERM
    assert call(program, "x86_64", "mount") == call(program, "x86_64", "arch_prctl") == EPERM
    assert call(program, "x86_64", "ptrace") == SECCOMP_RET_ALLOW
    assert call(program, "x86_64", "bpf") == ENOSYS  # above the highest that is named for this container
    with_admin = compile_profile(parse(document(syscalls=calls), DEFAULT | {"CAP_SYS_ADMIN"}))
    assert call(with_admin, "x86_64", "mount") == SECCOMP_RET_ALLOW
    assert call(with_admin, "x86_64", "clone", 17) == EPERM


@needs_x86_64
def test_dockers_json_that_allows_by_default_and_covers_one_architecture() -> None:
    calls = [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO"}]
    text = document(defaultAction="SCMP_ACT_ALLOW", archMap=None, architectures=["SCMP_ARCH_X86_64"], syscalls=calls)
    program = compile_profile(parse(text, DEFAULT))
    assert call(program, "x86_64", "mount") == answer(program, "x86_64", 500) == SECCOMP_RET_ALLOW
    assert call(program, "x86_64", "chmod") == EPERM
    assert call(program, "i386", "read") == SECCOMP_RET_KILL_PROCESS


@needs_x86_64
def test_two_conditions_on_one_argument_are_alternatives_as_in_runc() -> None:
    arguments = [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"} for value in (1, 2)]
    program = compile_profile(parse(document(syscalls=[{"names": ["dup"], "action": "SCMP_ACT_ALLOW", "args": arguments}]), DEFAULT))
    assert [call(program, "x86_64", "dup", value) for value in (1, 2, 3)] == [SECCOMP_RET_ALLOW, SECCOMP_RET_ALLOW, EPERM]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no profile",
        "[]",
        "{}",
        document(defaultAction="SCMP_ACT_PERHAPS"),
        document(architectures=["SCMP_ARCH_X86_64"]),
        document(syscalls=[{"action": "SCMP_ACT_ALLOW"}]),
        document(syscalls=[{"names": ["read"], "action": "allow"}]),
        document(syscalls=[{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}]),
        document(syscalls=[{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": -1, "op": "SCMP_CMP_EQ"}]}]),
        document(syscalls=[{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "like"}]}]),
        document(syscalls=[{"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "new"}}]),
    ],
)
def test_a_text_that_is_no_profile(text: str) -> None:
    with pytest.raises(InvalidInput):
        program_for(text, DEFAULT, None)


def test_a_profile_that_asks_another_process() -> None:
    for text in (document(listenerPath="/run/x"), document(syscalls=[{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}])):
        with pytest.raises(Unsupported):
            program_for(text, DEFAULT, None)


def test_programs_are_kept_in_the_process_and_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    first = program_for("default", DOCKER_DEFAULT, cache)
    assert first == program_for("default", reversed(DOCKER_DEFAULT), cache)
    (file,) = cache.iterdir()

    def compile_again(profile: SeccompProfile) -> bytes:
        raise AssertionError("compiled although it was cached")

    seccomp_profile._program_for.cache_clear()
    monkeypatch.setattr(seccomp_profile, "compile_profile", compile_again)
    assert program_for("default", DOCKER_DEFAULT, cache) == first
    monkeypatch.undo()
    for damaged in (b"", file.read_bytes()[:-8], file.read_bytes()[:40] + b"\xff" * 8 + file.read_bytes()[48:]):
        seccomp_profile._program_for.cache_clear()
        file.write_bytes(damaged)
        assert program_for("default", DOCKER_DEFAULT, cache) == first
    assert program_for("default", (), cache) != first
    assert program_for(seccomp_profile.DEFAULT_WITH_SOCKETCALL, DOCKER_DEFAULT, cache) != first


def test_a_cache_that_cannot_be_written_only_costs_time() -> None:
    assert program_for("default", ("CAP_KILL",), Path("/proc/nowhere"))


def test_unconfined_is_no_program() -> None:
    assert program_for("unconfined", DOCKER_DEFAULT, None) is None
