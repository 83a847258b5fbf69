"""Virtual machines from outside: what they are made of, how they die, what a hostile guest can reach, and that nothing is left of them."""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

import bulle
from bulle.engine.drivers import driver_for
from bulle.isolation.microvm.files import GuestFiles
from bulle_testing import peers, places
from bulle_testing.networking import IMAGE, Networked, ask, free_ports
from bulle_testing.running import Machine, wait_for

pytestmark = [pytest.mark.machines, pytest.mark.root, pytest.mark.programs("qemu-system-x86_64")]
ARCHIVE = "python_archive"
USER = 23456
QUIET = ("--isolation", "vm", "--network", "none")


def run(box: Machine, *arguments: str, code: int = 0, timeout_s: float = 120) -> str:
    """The command, which must end with this code; what it printed."""
    done = box.command(*arguments, timeout_s=timeout_s)
    assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
    return done.stdout if code == 0 else done.stderr


def processes(box: Machine, name: str, program: str) -> list[int]:
    """The host's pids of a program of a machine."""
    container = box.engine.containers.get(name)
    found = driver_for("vm", box.home).processes(container.plan, container.state().pid)
    return [pid for pid in found if Path(f"/proc/{pid}/comm").read_text().startswith(program)]


def cause(box: Machine, name: str) -> str:
    """What `why` says first, once it has ended."""
    wait_for(lambda: not box.engine.containers.get(name).state().active, "its end")
    return run(box, "why", name).splitlines()[0]


def test_it_has_a_kernel_of_its_own_and_says_what_was_obtained(box: Machine) -> None:
    run(box, "run", "-d", "--name", "one", *QUIET, "--memory", "200m", IMAGE, "sleep", "1000")
    release = run(box, "exec", "one", "uname", "-r").strip()
    machine = json.loads(run(box, "inspect", "one", "--format", "{{json .State.Machine}}"))
    assert machine["Kernel"] == release
    assert machine["Accelerator"] in ("kvm", "tcg") and machine["Hypervisor"] in ("hosted", "emulating")
    assert run(box, "exec", "one", "cat", "/proc/sys/kernel/random/boot_id") != Path("/proc/sys/kernel/random/boot_id").read_text()
    given = json.loads(run(box, "info", "--format", "{{json .VirtualMachines}}"))
    assert (given["Running"], given["Memory"]) == (1, 200 << 20)
    run(box, "rm", "-f", "one")


def test_nothing_is_downgraded_in_silence(box: Machine) -> None:
    """Where KVM is not usable, who asks for it gets no emulation."""
    if driver_for("vm", box.home).probe().hypervisor == "hosted":
        assert run(box, "run", "--rm", *QUIET, "--accel", "kvm", IMAGE, "true") == ""
        return
    said = run(box, "run", "--rm", *QUIET, "--accel", "kvm", IMAGE, "true", code=125)
    assert "KVM cannot be used" in said and said.count("\n") == 1
    assert run(box, "ps", "-aq") == ""


@pytest.mark.parametrize("how", ["hypervisor", "shepherd", "panic", "reboot"])
def test_its_end_is_told(box: Machine, how: str) -> None:
    """Whatever ends, the state is true, `why` has a sentence, and nothing is left."""
    run(box, "run", "-d", "--name", "dies", *QUIET, "--privileged", IMAGE, "sleep", "1000")
    pid = box.engine.containers.get("dies").state().pid
    words = {
        "hypervisor": "ended with its virtual machine: the hypervisor was killed by SIGKILL",
        "shepherd": "was killed from outside (SIGKILL)",
        "panic": "ended with its virtual machine: the guest's kernel panicked: sysrq triggered crash",
        "reboot": "ended with its virtual machine: the guest switched itself off",
    }
    if how == "hypervisor":
        [hypervisor] = processes(box, "dies", "qemu")
        os.kill(hypervisor, signal.SIGKILL)
    elif how == "shepherd":
        os.kill(pid, signal.SIGKILL)
    else:
        letter = "c" if how == "panic" else "b"
        box.command("exec", "dies", "sh", "-c", f"echo {letter} > /proc/sysrq-trigger; sleep 100", timeout_s=240)
    assert words[how] in cause(box, "dies")
    state = box.engine.containers.get("dies").state()
    assert (state.status, state.exit_code) == ("exited", 137 if how == "shepherd" else 255)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), "the shepherd is gone")
    assert "started" not in run(box, "start", "dies") and run(box, "exec", "dies", "echo", "again") == "again\n"
    run(box, "rm", "-f", "dies")


