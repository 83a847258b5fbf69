"""Programs of another processor at every level: what runs, is executed beside it, ends and is refused as this machine's own programs are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import bulle
from bulle.errors import CommandNotExecutable, CommandNotFound, Unavailable, Unsupported
from bulle.isolation.driver import Feature
from bulle.linux import binary_formats
from bulle.model.container import VolumeOption
from bulle_testing import peers, virtual_machines
from bulle_testing.running import LEVELS, Level, Machine, follow, usable, wait_for

ARCHIVE = "arm64_image"


@pytest.fixture(params=[level for level in LEVELS if level.name != "host-users"], ids=lambda level: level.name)
def level(request: pytest.FixtureRequest) -> Level:
    """Those that give the programs a user namespace; for the other there is a test of its own."""
    return request.param


@pytest.fixture(autouse=True)
def emulated(place: Machine, level: Level) -> Iterator[None]:
    """Where the level cannot run them it says so, and nothing of the container stays; else the test goes on."""
    before = sorted(entry.name for entry in binary_formats.entries())
    if Feature.EMULATION not in usable(level, place.home):
        with pytest.raises(Unsupported, match="programs of other processors"):
            place.run(level, "true", image="arm64")
        pytest.skip(f"the level {level.name} has no emulation here")
    if Feature.OWN_KERNEL in usable(level, place.home):
        virtual_machines.lend_kernel("aarch64", place.home)
    yield
    assert sorted(entry.name for entry in binary_formats.entries()) == before, "the machine's own table is as it was"


def test_the_processor_is_the_images(place: Machine, level: Level) -> None:
    assert place.shell(level, "uname -m; echo $0", image="arm64") == "aarch64\nsh\n"
    plan = place.engine.containers.plan(bulle.ContainerOptions(image="arm64", command=("true",), **level.options))
    assert plan.platform == "linux/arm64"


def test_exit_codes_and_signals(place: Machine, level: Level) -> None:
    assert place.run(level, "sh", "-c", "exit 37", image="arm64").exit_code == 37
    assert place.run(level, "sh", "-c", "sh -c 'kill -9 $$'; exit $?", image="arm64").exit_code == 137
    assert place.run(level, "sh", "-c", "kill -9 $$", image="arm64", init=True).exit_code == 137
    with place.running(level, "sh", "-c", "trap 'exit 21' TERM; echo ready; while :; do sleep 0.05; done", image="arm64") as container:
        wait_for(lambda: b"ready" in b"".join(entry.data for entry in container.logs()), "the trap is set")
        container.stop(timeout_s=30)
        assert container.wait() == 21


def test_executed_beside_it(place: Machine, level: Level) -> None:
    with place.running(level, image="arm64") as container:
        done = place.execute(container, "sh", "-c", "uname -m; cat; exit 5", input=b"words")
        assert (done.exit_code, done.stdout) == (5, b"aarch64\nwords")
        assert place.execute(container, "uname", "-m", user="33:33").stdout == b"aarch64\n"
        with pytest.raises(CommandNotFound):
            place.execute(container, "nosuch")


def test_init_read_only_root_and_users(place: Machine, level: Level) -> None:
    options = {"init": True, "read_only": True, "user": "www-data", "tmpfs": (("/tmp", ""),)}
    script = "uname -m; id -u; touch /x 2>/dev/null || echo read-only; touch /tmp/y && sh -c 'exit 3'"
    done = place.run(level, "sh", "-c", script, image="arm64", **options)
    assert (done.exit_code, done.stdout) == (3, b"aarch64\n33\nread-only\n")


def test_threads_and_shared_libraries(place: Machine, level: Level) -> None:
    """pigz is a dynamic program that compresses with four threads; the emulator has one of its own."""
    script = """head -c 12000000 /dev/urandom > /tmp/a; pigz -p 4 -k /tmp/a & p=$!
        most=0; while kill -0 $p 2>/dev/null; do n=$(ls /proc/$p/task 2>/dev/null | wc -l); [ $n -gt $most ] && most=$n; done
        wait $p && gunzip -c /tmp/a.gz | cmp - /tmp/a && [ $most -ge 4 ] && echo same"""
    assert place.shell(level, script, image="arm64") == "same\n"


def test_started_again(place: Machine, level: Level) -> None:
    container = place.create(level, "sh", "-c", "uname -m >> /seen; cat /seen", image="arm64")
    try:
        for times in (1, 2):
            attachment = container.start(attach=True)
            assert attachment is not None
            assert follow(attachment).stdout == b"aarch64\n" * times
            container.wait()
    finally:
        container.remove(force=True)


def test_health_checks_are_emulated(place: Machine, level: Level) -> None:
    command = '[ "$(uname -m)" = aarch64 ]'
    with place.running(level, image="arm64", health_command=command, health_interval_ns=50_000_000) as container:
        wait_for(lambda: (health := container.state().health) is not None and health.status == "healthy", "the check succeeds")


def test_the_table_and_the_emulator_are_out_of_reach(place: Machine, level: Level) -> None:
    """Neither may be changed from inside: what a process inside could write there would run for its neighbours, or as root of the host."""
    script = """sleep 100 & for f in /proc/sys/fs/binfmt_misc/register /proc/sys/fs/binfmt_misc/qemu-aarch64 /proc/$!/exe; do
        [ -e $f ] && (echo 0 >> $f) 2>/dev/null && echo "wrote $f"; done; kill $!
        umount /proc/sys/fs/binfmt_misc 2>/dev/null && echo unmounted; mount -t binfmt_misc none /tmp 2>/dev/null && echo mounted; true"""
    assert place.shell(level, script, image="arm64") == ""
    # What the emulator shows as /proc/self/exe is the program; the kernel's own answer is what counts, asked from outside.
    with place.running(level, image="arm64") as container:
        exe = f"/proc/{container.state().pid}/exe"
        if os.geteuid() == 0:
            with pytest.raises(OSError, match=r"Read-only file system|Text file busy"):
                os.close(os.open(exe, os.O_WRONLY))


def test_the_filter_holds_for_what_the_emulator_calls(place: Machine, level: Level) -> None:
    """arm64 knows mkdirat alone; what counts are the calls of this machine, by their names."""
    refused = '{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}'
    profile = f'{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{refused}]}}'
    done = place.run(level, "sh", "-c", "uname -m; mkdir /x", image="arm64", security_options=(f"seccomp={profile}",))
    assert (done.exit_code, done.stdout) == (1, b"aarch64\n") and b"not supported" in done.stderr
    assert b"denied" in place.run(level, "mount", "-t", "tmpfs", "none", "/tmp", image="arm64").stderr


def test_set_user_id_means_nothing(place: Machine, level: Level) -> None:
    """Its rights would go to an emulator that obeys its caller's environment."""
    script = "rm /bin/id && cat /bin/busybox > /bin/id && chmod 4755 /bin/id && su -s /bin/sh www-data -c 'id -u'"
    assert place.shell(level, script, image="arm64") == "33\n"


