"""Pausing, measuring and changing the limits of running containers, the same at every isolation level."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

import bulle
from bulle.errors import Conflict, Unsupported
from bulle.isolation.control_group import ControlGroup, LayoutV1, layout
from bulle.isolation.driver import Feature
from bulle.isolation.microvm.files import GuestFiles
from bulle.linux import control_group as kernel
from bulle.records.containers import ContainerRecords
from bulle_testing.running import Level, Machine, Terminal, follow, usable, wait_for

COUNTS = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done"


def count(container: bulle.Container) -> int:
    return sum(1 for _ in container.logs())


def cannot_pause(place: Machine, level: Level) -> bool:
    """Whether the level lacks it here; then it must say so."""
    if Feature.PAUSE in usable(level, place.home):
        return False
    with place.running(level) as container, pytest.raises(Unsupported, match="has no way to pause its processes"):
        container.pause()
    return True


def actions(place: Machine, container: bulle.Container) -> list[str]:
    done = place.command("events", "--since=0", "--until=0s", "--filter", f"container={container.id}", "--format", "{{.Action}}")
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")


# Pause


def test_paused_stands_still_and_goes_on(place: Machine, level: Level) -> None:
    if cannot_pause(place, level):
        return
    with place.running(level, "sh", "-c", COUNTS) as container:
        wait_for(lambda: count(container) > 3, "it counts")
        assert not container.is_paused()
        done = place.command("pause", container.name)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{container.name}\n", "")
        assert container.is_paused()
        time.sleep(0.1)
        stood = count(container)
        time.sleep(0.3)
        assert count(container) == stood
        state = container.inspect()["State"]
        assert isinstance(state, dict)
        assert (state["Status"], state["Paused"], state["Running"]) == ("paused", True, True)
        shown = place.command("ps", "--filter", "status=paused", "--format", "{{.Names}} {{.State}} {{.Status}}").stdout
        assert shown.startswith(f"{container.name} paused Up ") and shown.endswith(" (Paused)\n")
        assert place.command("ps", "-q", "--filter", "status=running").stdout == ""
        assert json.loads(place.command("info", "--format", "json").stdout)["ContainersPaused"] == 1
        done = place.command("unpause", container.name)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{container.name}\n", "")
        wait_for(lambda: count(container) > stood + 3, "it counts again")
        assert not container.is_paused()
        assert container.inspect()["State"]["Status"] == "running"  # type: ignore[index]
        assert [one for one in actions(place, container) if "pause" in one] == ["pause", "unpause"]


def test_removed_while_it_stands_still(place: Machine, level: Level) -> None:
    """Killed and woken at once, it is gone before whoever wakes it has looked again; many times, for that is a matter of microseconds."""
    if cannot_pause(place, level):
        return
    for _ in range(3 if level.options.get("isolation") == "vm" else 40):
        with place.running(level) as container:
            container.pause()
            container.remove(force=True)


def test_pause_of_what_cannot_be_paused(place: Machine, level: Level) -> None:
    if cannot_pause(place, level):
        return
    container = place.create(level, "sleep", "1000")
    try:
        for verb, why in (("pause", "is not running"), ("unpause", "is not paused")):
            done = place.command(verb, container.name)
            assert (done.returncode, done.stdout) == (1, "") and why in done.stderr, done.stderr
        container.start()
        container.pause()
        with pytest.raises(Conflict, match="already paused"):
            container.pause()
    finally:
        container.remove(force=True)


def test_every_process_stands_still(place: Machine, level: Level) -> None:
    """Also those that were executed beside the first, and those that they forked."""
    if cannot_pause(place, level):
        return
    with place.running(level) as container:
        beside = container.execute(bulle.ExecOptions(command=("sh", "-c", f"({COUNTS}) & wait")))
        assert beside is not None
        try:
            follow(beside, until=b"3\n")
            container.pause()
            pids = [int(row[0]) for row in container.top(("-o", "pid,comm"))[1]]
            assert len(pids) >= (2 if Feature.OWN_KERNEL in usable(level, place.home) else 3)
            used = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13] for pid in pids]
            switches = [Path(f"/proc/{pid}/status").read_text().partition("ctxt")[2] for pid in pids]
            time.sleep(0.2)
            assert [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13] for pid in pids] == used
            assert [Path(f"/proc/{pid}/status").read_text().partition("ctxt")[2] for pid in pids] == switches
        finally:
            container.remove(force=True)
            beside.close()


@pytest.mark.parametrize("verb", [("stop", "-t", "20"), ("kill",), ("kill", "-s", "TERM"), ("rm", "-f"), ("restart", "-t", "20")])
def test_a_paused_one_can_be_ended(place: Machine, level: Level, verb: tuple[str, ...]) -> None:
    if cannot_pause(place, level):
        return
    with place.running(level, "sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done") as container:
        wait_for(lambda: count(container) == 1, "it is ready")
        container.pause()
        began = time.monotonic()
        done = place.command(*verb, container.name)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert time.monotonic() - began < 60
        if verb[0] == "restart":
            assert container.state().status == "running" and not container.is_paused()
        elif verb[0] != "rm":
            wait_for(lambda: container.state().status == "exited", "its end")
            assert container.state().exit_code == (137 if verb == ("kill",) else 5)
            assert not container.is_paused()


def test_what_a_paused_one_refuses(place: Machine, level: Level) -> None:
    if cannot_pause(place, level):
        return
    with place.running(level) as container:
        container.pause()
        for line in (("exec", container.name, "true"), ("start", container.name), ("attach", container.name), ("start", "-a", container.name)):
            done = place.command(*line)
            assert (done.returncode, done.stdout) == (1, ""), (line, done.stderr)
            assert f"container {container.name} is paused" in done.stderr and "bulle unpause" in done.stderr
        done = place.command("rm", container.name)
        assert done.returncode == 1 and f"container {container.name} is paused" in done.stderr
        assert place.command("top", container.name).returncode == 0
        container.unpause()
        assert place.execute(container, "echo", "well").stdout == b"well\n"


def test_limits_of_time_while_it_is_paused(place: Machine, level: Level) -> None:
    """Who was told to do nothing is not idle; the end of its time comes all the same."""
    if cannot_pause(place, level):
        return
    with place.running(level, "sleep", "1000", idle_timeout_s=0.5) as container:
        container.pause()
        time.sleep(1.2)
        assert container.is_paused() and container.state().status == "running"
    with place.running(level, "sleep", "1000", timeout_s=0.7, stop_timeout_s=1) as container:
        container.pause()
        wait_for(lambda: container.state().status == "exited", "the end of its time")


def test_health_is_not_asked_for_while_it_is_paused(place: Machine, level: Level) -> None:
    if cannot_pause(place, level):
        return
    check = {"health_command": "true", "health_interval_ns": 50_000_000, "health_timeout_ns": 5_000_000_000, "health_retries": 1}
    with place.running(level, **check) as container:
        wait_for(lambda: (health := container.state().health) is not None and health.status == "healthy", "healthy")
        container.pause()
        time.sleep(0.6)
        health = container.state().health
        assert health is not None and health.status == "healthy"


def test_commit_leaves_a_paused_one_paused(place: Machine, level: Level) -> None:
    if cannot_pause(place, level):
        return
    with place.running(level) as container:
        assert place.command("commit", container.name).returncode == 0
        assert not container.is_paused()
        container.pause()
        made = place.command("commit", container.name)
        if Feature.OWN_KERNEL in usable(level, place.home):  # which stands still too, and gives no files
            assert made.returncode == 1 and "it is paused" in made.stderr
            return
        assert (made.returncode, made.stderr) == (0, "")
        assert container.is_paused()
        place.command("rmi", "-f", made.stdout.strip())


# Stats


def stats(place: Machine, *arguments: str) -> list[dict[str, str]]:
    done = place.command("stats", "--no-stream", "--format", "json", *arguments)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_who_works_and_who_waits(place: Machine, level: Level) -> None:
    with (
        place.running(level, "sh", "-c", "while :; do :; done", name="works") as works,
        place.running(level, name="waits") as waits,
    ):
        busy, idle = works.stats(0.5), waits.stats(0.5)
        assert 15 < busy.cpu_percent < 130, busy
        assert idle.cpu_percent < busy.cpu_percent / 2, idle
        assert works.stats(0.05).cpu_ns > busy.cpu_ns
        assert (idle.id, idle.name) == (waits.id, "waits")
        assert 1 <= idle.pids < 5
        assert 0 < idle.memory_bytes < 1 << 30
        assert idle.memory_limit_bytes > 1 << 28
        together = {one.name: one for one in place.engine.containers.stats()}
        assert together.keys() == {"works", "waits"} and together["works"].cpu_percent > together["waits"].cpu_percent


def test_memory_and_processes_are_counted(place: Machine, level: Level) -> None:
    """With a control group that counts them, and without."""
    script = "for i in 1 2 3; do sleep 1000 & done; head -c 50m /dev/zero | tail -c 50m | sleep 1000"
    options = [{}]
    if Feature.MEMORY_LIMIT in usable(level, place.home):
        options.append({"memory_bytes": 512 << 20, "pids_limit": 100})
    for limits in options:
        with place.running(level, "sh", "-c", script, **limits) as container:
            wait_for(lambda: (one := container.stats(0)).memory_bytes > 40 << 20 and one.pids >= 6, "all of them")
            used = container.stats(0)
            assert used.memory_bytes < 300 << 20 and used.pids < 12, used
            if limits:
                assert used.memory_limit_bytes == 512 << 20


def test_stats_of_the_command_line(place: Machine, level: Level) -> None:
    with place.running(level, name="counted") as container:
        done = place.command("stats", "--no-stream")
        assert (done.returncode, done.stderr) == (0, "")
        heading, line = done.stdout.splitlines()
        assert heading.split("  ")[0] == "CONTAINER ID" and heading.split()[-4:] == ["I/O", "BLOCK", "I/O", "PIDS"]
        assert line.split()[:2] == [container.id[:12], "counted"]
        (one,) = stats(place)
        assert one.keys() == {"BlockIO", "CPUPerc", "Container", "ID", "MemPerc", "MemUsage", "Name", "NetIO", "PIDs"}
        assert one["ID"] == one["Container"] == container.id[:12] and one["CPUPerc"].endswith("%") and " / " in one["MemUsage"]
        assert stats(place, "--no-trunc", "counted")[0]["ID"] == container.id
        assert stats(place, "counted")[0]["Container"] == "counted"
        assert place.command("stats", "--no-stream", "--format", "{{.Name}}: {{.PIDs}}").stdout == "counted: 1\n"
        container.kill()
        assert stats(place) == []
        (one,) = stats(place, "--all")
        assert (one["CPUPerc"], one["MemUsage"], one["PIDs"]) == ("0.00%", "0B / 0B", "0")
    done = place.command("stats", "--no-stream", "counted")
    assert done.returncode == 1 and "no such container: counted" in done.stderr


def test_stats_go_on_until_they_are_interrupted(place: Machine, level: Level) -> None:
    with place.running(level, name="first"):
        terminal = Terminal(place, "stats")
        try:
            terminal.expect("first")
            terminal.expect("first")
            with place.running(level, name="second"):
                terminal.expect("second")
            terminal.type(b"\x03")
            assert terminal.wait() == 130
        finally:
            terminal.close()


def test_stats_end_with_what_was_asked_for(place: Machine, level: Level) -> None:
    with place.running(level, name="asked") as container:
        watching = place.start_command("stats", "--format", "{{.Name}}", "asked", stdout=subprocess.PIPE)
        try:
            assert watching.stdout is not None and watching.stdout.readline() == b"asked\n"
            container.remove(force=True)
            assert watching.wait(20) == 0
        finally:
            watching.kill()
            watching.wait()
            watching.stdout.close()


def test_network_is_the_containers_own(place: Machine, level: Level) -> None:
    with place.running(level) as container:
        used = container.stats(0)
        assert (used.network_received_bytes, used.network_sent_bytes) == (0, 0)


# Limits, and update

FILES_V1 = {
    "memory": ("memory", "memory.limit_in_bytes"),
    "reservation": ("memory", "memory.soft_limit_in_bytes"),
    "swappiness": ("memory", "memory.swappiness"),
    "oom": ("memory", "memory.oom_control"),
    "quota": ("cpu", "cpu.cfs_quota_us"),
    "period": ("cpu", "cpu.cfs_period_us"),
    "shares": ("cpu", "cpu.shares"),
    "pids": ("pids", "pids.max"),
    "cpus": ("cpuset", "cpuset.cpus"),
    "mems": ("cpuset", "cpuset.mems"),
    "read_bps": ("blkio", "blkio.throttle.read_bps_device"),
    "write_iops": ("blkio", "blkio.throttle.write_iops_device"),
}
FILES_V2 = {
    "memory": ("", "memory.max"),
    "reservation": ("", "memory.low"),
    "quota": ("", "cpu.max"),
    "pids": ("", "pids.max"),
    "cpus": ("", "cpuset.cpus"),
    "mems": ("", "cpuset.mems"),
    "read_bps": ("", "io.max"),
}


def held(container: bulle.Container, name: str) -> str:
    """What the kernel says of one limit, a guest's own kernel where it is that which holds it; empty where there is no group for it."""
    if container.plan.guest is not None and name in ("memory", "reservation", "pids"):
        if container.state().status != "running":
            return ""
        return GuestFiles(container.directory).read(f"/groups/container/{FILES_V2[name][1]}", own_root=True).decode().strip()
    machine_layout = layout()
    assert machine_layout is not None
    directories = machine_layout.directories(container.id)
    controller, file = FILES_V2[name] if "" in directories else FILES_V1[name]
    path = Path(directories.get(controller, "/none"), file)
    return path.read_text().strip() if path.exists() else ""