def test_a_read_only_volume_is_so_on_the_host(box: Machine, tmp_path: Path) -> None:
    """Root of the guest, with every capability, remounts and mounts it anew: the host's side says no."""
    (tmp_path / "file").write_text("as it was\n")
    script = """
    mount -o remount,rw /v; mkdir /m; mount -t virtiofs volumes /m
    echo no > /v/file; for file in /m/*/shown/file; do echo no > $file; done; cat /v/file"""
    done = box.command("run", "--rm", *QUIET, "--privileged", "-v", f"{tmp_path}:/v:ro", IMAGE, "sh", "-c", script, timeout_s=240)
    assert done.stdout == "as it was\n"
    assert "Read-only file system" in done.stderr
    assert (tmp_path / "file").read_text() == "as it was\n"
    assert os.listdir(tmp_path) == ["file"]


def test_an_init_of_a_privileged_one_manages_control_groups(box: Machine) -> None:
    """As systemd does it: every controller can be handed down, commands that join do not prevent that, top shows who is in groups below."""
    script = """cd /sys/fs/cgroup && mkdir own && while test ! -e /joined; do sleep 0.1; done
    echo 1 > own/cgroup.procs && echo "+cpu +cpuset +io +memory +pids" > cgroup.subtree_control
    cat own/cgroup.controllers > /given; exec sleep 1000"""
    run(box, "run", "-d", "--name", "init", *QUIET, "--privileged", "--memory", "200m", IMAGE, "sh", "-c", script)
    said = run(box, "exec", "init", "sh", "-c", "touch /joined; while test ! -s /given; do sleep 0.1; done; cat /given")
    assert {"cpu", "cpuset", "io", "memory", "pids"} <= {*said.split()}
    assert run(box, "exec", "init", "cat", "/proc/self/cgroup", "/proc/1/cgroup") == "0::/bulle-exec\n0::/own\n"
    assert "sleep 1000" in run(box, "top", "init", "-o", "pid,args")
    assert "sleep 1000" in run(box, "top", "init")
    run(box, "rm", "-f", "init")


def test_a_guest_cannot_alter_its_image(box: Machine) -> None:
    """It writes to the very disks that its layers are: they are open for reading alone."""
    script = """
    cd /sys/block; for disk in vd*; do
        mknod /tmp/$disk b $(tr : ' ' < $disk/dev); blockdev --setrw /tmp/$disk
        [ $disk = vdc ] || dd if=/dev/zero of=/tmp/$disk bs=4096 count=4 conv=fsync && echo written $disk
    done"""
    done = box.command("run", "--rm", *QUIET, "--privileged", IMAGE, "sh", "-c", script, timeout_s=240)
    assert "written vda" not in done.stdout and done.stderr.count("Operation not permitted") >= 2, done
    assert box.command("image", "verify").returncode == 0
    assert run(box, "run", "--rm", *QUIET, IMAGE, "echo", "well") == "well\n"


def test_forty_layers(box: Machine, tmp_path: Path, busybox_rootfs: Path) -> None:
    layers = [peers.pack(busybox_rootfs)]
    for number in range(39):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / f"layer{number}").write_text(str(number))
        layers.append(peers.pack(directory))
    peers.docker_archive(tmp_path / "forty.tar", layers, tags=["forty:latest"])
    box.engine.images.load(tmp_path / "forty.tar")
    assert run(box, "run", "--rm", *QUIET, "forty", "sh", "-c", "ls / | grep -c layer; cat /layer38") == "39\n38"


def test_its_disk_has_a_size(box: Machine) -> None:
    script = "dd if=/dev/zero of=/big bs=1M count=200 2>&1 | grep -o 'No space left on device'"
    assert run(box, "run", "--rm", *QUIET, "--storage-opt", "size=64m", IMAGE, "sh", "-c", script) == "No space left on device\n"


def test_containers_and_machines_find_each_other(net: Networked) -> None:
    port = free_ports(1)
    net("network", "create", "shop")
    net.start("guest", "--isolation", "vm", "--network", "shop", "-p", f"{port}:80")
    net.start("box", "--network", "shop")
    assert ask("127.0.0.1", port, patience_s=20).startswith("guest ")
    assert net.ask_from("box", "guest").startswith("guest ")
    assert net.ask_from("guest", "box", patience_s=20).startswith("box ")
    assert net.ask_from("guest", "box", protocol="udp", patience_s=20).startswith("box ")


