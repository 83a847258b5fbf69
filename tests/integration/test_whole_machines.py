"""Machines with a system of their own: disks of other hypervisors imported, a Debian that boots by itself, and the usual verbs on it."""

from __future__ import annotations

import functools
import json
import os
import random
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bulle.isolation.microvm.whole import firmware
from bulle_testing import tiers, whole_disk
from bulle_testing.networking import Networked
from bulle_testing.running import Machine, Terminal, wait_for

pytestmark = [pytest.mark.machines, pytest.mark.root]
PATIENCE_S = 900.0
DISK_BYTES = 40 << 20
# Says something on the serial port, in 16-bit code, and stands still.
BOOT_SECTOR = b"\xba\xf8\x03" + b"".join(bytes([0xB0, letter, 0xEE]) for letter in b"from the boot sector\r\n") + b"\xf4\xeb\xfd"
BOOT_SECTOR = BOOT_SECTOR.ljust(510, b"\0") + b"\x55\xaa"
IN_FORMATS = (
    ("qcow2", "qcow2", ""), ("compressed.qcow2", "qcow2", ""), ("vdi", "vdi", ""), ("vhdx", "vhdx", ""), ("vmdk", "vmdk", ""),
    ("stream.vmdk", "vmdk", "subformat=streamOptimized"),
)  # fmt: skip


def run(box: Machine, *words: str | Path, code: int = 0, timeout_s: float = 300) -> str:
    """What a command prints; of one that fails its complaint, which is one line."""
    done = box.command(*words, timeout_s=timeout_s)
    assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
    if code:
        assert done.stderr.count("\n") == 1, done.stderr
    return (done.stderr if code else done.stdout).strip()