def version_1() -> bool:
    return isinstance(layout(), LayoutV1)


def cannot(place: Machine, level: Level, *features: Feature) -> bool:
    """Whether this machine lets the level set none of these; other tests see that it says so."""
    return not set(features) <= usable(level, place.home)


def test_limits_hold_from_the_start(place: Machine, level: Level) -> None:
    if cannot(place, level, Feature.MEMORY_LIMIT, Feature.CPU_LIMIT, Feature.IO_LIMIT):
        return
    disk = next((f"/dev/{one.name}" for one in Path("/sys/block").iterdir() if Path(f"/dev/{one.name}").is_block_device()), "")
    flags = ["-m", "64m", "--memory-reservation", "32m", "--cpu-quota", "30000", "--cpu-period", "60000", "--cpuset-mems", "0"]
    flags += [f"--device-read-bps={disk}:1mb", f"--device-write-iops={disk}:100"] if disk else []
    flags += ["--memory-swappiness", "20", "--oom-kill-disable"] if version_1() else []
    done = place.command("run", "-d", "--name", "limited", *level.flags, *flags, "busybox", "sleep", "1000")
    assert (done.returncode, done.stderr) == (0, "")
    container = place.engine.containers.get("limited")
    try:
        assert held(container, "memory") == str(64 << 20)
        assert held(container, "reservation") == str(32 << 20)
        assert held(container, "mems") == "0"
        number = os.stat(disk).st_rdev if disk else 0
        if version_1():
            assert (held(container, "quota"), held(container, "period"), held(container, "swappiness")) == ("30000", "60000", "20")
            assert held(container, "oom").startswith("oom_kill_disable 1")
            if disk:
                assert held(container, "read_bps") == f"{os.major(number)}:{os.minor(number)} {1 << 20}"
                assert held(container, "write_iops") == f"{os.major(number)}:{os.minor(number)} 100"
        else:
            assert held(container, "quota") == "30000 60000"
        host = container.inspect()["HostConfig"]
        assert isinstance(host, dict)
        assert (host["MemoryReservation"], host["CpuQuota"], host["CpuPeriod"], host["CpusetMems"]) == (32 << 20, 30000, 60000, "0")
        if disk:
            assert host["BlkioDeviceReadBps"] == [{"Path": disk, "Rate": 1 << 20}]
            assert host["BlkioDeviceWriteIOps"] == [{"Path": disk, "Rate": 100}]
        assert host["BlkioDeviceWriteBps"] is None
    finally:
        container.remove(force=True)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("-m", "32m", "--memory-reservation", "64m"), "--memory-reservation is out of range"),
        (("--memory-swappiness", "101"), "goes from 0 to 100"),
        (("--cpus", "1", "--cpu-quota", "5000"), "cannot be given together"),
        (("--cpu-period", "10"), "goes from 1000 to 1000000"),
        (("--cpu-quota", "10"), "is too small"),
        (("--cpuset-mems", "99"), "memory node 99 is not there"),
        (("--blkio-weight", "5"), "it goes from 10 to 1000"),
        (("--device-read-bps", "/dev/null:1mb"), "it is no block device"),
        (("--device-read-bps", "/dev/no-such-disk:1mb"), "No such file or directory"),
        (("--device-read-bps", "1mb"), "cannot be understood"),
        (("--device-write-iops", "/dev/null:many"), "no positive number"),
        (("--blkio-weight-device", "/dev/null:1"), "it is no block device"),
    ],
)
def test_limits_that_are_wrong(place: Machine, level: Level, flags: tuple[str, ...], why: str) -> None:
    done = place.command("create", *level.flags, *flags, "busybox", "true")
    assert done.returncode in (1, 125) and not done.stdout and why in done.stderr, done
    assert len(done.stderr.splitlines()) == 1
    assert place.engine.containers.list(all=True) == []