def test_a_guest_sends_as_itself_only(net: Networked) -> None:
    """What it says under another address reaches nobody."""
    net("network", "create", "shop")
    net.start("victim", "--network", "shop")
    address = net.address("victim", "shop")
    net("run", "-d", "--name", "liar", "--isolation", "vm", "--network", "shop", "--cap-add", "NET_ADMIN", IMAGE, "sleep", "1000")
    assert "1 packets received" in net("exec", "liar", "ping", "-c1", "-W5", address)
    net("exec", "liar", "sh", "-c", "ip address flush dev eth0; ip address add 10.208.99.99/8 dev eth0")
    assert "0 packets received" in net.bulle("exec", "liar", "ping", "-c1", "-W2", address).stdout


def test_twenty_machines(box: Machine) -> None:
    """Started and removed, three at a time; the leak check looks for what they left."""

    def one(number: int) -> str:
        return run(box, "run", "--rm", *QUIET, "--name", f"m{number}", IMAGE, "echo", str(number), timeout_s=200)

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(one, range(20))) == [f"{number}\n" for number in range(20)]
    assert run(box, "ps", "-aq") == ""


@pytest.mark.user_namespaces
@pytest.mark.programs("setpriv")
def test_an_ordinary_user_has_them_too(installation: Path, home: Path, busybox_rootfs: Path) -> None:
    """No privilege is needed where the processor is emulated: a network of the hypervisor's own, and a port that leads in."""
    peers.docker_archive(home / "image.tar", [peers.pack(busybox_rootfs)], tags=["busybox:latest"])
    for path in (home, *home.rglob("*")):
        os.chown(path, USER, USER)
    command = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--"]
    settings = places.environment(home / "bulle") | {"HOME": str(home), "XDG_RUNTIME_DIR": "", "BULLE_KERNEL": ""}
    port = free_ports(1)

    def bulle(*arguments: str) -> str:
        line = [*command, str(installation / "bin/bulle"), *arguments]
        done = subprocess.run(line, env=settings, cwd="/", capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        bulle("load", "-i", f"{home}/image.tar")
        assert bulle("run", "--rm", "--isolation", "vm", "busybox", "id", "-u") == "0\n"
        serve = "while true; do echo from the guest | nc -l -p 80; done"
        bulle("run", "-d", "--name", "web", "--isolation", "vm", "-p", f"127.0.0.1:{port}:80", "-p", "81", "busybox", "sh", "-c", serve)

        def answer() -> str:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as connection:
                return connection.recv(100).decode()
            return ""

        wait_for(lambda: answer() == "from the guest\n", "an answer through the port")
        told = bulle("port", "web").split("\n")
        assert f"80/tcp -> 127.0.0.1:{port}" in told and any(line.startswith("81/tcp -> 127.0.0.1:") for line in told)
        assert bulle("stats", "--no-stream", "--format", "{{.NetIO}}", "web") == "0B / 0B\n", "what the host sends is not the machine's"
        bulle("rm", "-f", "web")
        assert bulle("run", "--rm", "--isolation", "vm", "--memory", "100m", "busybox", "cat", "/proc/sys/kernel/ostype") == "Linux\n"
    finally:
        places.close_home(home / "bulle")


def test_a_guest_that_hangs(box: Machine) -> None:
    """It is said of it instead of waited for: exec is refused, stop ends it, `why` tells."""
    run(box, "run", "-d", "--name", "hangs", *QUIET, IMAGE, "sleep", "1000")
    [hypervisor] = processes(box, "hangs", "qemu")
    os.kill(hypervisor, signal.SIGSTOP)
    assert "the guest does not answer" in run(box, "exec", "hangs", "true", code=1)
    assert box.engine.containers.get("hangs").state().status == "running"
    run(box, "stop", "-t", "1", "hangs")
    said = cause(box, "hangs")
    assert "by `bulle stop`" in said and said.endswith("its guest did not answer when its command was killed, and was switched off")
    assert box.engine.containers.get("hangs").state().exit_code == 137
    run(box, "rm", "hangs")


def test_what_was_written_outlives_a_kill(box: Machine) -> None:
    """The guest had it in memory only; SIGKILL ends a process, and is no power cut."""
    script = "head -c 20000000 /dev/urandom > /large; md5sum < /large > /sum; echo written; sleep 1000"
    run(box, "run", "-d", "--name", "killed", *QUIET, IMAGE, "sh", "-c", f"test -e /sum || {{ {script}; }}; md5sum < /large | cmp - /sum")
    wait_for(lambda: run(box, "logs", "killed") == "written\n", "it has written", 60)
    run(box, "kill", "killed")
    assert box.engine.containers.get("killed").state().exit_code == 137
    assert run(box, "start", "-a", "killed") == ""
    run(box, "rm", "killed")


def test_one_that_takes_no_more_commands_can_be_killed(box: Machine) -> None:
    run(box, "run", "-d", "--name", "full", *QUIET, IMAGE, "sleep", "1000")
    files = GuestFiles(box.engine.containers.get("full").plan.state_host_path)
    opened = ExitStack()
    with pytest.raises((bulle.BulleError, OSError)), opened:  # of the copies, which the machine's end breaks off
        with pytest.raises(bulle.BulleError, match="too many run in this machine"):
            for _ in range(300):
                opened.enter_context(files.unpacking("/tmp", owners=False))
            box.execute(box.engine.containers.get("full"), "true")
        run(box, "kill", "full")
    assert cause(box, "full").startswith("full was ended by `bulle kill`")
    run(box, "rm", "full")


def test_a_busy_host(box: Machine) -> None:
    """Ten processes that want all of the processors make a start slow, and never fail."""
    load = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(10)]
    try:
        for number in range(3):
            assert run(box, "run", "--rm", *QUIET, IMAGE, "echo", str(number), timeout_s=300) == f"{number}\n"
    finally:
        for process in load:
            process.kill()
            process.wait()