def test_a_program_of_a_third_processor(place: Machine, level: Level) -> None:
    """Said in words: whose program it is. This machine's own still run."""
    native = Path(peers.static_busybox())
    mine = (VolumeOption(str(native), "/mine/busybox", True),)
    if Feature.OWN_KERNEL in usable(level, place.home):
        with pytest.raises(CommandNotExecutable, match="exec format error: it is no program for this processor"):
            place.run(level, "/mine/busybox", "true", image="arm64", volumes=mine)
        return
    assert place.run(level, "/mine/busybox", "true", image="arm64", volumes=mine).exit_code == 0
    foreign = place.home / "third"
    head = bytearray(native.read_bytes()[:4096])
    head[5], head[18:20] = 2, (22).to_bytes(2, "big")
    foreign.write_bytes(bytes(head))
    foreign.chmod(0o755)
    third = (VolumeOption(str(foreign), "/third", True),)
    if level.name == "chroot" or os.geteuid() != 0:  # there it is the small init that executes it
        done = place.run(level, "/third", image="arm64", volumes=third)
        assert (done.exit_code, done.stderr) == (126, b"bulle-init: /third: exec format error\n")
        return
    with pytest.raises(CommandNotExecutable, match=r"exec format error: it is a program for linux/s390x") as raised:
        place.run(level, "/third", image="arm64", volumes=third)
    assert "--platform linux/s390x" in str(raised.value)


def test_the_hosts_users_have_the_machines_table(module_machine: Machine) -> None:
    level = Level("host-users", "container", {"user_namespace": "host"})
    usable(level, module_machine.home)
    if list(binary_formats.entries()):
        assert module_machine.shell(level, "uname -m", image="arm64") == "aarch64\n"
        return
    with pytest.raises(Unavailable, match="names no emulator with the flag F; run it with a user namespace of its own"):
        module_machine.run(level, "true", image="arm64")
    module_machine.close_test()