def test_update_while_it_runs(place: Machine, level: Level) -> None:
    """Also where the container had no control group until then."""
    if cannot(place, level, Feature.MEMORY_LIMIT, Feature.CPU_LIMIT, Feature.PIDS_LIMIT):
        return
    with place.running(level, "sh", "-c", "sleep 1000 & echo ready; sleep 1000") as container:
        wait_for(lambda: count(container) == 1, "it is ready")
        done = place.command("update", "-m", "64m", "--pids-limit", "40", "--cpus", "0.5", "--cpuset-cpus", "0", container.name)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{container.name}\n", "")
        assert (held(container, "memory"), held(container, "pids"), held(container, "cpus")) == (str(64 << 20), "40", "0")
        assert held(container, "quota") in ("50000", "50000 100000")
        with closing(ControlGroup.open(container.id)) as group:
            for directory in set(group._directories.values()):
                assert len(kernel.processes(directory)) == 2, directory
        assert place.engine.containers.get(container.id).inspect()["HostConfig"]["Memory"] == 64 << 20  # type: ignore[index]
        assert container.stats(0).memory_limit_bytes == 64 << 20
        assert "update" in actions(place, container)
        # Larger, smaller, and no limit at all; what is not named stays.
        for given, expected in (("256m", 256 << 20), ("48m", 48 << 20)):
            assert place.command("update", "--memory", given, container.name).returncode == 0
            assert held(container, "memory") == str(expected)
        done = place.command("update", "--memory", "0", "--cpus", "0", "--pids-limit", "-1", container.name)
        assert (done.returncode, done.stderr) == (0, "")
        assert held(container, "pids") == "max" and held(container, "quota").split()[0] in ("-1", "max")
        assert held(container, "memory") == "max" or int(held(container, "memory")) > 1 << 60
        assert held(container, "cpus") == "0"
        assert place.command("stop", "-t", "0", container.name).returncode == 0
        wait_for(lambda: held(container, "memory") == held(container, "pids") == "", "its groups are gone")