def qemu_img(*words: str | Path) -> None:
    tiers.need("qemu-img")
    done = subprocess.run(["qemu-img", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk of random bytes and holes in every format that can be imported."""
    place = tmp_path_factory.mktemp("disks")
    raw, chosen = place / "disk.raw", random.Random(1)
    with raw.open("wb") as file:
        for at in (0, 5 << 20, 33 << 20):
            file.seek(at)
            file.write(chosen.randbytes(3 << 20))
        file.truncate(DISK_BYTES)
    for name, form, options in IN_FORMATS:
        flags = [*(["-c"] if "compressed" in name else []), *(["-o", options] if options else [])]
        qemu_img("convert", "-f", "raw", "-O", form, *flags, raw, place / f"disk.{name}")
    with tarfile.open(place / "disk.ova", "w", format=tarfile.USTAR_FORMAT) as archive:
        (place / "disk.ovf").write_text("<Envelope/>")
        archive.add(place / "disk.ovf", "disk.ovf")
        archive.add(place / "disk.stream.vmdk", "disk.vmdk")
    return place


def content_of(box: Machine, name: str, place: Path) -> bytes:
    """The disk in an image, as QEMU reads it out of what `save` writes."""
    run(box, "save", "-o", place / "saved.tar", name)
    with tarfile.open(place / "saved.tar") as saved:
        members = [one for one in saved.getmembers() if one.isreg() and one.size > 1 << 20]
        [layer] = {one.offset_data: one for one in members}.values()
        stream = saved.extractfile(layer)
        with tarfile.open(fileobj=stream) as inner:
            [file] = [one for one in inner.getmembers() if one.isreg()]
            assert file.name == f"disk/{name}.qcow2"
            content = inner.extractfile(file)
            assert content is not None
            (place / "read.qcow2").write_bytes(content.read())
    qemu_img("convert", "-f", "qcow2", "-O", "raw", place / "read.qcow2", place / "read.raw")
    return (place / "read.raw").read_bytes()


def test_every_format_is_imported_whole(box: Machine, disks: Path, tmp_path: Path) -> None:
    expected = (disks / "disk.raw").read_bytes()
    names = [*(name for name, _form, _options in IN_FORMATS), "ova", "raw"]
    for name in names:
        image = f"one-{name}"
        run(box, "vm", "import", disks / f"disk.{name}", image)
        assert content_of(box, image, tmp_path) == expected, name
        layer = json.loads(run(box, "image", "inspect", image))[0]["RootFS"]["Layers"][0].partition(":")[2]
        assert (box.home / "layers/sha256" / layer / "tar").stat().st_blocks * 512 < 12 << 20, "holes are not kept"
    run(box, "rmi", "one-ova")
    run(box, "load", "-i", run_saved(box, "one-qcow2", tmp_path))
    run(box, "vm", "create", "loaded", "--image", "one-qcow2")
    run(box, "rm", "loaded")
    run(box, "rmi", *(f"one-{name}" for name in names if name != "ova"))


def run_saved(box: Machine, name: str, place: Path) -> Path:
    """An image that was saved and removed."""
    run(box, "save", "-o", place / "again.tar", name)
    run(box, "rmi", name)
    return place / "again.tar"


def test_what_is_not_whole_is_refused(box: Machine, disks: Path, tmp_path: Path) -> None:
    """In one sentence, and nothing of it is kept."""
    run(box, "vm", "import", disks / "disk.qcow2", "kept")
    layers = sorted(os.listdir(box.home / "layers/sha256"))
    raw, secret = disks / "disk.raw", tmp_path / "secret"
    secret.write_bytes(b"not for guests" * 1000)
    qemu_img("create", "-f", "qcow2", "-b", secret, "-F", "raw", tmp_path / "backed.qcow2", "10M")
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path}/data", tmp_path / "data.qcow2", "10M")
    qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=monolithicFlat", raw, tmp_path / "flat.vmdk")
    refused = {"backed.qcow2": "stands on another file", "data.qcow2": "its data is in another file", "flat.vmdk": "no VMDK that stands alone"}
    for name, _form, _options in (*IN_FORMATS, ("ova", "", "")):
        whole = (disks / f"disk.{name}").read_bytes()
        (tmp_path / f"short.{name}").write_bytes(whole[: len(whole) * 6 // 10])
        refused[f"short.{name}"] = "is damaged"
    broken = bytearray((disks / "disk.qcow2").read_bytes())
    table = int.from_bytes(broken[40:48], "big")
    broken[table : table + 8] = b"\0" + bytes(7 * [0xFE])
    (tmp_path / "broken.qcow2").write_bytes(broken)
    (tmp_path / "broken.vhdx").write_bytes(b"vhdxfile" + bytes(1 << 20))
    refused |= {"broken.qcow2": "is damaged", "broken.vhdx": "is damaged"}
    for name, why in refused.items():
        assert why in run(box, "vm", "import", tmp_path / name, "refused", code=1), name
    assert "it looks like raw" in run(box, "vm", "import", "--format", "vdi", raw, "refused", code=1)
    assert "no such file" in run(box, "vm", "import", tmp_path / "nothing", "refused", code=1).lower()
    assert "refused" not in run(box, "images") and sorted(os.listdir(box.home / "layers/sha256")) == layers
    # A qcow2 of somebody else's in the convention's place is looked at as well.
    with tarfile.open(tmp_path / "image.tar", "w") as archive:
        archive.add(tmp_path / "backed.qcow2", "disk/disk.qcow2")
    run(box, "import", tmp_path / "image.tar", "foreign")
    assert "stands on another file" in run(box, "vm", "create", "m", "--image", "foreign", code=1)
    run(box, "rmi", "kept", "foreign")


def test_the_usual_verbs(box: Machine) -> None:
    """On a machine whose disk is empty: its firmware runs for ever."""
    run(box, "vm", "create", "empty", "--disk", "1g", "--memory", "64m", "--vnc", "--restart", "on-failure", "--network", "none")
    run(box, "start", "empty")
    with screen(box, "empty") as line:
        assert line.recv(12) == b"RFB 003.008\n"
    for words in (("exec", "empty", "ls"), ("cp", "empty:/etc/passwd", "/nowhere"), ("top", "empty"), ("diff", "empty"), ("commit", "empty", "none")):
        assert "a system of its own; use its console (bulle attach), or ssh" in run(box, *words, code=1)
    run(box, "pause", "empty")
    assert "(Paused)" in run(box, "ps")
    run(box, "unpause", "empty")
    run(box, "update", "--cpus", "1", "empty")
    assert "stop it first" in run(box, "update", "--memory", "128m", "empty", code=1)
    assert "64MiB" in run(box, "stats", "--no-stream", "empty")
    assert "its disk is in use" in run(box, "vm", "resize", "empty", "2g", code=1)
    before = json.loads(run(box, "inspect", "empty"))[0]["State"]
    os.kill(hypervisor_of(before["Pid"]), 9)
    wait_for(lambda: json.loads(run(box, "inspect", "empty"))[0]["State"]["Pid"] not in (0, before["Pid"]), "it was started again", 60)
    run(box, "stop", "-t", "1", "empty")
    assert "it did not end on SIGTERM within" in run(box, "why", "empty")
    run(box, "vm", "resize", "empty", "2g")
    assert "cannot be made smaller" in run(box, "vm", "resize", "empty", "1g", code=1)
    shown = json.loads(run(box, "inspect", "empty"))[0]["State"]
    assert (shown["ExitCode"], shown["Machine"]["DiskSize"], shown["Machine"]["Firmware"]) == (137, 2 << 30, "bios")
    run(box, "rm", "empty")


def test_a_raw_disk_in_the_convention(box: Machine, tmp_path: Path) -> None:
    """What others publish: any name below /disk, read where it lies; its boot sector says something on the serial port and switches nothing off."""
    (tmp_path / "disk.img").write_bytes(BOOT_SECTOR + bytes(1 << 20))
    with tarfile.open(tmp_path / "image.tar", "w") as archive:
        archive.add(tmp_path / "disk.img", "disk/disk.img")
    run(box, "import", tmp_path / "image.tar", "published")
    for name in ("one", "two"):
        run(box, "vm", "create", name, "--image", "published", "--memory", "32m", "--network", "none", "--disk", "2m")
    run(box, "start", "one", "two")
    for name in ("one", "two"):
        wait_for_console(box, name, "from the boot sector")
    assert "container" in run(box, "rmi", "published", code=1)
    run(box, "rm", "-f", "one", "two")
    run(box, "rmi", "published")


def hypervisor_of(shepherd: int) -> int:
    """The pid of the one child of a shepherd."""
    [pid] = Path(f"/proc/{shepherd}/task/{shepherd}/children").read_text().split()
    return int(pid)


@contextmanager
def screen(box: Machine, name: str) -> Iterator[socket.socket]:
    """A connection to a machine's VNC."""
    path = Path(run(box, "inspect", name, "--format", "{{.State.Machine.Vnc}}"))
    directory = os.open(path.parent, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(f"/proc/self/fd/{directory}/{path.name}")
            line.settimeout(60)
            yield line
    finally:
        os.close(directory)


@pytest.mark.timeout(1800)
def test_a_debian_of_its_own(net: Networked) -> None:
    """By BIOS and by UEFI, both on one image: console, seed, addresses, names, ports, disk, power button."""
    net("vm", "import", whole_disk.debian(), "debian")
    net("vm", "create", "one", "--image", "debian", "--memory", "256m", "--hostname", "borrowed", "--run", "touch /seeded", "-p", "127.0.0.1::7")
    net("vm", "create", "two", "--image", "debian", "--memory", "256m", "--firmware", "uefi", "--disk", "600m")
    net("vm", "resize", "one", "1g")
    net("start", "one", "two")
    wait_for_console(net.machine, "one", "12 borrowed ttyS0")
    console = Terminal(net.machine, "attach", "one")
    try:
        console.type("\n")
        log_in(console)
        console.type("echo size=$(cat /sys/block/vda/size) seeded=$(ls /seeded) cx16=$(grep -c cx16 /proc/cpuinfo)\n")
        console.expect(f"size={(1 << 30) // 512} seeded=/seeded cx16=0\r\n", PATIENCE_S)
        console.type("echo mine=$(ip -4 -o addr show scope global | sed 's/.*inet \\([0-9.]*\\).*/\\1/') named=$(busybox nslookup two)\n")
        address = net.inspect("one", ".NetworkSettings.Networks.bridge.IPAddress")
        console.expect(f"mine={address} named=", PATIENCE_S)
        console.expect(net.inspect("two", ".NetworkSettings.Networks.bridge.IPAddress"), PATIENCE_S)
        console.type("busybox nc -l -p 7 -e echo served & echo listen''ing\n")
        console.expect("listening", PATIENCE_S)
        _, _, port = net("port", "one", "7").rpartition(":")
        wait_for(lambda: _answer(int(port)) == b"served\n", "its published port answers", 60)
        console.type(b"\x10\x11")  # the detach keys
        assert console.wait() == 0
    finally:
        console.close()
    net("stop", "-t", "600", "one")
    assert "it ended by itself on SIGTERM, with exit code 0" in net("why", "one")
    wait_for_console(net.machine, "two", "12 (none) ttyS0")
    console = Terminal(net.machine, "attach", "two")
    try:
        console.type("\n")
        log_in(console)
        console.type("ls /sys/firmware/efi; ls /seeded\n")
        console.expect("runtime", PATIENCE_S)
        console.expect("No such file", PATIENCE_S)
    finally:
        console.close()
    net("kill", "two")
    [kept] = net.home.glob("containers/*/root/uefi-variables")
    assert kept.read_bytes() != Path(firmware("x86_64")[1]).read_bytes(), "what the firmware wrote is kept"
    taken = [path.stat().st_blocks * 512 for path in net.home.glob("containers/*/root/disk")]
    assert len(taken) == 2 and max(taken) < 64 << 20
    net("rm", "one", "two")
    net("rmi", "debian")


def test_over_the_network(net: Networked, tmp_path: Path) -> None:
    """A program that the firmware is told of with its address, fetches by HTTP from this machine, and starts."""
    (tmp_path / "program").write_bytes(BOOT_SECTOR)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            gateway = json.loads(net("network", "inspect", "bridge"))[0]["IPAM"]["Config"][0]["Gateway"]
            url = f"http://{gateway}:{server.server_address[1]}/program"
            net("vm", "create", "fetches", "--disk", "1m", "--memory", "64m", "--boot", f"disk,{url}")
            net("start", "fetches")
            wait_for_console(net.machine, "fetches", "from the boot sector")
        finally:
            server.shutdown()
            thread.join()
    assert net.inspect("fetches", ".State.Machine.BootUrl") == url
    net("rm", "-f", "fetches")
    assert "cannot boot from 'https://x'" in net.refused("vm", "create", "none", "--boot", "https://x", code=125)


@pytest.mark.timeout(1800)
def test_xen_with_a_debian_in_its_first_domain(net: Networked) -> None:
    """A hypervisor of type 1 has the machine, and gives Linux a domain of it: as its own commands say there, over the first domain's console."""
    net("vm", "import", whole_disk.xen(), "xen")
    net("vm", "create", "xen", "--image", "xen", "--memory", "640m")
    net("start", "xen")
    wait_for_console(net.machine, "xen", "12 (none) hvc0")
    console = Terminal(net.machine, "attach", "xen")
    try:
        console.type("\n")
        log_in(console)
        console.type("echo $(cat /sys/hypervisor/type /proc/xen/capabilities); xl info; ip -4 -o addr show scope global\n")
        for said in ("xen control_d", "xen_version            : 4.17", net.inspect("xen", ".NetworkSettings.Networks.bridge.IPAddress")):
            console.expect(said, PATIENCE_S)
        console.type("/usr/lib/xen-4.17/bin/xen-init-dom0; xl list\n")
        console.expect("Domain-0", PATIENCE_S)
    finally:
        console.close()
    net("kill", "xen")
    net("rm", "xen")
    net("rmi", "xen")


def wait_for_console(box: Machine, name: str, text: str) -> None:
    """Look now and then whether a machine wrote this: each look costs what it needs itself."""
    log = Path(box.engine.containers.get(name).directory) / "container.log"
    deadline = time.monotonic() + PATIENCE_S
    while text.encode() not in (said := log.read_bytes()):
        assert time.monotonic() < deadline, f"{text!r} never came: {said[-2000:]!r}"
        time.sleep(0.5)
    assert text in run(box, "logs", name)


def log_in(console: Terminal) -> None:
    console.expect("login: ", PATIENCE_S)
    console.type("root\n")
    console.expect("Password: ", PATIENCE_S)
    console.type("secret\n")
    console.expect(":~# ", PATIENCE_S)


def _answer(port: int) -> bytes:
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as line:
            return line.recv(100)
    except OSError:
        return b""


@pytest.mark.timeout(1200)
def test_debians_installer_speaks(box: Machine, tmp_path: Path) -> None:
    """From a CD-ROM, on an empty disk, to its first question."""
    disc = whole_disk.installer(tmp_path)
    run(box, "vm", "create", "fresh", "--disk", "4g", "--cdrom", disc, "--network", "none")
    run(box, "start", "fresh")
    console = Terminal(box, "attach", "fresh")
    try:
        console.expect("Select a language", PATIENCE_S)
    finally:
        console.close()
    run(box, "kill", "fresh")
    run(box, "rm", "fresh")