def test_little_memory(box: Machine) -> None:
    """The limit is the command's, whatever the guest's kernel needs besides; who exceeds it is told so."""
    assert run(box, "run", "--rm", *QUIET, "--memory", "8m", IMAGE, "cat", "/sys/fs/cgroup/memory.max") == f"{8 << 20}\n"
    run(box, "run", "--name", "small", *QUIET, "--memory", "16m", IMAGE, "sh", "-c", "x=a; while :; do x=$x$x; done", code=137)
    assert cause(box, "small") == "small was killed by the kernel because it had used up its memory"
    run(box, "rm", "small")


def test_a_kernel_of_an_image(box: Machine, tmp_path: Path) -> None:
    kernel = places.cache_directory() / f"kernels/debian-trixie-{platform.machine()}"
    (tmp_path / "Containerfile").write_text("FROM scratch\nCOPY boot /boot\nCOPY usr/lib /usr/lib\n")
    run(box, "build", "-q", "-t", "kernel:1", "-f", str(tmp_path / "Containerfile"), str(kernel))
    run(box, "run", "-d", "--name", "given", *QUIET, "--kernel", "image:kernel:1", IMAGE, "sleep", "1000")
    assert run(box, "exec", "given", "uname", "-r").strip() == next((kernel / "usr/lib/modules").iterdir()).name
    guest = box.engine.containers.get("given").plan.guest
    assert guest is not None and guest.kernel.startswith(f"{box.home}/cache/kernels/image-")
    run(box, "rm", "-f", "given")
    run(box, "rmi", "kernel:1")
    assert f"image {IMAGE} has no kernel" in run(box, "run", "--rm", *QUIET, "--kernel", f"image:{IMAGE}", IMAGE, "true", code=125)


def test_what_is_fetched_is_told(box: Machine) -> None:
    done = box.command("create", "--name", "waits", *QUIET, "--kernel", "debian:bookworm", IMAGE)
    assert (done.returncode, done.stderr) == (0, "the kernel of virtual machines (about 30 MB, from Debian bookworm) is fetched first, once\n")
    assert box.command("create", "-q", "--name", "quiet", *QUIET, "--kernel", "debian:bookworm", IMAGE).stderr == ""
    run(box, "rm", "waits", "quiet")


def test_a_machine_that_runs_keeps_its_networks(box: Machine) -> None:
    """Its devices are those that it started with: no other network and none less, refused with its networks as they were."""
    for name in ("early", "late"):
        run(box, "network", "create", name)
    run(box, "run", "-d", "--name", "one", "--isolation", "vm", "--network", "early", IMAGE, "sleep", "1000")
    said = run(box, "network", "connect", "late", "one", code=1)
    assert "isolation level 'vm' has no way to get one more network while it runs; stop it" in said
    said = run(box, "network", "disconnect", "early", "one", code=1)
    assert "isolation level 'vm' has no way to lose a network while it runs; stop it" in said
    assert run(box, "inspect", "one", "--format", "{{json .NetworkSettings.Networks}}").count('"NetworkID"') == 1
    run(box, "stop", "-t", "0", "one")
    run(box, "network", "connect", "late", "one")
    run(box, "start", "one")
    assert sorted(run(box, "exec", "one", "ls", "/sys/class/net").split()) == ["eth0", "eth1", "lo"]
    run(box, "stop", "-t", "0", "one")
    run(box, "network", "disconnect", "early", "one")
    run(box, "start", "one")
    assert sorted(run(box, "exec", "one", "ls", "/sys/class/net").split()) == ["eth1", "lo"]
    run(box, "rm", "-f", "one")
    run(box, "network", "rm", "early", "late")