def test_update_bites(place: Machine, level: Level) -> None:
    if cannot(place, level, Feature.PIDS_LIMIT):
        return
    with place.running(level) as container:
        fork = "for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; echo all"
        container.update(bulle.LimitChanges(pids_limit=5))
        assert b"all" not in place.execute(container, "sh", "-c", fork).stdout
        container.update(bulle.LimitChanges(pids_limit=0))
        done = place.execute(container, "sh", "-c", fork.replace("sleep 5", "true"))
        assert done.stdout == b"all\n"


def test_update_of_one_that_does_not_run(place: Machine, level: Level) -> None:
    if cannot(place, level, Feature.MEMORY_LIMIT):
        return
    container = place.create(level, "sleep", "1000")
    try:
        container.update(bulle.LimitChanges(memory_bytes=32 << 20, restart_policy="on-failure:3"))
        assert held(container, "memory") == ""
        host = place.engine.containers.get(container.id).inspect()["HostConfig"]
        assert isinstance(host, dict)
        assert (host["Memory"], host["RestartPolicy"]) == (32 << 20, {"Name": "on-failure", "MaximumRetryCount": 3})
        place.engine.containers.get(container.id).start()
        assert held(container, "memory") == str(32 << 20)
    finally:
        container.remove(force=True)


def test_an_update_that_fails_changes_nothing(place: Machine, level: Level) -> None:
    if cannot(place, level, Feature.MEMORY_LIMIT, Feature.CPU_LIMIT):
        return
    with place.running(level, memory_bytes=64 << 20, nano_cpus=500_000_000) as container:
        before = container.inspect()["HostConfig"], held(container, "memory"), held(container, "quota")
        for flags, why in (
            (("--memory", "1m"), "too small"),
            (("--memory", "128m", "--cpus", "4000"), "out of range"),
            (("--memory", "128m", "--cpu-quota", "5000"), "cannot be given together"),
            (("--memory", "128m", "--cpuset-cpus", "4000"), "is not there"),
            (("--memory", "128m", "--restart", "sometimes"), "invalid restart policy"),
            ((), "nothing is to be changed"),
        ):
            done = place.command("update", *flags, container.name)
            assert (done.returncode, done.stdout) == (1, "") and why in done.stderr, (flags, done)
            assert (place.engine.containers.get(container.id).inspect()["HostConfig"], held(container, "memory"), held(container, "quota")) == before
        assert "update" not in actions(place, container)


