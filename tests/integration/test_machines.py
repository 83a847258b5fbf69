"""Machines that boot: a kernel, an initial ramdisk and QEMU's argument vector, joined and run; and what they find on their disks."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import bulle
from bulle.errors import BulleError, Unavailable
from bulle.isolation.microvm import accelerator, disks, emulator, qemu
from bulle.isolation.microvm.agent import Agent
from bulle.isolation.microvm.agent_program import agent_program
from bulle.isolation.microvm.initial_ramdisk import initial_ramdisk
from bulle.isolation.microvm.machine import Disk, Machine, SharedDirectory
from bulle.model.run_plan import LayerMount
from bulle_testing import places, tiers, virtual_machines
from bulle_testing.guests import run_until

pytestmark = [pytest.mark.slow, pytest.mark.machines]


def machine(**given: object) -> Machine:
    """A small one; what starts it fills the descriptors in."""
    architecture = given.get("architecture", "x86_64")
    tsc = accelerator.choose(str(architecture), "tcg").host_tsc_khz
    usual = {"architecture": architecture, "accelerator": "tcg", "kernel": -1, "initial_ramdisk": -1, "memory_bytes": 256 << 20, "agent": -1}
    return Machine(**usual | {"host_tsc_khz": tsc} | given)  # type: ignore[arg-type]


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    """What is closed after the test."""
    with ExitStack() as undo:
        yield undo


@pytest.mark.parametrize("pluggable", [False, True], ids=["microvm", "q35"])
def test_a_machine_boots_and_answers(tmp_path: Path, pluggable: bool) -> None:
    kernel = virtual_machines.debian_kernel("x86_64")
    said = virtual_machines.boot(machine(pluggable=pluggable), kernel, "uname -rm; nproc", tmp_path)
    assert said.split() == [kernel.release, "x86_64", "1"]


def test_a_kernel_that_is_not_unpacked_boots_with_firmware(tmp_path: Path) -> None:
    kernel = virtual_machines.debian_kernel("x86_64")
    (packed,) = (places.cache_directory() / "kernels/debian-trixie-x86_64/boot").glob("vmlinuz-*")
    kernel = dataclasses.replace(kernel, image=packed, plain=False)
    assert virtual_machines.boot(machine(small=kernel.plain), kernel, "uname -r", tmp_path).split() == [kernel.release]


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64", "riscv64"])
def test_the_agent_of_a_booted_machine_says_what_it_runs_on(architecture: str, tmp_path: Path, closing: ExitStack) -> None:
    kernel = virtual_machines.debian_kernel(architecture)
    ours, theirs = socket.socketpair()
    closing.enter_context(ours)
    wanted = machine(architecture=architecture)
    ramdisk = initial_ramdisk(kernel, agent_program(architecture).read_bytes(), wanted.modules, tmp_path)
    files = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in (kernel.image, ramdisk)]
    for fd in files:
        closing.callback(os.close, fd)
    with theirs:
        wanted = dataclasses.replace(wanted, kernel=files[0], initial_ramdisk=files[1], agent=theirs.fileno())
        line = qemu.arguments(wanted, emulator.find(architecture).program)
        guest = closing.enter_context(subprocess.Popen(line, pass_fds=wanted.descriptors, stdin=subprocess.DEVNULL))
    closing.callback(guest.kill)
    agent = Agent(ours)
    run_until(agent, lambda: agent.hello is not None, virtual_machines.PATIENCE_S)
    assert agent.hello is not None
    assert (agent.hello.release, agent.hello.machine) == (kernel.release, architecture)
    agent.power_off()
    run_until(agent, lambda: not agent.wants_to_write, virtual_machines.PATIENCE_S)
    assert guest.wait(virtual_machines.PATIENCE_S) == 0


LAYERS = """
while [ $(ls -d /sys/block/[sv]d* | wc -l) -lt {disks} ]; do :; done
for disk in /sys/block/[sv]d*; do
    serial=
    while [ -z "$serial" ]; do serial=$(cat $disk/serial 2>/dev/null || tail -c +5 $disk/device/vpd_pg80 2>/dev/null); done
    ln -s /dev/${{disk##*/}} /run/$serial
done
lower=
for number in $(seq 0 {top}); do
    mkdir -p /layers/$number
    mount -t erofs -o ro,device=$(readlink /run/tar-$number) $(readlink /run/index-$number) /layers/$number
    lower=/layers/$number:$lower
done
mkdir -p /scratch /root
mount -t ext4 -o {options} $(readlink /run/scratch) /scratch && mkdir /scratch/upper /scratch/work
mount -t overlay -o lowerdir=${{lower%:}},upperdir=/scratch/upper,workdir=/scratch/work overlay /root
cat /root/same; cat /root/only* | sort -n | uniq | wc -l; echo written >/root/new; umount /root; cat /scratch/upper/new; umount /scratch
"""


def layer_mounts(home: Path, count: int) -> list[LayerMount]:
    """As many layers in a store: in each a file of its own, and one that the next hides."""
    engine = bulle.Engine(home)
    try:
        found = []
        for number in range(count):
            content = io.BytesIO()
            with tarfile.open(fileobj=content, mode="w") as archive:
                for name, text in ((f"only{number}", b"%d\n" % number * 1000), ("same", b"of layer %d\n" % number)):
                    member = tarfile.TarInfo(name)
                    member.size = len(text)
                    archive.addfile(member, io.BytesIO(text))
            found.append(engine.store.layers.add([content.getvalue()]).diff_id)
        files = engine.store.layers.files(found)
        return [LayerMount("erofs", one.diff_id, str(one.mount_point), str(one.index), str(one.tar)) for one in files]
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("count", "pluggable", "suite"),
    [(1, False, ""), (40, False, ""), (40, True, ""), (1, False, "bookworm")],
    ids=["one", "forty-microvm", "forty-q35", "one-on-the-kernel-of-debian-12"],
)
def test_layers_of_the_store_are_a_root(home: Path, tmp_path: Path, closing: ExitStack, count: int, pluggable: bool, suite: str) -> None:
    kernel = virtual_machines.debian_kernel("x86_64", suite)
    disks.make_scratch(str(tmp_path / "scratch"), 1 << 30)
    attached = [*disks.open_layers(layer_mounts(home, count)), disks.open_scratch(str(tmp_path / "scratch"))]
    for disk in attached:
        closing.callback(os.close, disk.descriptor)
    script = LAYERS.format(disks=2 * count + 1, top=count - 1, options=disks.SCRATCH_OPTIONS)
    wanted = machine(disks=tuple(attached), pluggable=pluggable)
    assert wanted.disks_on_scsi == (count == 40)
    said = virtual_machines.boot(wanted, kernel, script, tmp_path, ("erofs", "overlay", "ext4")).splitlines()
    assert said == [f"of layer {count - 1}", str(count), "written"]
    assert (tmp_path / "scratch").stat().st_blocks * 512 < 64 << 20


def test_a_read_only_disk_stays_as_it_is(tmp_path: Path, closing: ExitStack) -> None:
    kernel = virtual_machines.debian_kernel("x86_64")
    (tmp_path / "disk").write_bytes(b"kept\n".ljust(4096, b"\0"))
    fd = os.open(tmp_path / "disk", os.O_RDONLY | os.O_CLOEXEC)
    closing.callback(os.close, fd)
    script = "while [ ! -b /dev/vda ]; do :; done; cat /sys/block/vda/ro; echo lost >/dev/vda || echo refused"
    said = virtual_machines.boot(machine(disks=(Disk("it", fd),)), kernel, script, tmp_path)
    assert said.splitlines()[0] == "1"
    assert "refused" in said
    assert (tmp_path / "disk").read_bytes().startswith(b"kept\n")


@pytest.mark.parametrize("pluggable", [False, True], ids=["microvm", "q35"])
def test_a_directory_is_shared(tmp_path: Path, closing: ExitStack, pluggable: bool) -> None:
    daemon = shutil.which("virtiofsd", path="/usr/libexec:/usr/lib/qemu:/usr/bin")
    if daemon is None:
        tiers.give_up("programs", "not installed: virtiofsd")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/here").write_text("from the host\n")
    path = tmp_path / "socket"
    server = subprocess.Popen([daemon, f"--socket-path={path}", "-o", f"source={tmp_path}/shared"], stderr=subprocess.DEVNULL)
    closing.callback(server.wait)
    closing.callback(server.kill)
    deadline = time.monotonic() + 20
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    connection = closing.enter_context(socket.socket(socket.AF_UNIX))
    connection.connect(str(path))
    wanted = machine(shares=(SharedDirectory("data", connection.fileno()),), pluggable=pluggable)
    script = "mkdir /shared; mount -t virtiofs data /shared; cat /shared/here; echo from the guest >/shared/there; umount /shared"
    said = virtual_machines.boot(wanted, virtual_machines.debian_kernel("x86_64"), script, tmp_path)
    assert (said, (tmp_path / "shared/there").read_text()) == ("from the host\n", "from the guest\n")


def test_layers_that_are_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="as directories"):
        disks.open_layers([LayerMount("directory", "sha256:x", str(tmp_path))])


def test_disks_are_found_when_they_are_up(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/sys/block/vda/serial": b"index-0", "/sys/block/sdb/device/vpd_pg80": b"\0\x80\0\x05tar-0"}
    looks: list[str] = []

    def list_directory(path: str) -> list[str]:
        looks.append(path)
        return ["loop0", "vda", "sdb"] if len(looks) > 2 else ["loop0", "sdb"]

    def read(path: str) -> bytes:
        if path not in files:
            raise FileNotFoundError(path)
        return files[path]

    assert disks.find(["index-0", "tar-0"], list_directory, read) == {"index-0": "/dev/vda", "tar-0": "/dev/sdb"}
    monkeypatch.setattr(disks, "_PATIENCE_S", 0.02)
    with pytest.raises(BulleError, match="missing: scratch"):
        disks.find(["index-0", "scratch"], list_directory, read)