def test_what_the_kernel_refuses_is_undone(place: Machine, level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third of several files cannot be written: the first two say again what they said."""
    if cannot(place, level, Feature.MEMORY_LIMIT, Feature.CPU_LIMIT, Feature.PIDS_LIMIT):
        return
    if Feature.OWN_KERNEL in usable(level, place.home):
        pytest.skip("what is written here is the host's kernel's, which holds few of its limits")
    with place.running(level, memory_bytes=64 << 20, nano_cpus=500_000_000, pids_limit=50) as container:
        names = ("memory", "quota", "pids")
        before = [held(container, name) for name in names]
        write = kernel.write

        def refuse(directory: str, name: str, value: str) -> None:
            if (name, value) == ("pids.max", "60"):
                raise OSError(16, "Device or resource busy", name)
            write(directory, name, value)

        monkeypatch.setattr(kernel, "write", refuse)
        with pytest.raises(bulle.BulleError, match="--pids-limit cannot be applied"):
            container.update(bulle.LimitChanges(memory_bytes=128 << 20, nano_cpus=250_000_000, pids_limit=60))
        assert [held(container, name) for name in names] == before
        assert place.engine.containers.get(container.id).options.memory_bytes == 64 << 20
        # What cannot be recorded is undone as well.
        monkeypatch.undo()
        monkeypatch.setattr(ContainerRecords, "change", lambda *_: (_ for _ in ()).throw(Conflict("changed", "", "")))
        with pytest.raises(Conflict):
            container.update(bulle.LimitChanges(memory_bytes=128 << 20, nano_cpus=250_000_000, pids_limit=60))
        assert [held(container, name) for name in names] == before


def test_restart_policy_and_limits_hold_for_the_next_life(place: Machine, level: Level) -> None:
    """Its monitor, which has an older plan, starts it again with what was changed since."""
    limits = {} if cannot(place, level, Feature.MEMORY_LIMIT) else {"memory_bytes": 64 << 20}
    with place.running(level) as container:
        container.update(bulle.LimitChanges(restart_policy="always", **limits))
        os.kill(container.state().pid, signal.SIGKILL)
        wait_for(lambda: container.state().restart_count == 1 and container.state().status == "running", "its second life")
        if limits:
            assert held(container, "memory") == str(64 << 20)
        container.update(bulle.LimitChanges(restart_policy="no"))
        os.kill(container.state().pid, signal.SIGKILL)
        wait_for(lambda: container.state().status == "exited", "its end")
        time.sleep(0.3)
        assert container.state().status == "exited"


def test_a_restart_policy_for_one_in_the_foreground(place: Machine, level: Level) -> None:
    watching = place.start_command("run", "--name", "front", *level.flags, "busybox", "sh", "-c", "echo up; sleep 1000", stdout=subprocess.PIPE)
    try:
        assert watching.stdout is not None and watching.stdout.readline() == b"up\n"
        container = place.engine.containers.get("front")
        container.update(bulle.LimitChanges(restart_policy="always"))
        os.kill(container.state().pid, signal.SIGKILL)
        assert watching.wait(20) == 137
        wait_for(lambda: container.state().restart_count == 1 and container.state().status == "running", "its second life")
        container.remove(force=True)
    finally:
        watching.kill()
        watching.wait()
        assert watching.stdout is not None
        watching.stdout.close()


def test_one_that_is_removed_at_its_end_is_not_restarted(place: Machine, level: Level) -> None:
    with place.running(level, auto_remove=True) as container, pytest.raises(Conflict, match="--rm"):
        container.update(bulle.LimitChanges(restart_policy="always"))
