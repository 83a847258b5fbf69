"""Attacks on a running engine, tried for real on every level that must withstand them: what an image, a program inside or a caller's input could do
to the host. Each test names the number of its attack class; each fails when its defence is taken away.

Malicious images are archives made here, byte by byte. What a private root cannot hold by definition (the host's processes and network) is not asked
of it.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import platform
import re
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

import bulle
from bulle.errors import BulleError, CommandNotExecutable, CorruptImage, InvalidInput
from bulle.isolation.driver import Feature
from bulle.linux.syscall_numbers import numbers
from bulle.store import backends
from bulle_testing import peers, tiers
from bulle_testing.layers import LayerTar
from bulle_testing.running import Level, Machine, follow, machine, need_several_ids, usable, wait_for

NAMES_OF_THE_HOST = ("vmlinuz", "lost+found", "boot", "srv", "media")


@pytest.fixture(scope="module")
def busybox_layer(busybox_rootfs: Path) -> bytes:
    return peers.pack(busybox_rootfs)


@pytest.fixture(scope="module")
def extracting_machine(run_directory: Path, busybox_image: Path) -> Iterator[Machine]:
    """A home whose layers are extracted into directories: there a malicious archive meets the host's file system."""
    home = run_directory / "attacks-extracted"
    with machine(run_directory, "attacks-extracted") as place:
        (home / "cache").mkdir(exist_ok=True)
        (home / "layers").mkdir(exist_ok=True)
        remembered = backends._Remembered(backends._circumstances(home), "directory", {})
        (home / "cache/layer-backend").write_bytes(msgspec.json.encode(remembered))
        place.engine.images.load(busybox_image)
        assert place.engine.layer_backend() == "directory"
        yield place


@pytest.fixture(params=["as-probed", "extracted"])
def either(request: pytest.FixtureRequest, level: Level, module_machine: Machine, extracting_machine: Machine) -> Iterator[Machine]:
    """Both ways to keep layers."""
    place = module_machine if request.param == "as-probed" else extracting_machine
    usable(level, place.home)
    yield place
    place.close_test()


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """``load(place, layer, layer, ..., config={})``: a malicious image in the store; removed at the end."""
    loaded: list[tuple[Machine, str]] = []

    def make(place: Machine, *layers: bytes, config: dict[str, object] | None = None) -> str:
        name = f"malicious:{len(loaded)}"
        archive = tmp_path / f"malicious{len(loaded)}.tar"
        peers.docker_archive(archive, list(layers), tags=[name], config=config)
        place.engine.images.load(archive)
        loaded.append((place, name))
        return name

    yield make
    for place, name in loaded:
        place.engine.images.remove(name, force=True)


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A directory of the host; the test fails if anything in it changes."""
    tmp_path.chmod(0o755)
    directory = tmp_path / "victim"
    directory.mkdir(mode=0o777)
    directory.chmod(0o777)
    (directory / "keep").write_text("kept")
    (directory / "keep").chmod(0o600)
    (directory / "sub").mkdir()
    (directory / "sub/inner").write_text("kept")

    def census() -> list[tuple[object, ...]]:
        found = []
        for path in sorted([directory, *directory.rglob("*")]):
            status = path.lstat()
            found.append((str(path), status.st_mode, status.st_uid, status.st_nlink, status.st_mtime_ns, path.read_text() if path.is_file() else ""))
        return found

    before = census()
    yield directory
    assert census() == before


@pytest.fixture(scope="module")
def attacker(run_directory: Path) -> str:
    """The directory with the static program of attacker.c, to be mounted."""
    tiers.need("gcc")
    directory = run_directory / "attacker"
    directory.mkdir(mode=0o755, exist_ok=True)
    program = directory / "attacker"
    if not program.exists():
        source = Path(__file__).with_name("attacker.c")
        subprocess.run([str(tiers.program("gcc")), "-static", "-O1", "-Wall", "-o", str(program), str(source)], check=True, capture_output=True)
        program.chmod(0o755)
    return str(directory)


def refused_or_harmless(act: Callable[[], Any]) -> None:
    """Either answer is right: a clear error of ours, or a run that did no harm (the victim is looked at afterwards)."""
    try:
        act()
    except BulleError as error:
        assert "Traceback" not in str(error)


def listing(place: Machine) -> list[tuple[str, tuple[str, ...]]]:
    """The images of a home, to compare before and after."""
    place.settle()
    return sorted((image.id, image.references) for image in place.engine.images.list() if "host" not in "".join(image.references))


# 1-4: archives


HOSTILE_LAYERS: dict[str, Callable[[str], list[LayerTar]]] = {
    "1 symlink, then a file through it": lambda v: [
        LayerTar().symlink("lib/x", v),
        LayerTar().add("lib/x/new", content=b"1").add("lib/x/keep", content=b"2"),
    ],
    "1 the same in one layer": lambda v: [LayerTar().symlink("x", v).add("x/keep", content=b"2").directory("x/new", mode=0o777)],
    "1 etc itself": lambda v: [LayerTar().add("etc/.wh..wh..opq").symlink("etc", v), LayerTar().add("etc/hosts", content=b"1")],
    "1 a relative climb": lambda v: [LayerTar().symlink("x", "../" * 30 + v.lstrip("/")), LayerTar().add("x/new", content=b"1")],
    "2 hard link to the host": lambda v: [LayerTar().hardlink("bin/y", f"{v}/keep"), LayerTar().add("bin/y", content=b"2", mode=0o777)],
    "2 hard link that climbs": lambda v: [LayerTar().hardlink("y", "../" * 30 + f"{v.lstrip('/')}/keep").add("y", content=b"2", mode=0o777)],
    "2 hard link through a symlink": lambda v: [LayerTar().symlink("x", v).hardlink("y", "x/keep").add("y", content=b"3")],
    "3 whiteout through a symlink": lambda v: [LayerTar().symlink("x", v), LayerTar().add("x/.wh.keep").add("x/.wh.sub")],
    "3 opaque through a symlink": lambda v: [LayerTar().symlink("x", v), LayerTar().add("x/.wh..wh..opq")],
    "3 whiteout of the parent": lambda v: [LayerTar().directory("x").add("x/.wh...")],
    "3 whiteout of itself": lambda v: [LayerTar().directory("x").add("x/.wh..")],
    "4 name that climbs": lambda v: [LayerTar().add("../" * 30 + f"{v.lstrip('/')}/new", content=b"1")],
    "4 name that climbs later": lambda v: [LayerTar().add("bin/" + "../" * 30 + f"{v.lstrip('/')}/new", content=b"1")],
    "4 absolute name": lambda v: [LayerTar().add(f"{v}/new", content=b"1").add(f"{v}/keep", content=b"1")],
}


@pytest.mark.parametrize("attack", HOSTILE_LAYERS)
def test_layers_do_not_reach_the_host(
    either: Machine, level: Level, load: Callable[..., str], busybox_layer: bytes, victim: Path, attack: str
) -> None:
    def act() -> None:
        image = load(either, busybox_layer, *(bytes(tar) for tar in HOSTILE_LAYERS[attack](str(victim))))
        script = "for f in /x/run /etc/run /lib/x/run /bin/y /y; do echo run > $f; done; rm -rf /x/keep /etc/keep /lib/x/keep; true"
        either.run(level, "/bin/sh", "-c", script, image=image)

    refused_or_harmless(act)


@pytest.mark.parametrize("attack", ["4 name that climbs", "4 name that climbs later", "2 hard link that climbs"])
def test_climbing_names_are_refused_by_load(module_machine: Machine, tmp_path: Path, busybox_layer: bytes, attack: str) -> None:
    before = listing(module_machine)
    archive = tmp_path / "image.tar"
    peers.docker_archive(archive, [busybox_layer, *(bytes(tar) for tar in HOSTILE_LAYERS[attack]("/victim"))], tags=["climbing:1"])
    done = module_machine.command("load", "-i", archive)
    assert done.returncode == 125 or done.returncode == 1, done
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert listing(module_machine) == before


# 5, 8, 10: what the image has at the system's places


@pytest.mark.parametrize("name", ["dev", "proc", "sys"])
@pytest.mark.parametrize("kind", ["link", "relative link", "file", "fifo"])
def test_system_directories_that_are_none(
    place: Machine, level: Level, load: Callable[..., str], busybox_layer: bytes, victim: Path, name: str, kind: str
) -> None:
    """Attack 5: a mount must not follow what the image has put there."""
    layer = LayerTar().add(f".wh.{name}")
    over = LayerTar()
    if kind == "link":
        over.symlink(name, str(victim))
    elif kind == "relative link":
        over.symlink(name, "tmp")
    else:
        over.add(name, tarfile.REGTYPE if kind == "file" else tarfile.FIFOTYPE)
    image = load(place, busybox_layer, bytes(layer), bytes(over))
    with pytest.raises(InvalidInput, match=f"/{name} is not a directory"):
        place.run(level, "true", image=image)


def test_masks_are_real_although_the_image_brings_its_own_dev_null(
    place: Machine, level: Level, load: Callable[..., str], busybox_layer: bytes, victim: Path
) -> None:
    """Attack 8."""
    layer = LayerTar().symlink("dev/null", f"{victim}/keep").add("dev/zero", content=b"mine")
    layer = layer.symlink("dev/pts", str(victim)).symlink("dev/shm", str(victim))
    image = load(place, busybox_layer, bytes(layer))
    script = "for f in /proc/kcore /proc/keys /proc/timer_list; do [ -e $f ] && { stat -c '%t:%T' $f; wc -c < $f; }; done"
    script += "; ls -A /sys/firmware | wc -l; stat -c %t:%T /dev/null; head -c1 /dev/zero | od -An -tx1"
    done = place.run(level, "sh", "-c", script, image=image)
    *masks, firmware, null, zero = done.stdout.decode().split()
    assert masks and set(masks) == {"1:3", "0"}, done
    assert (firmware, null, zero) == ("0", "1:3", "00")
    # The filter and capabilities do not let it be undone.
    assert place.run(level, "umount", "/proc/kcore", image=image).exit_code != 0


def test_proc_is_procfs_and_closed(place: Machine, level: Level, features: frozenset[Feature]) -> None:
    """Attack 10: what is written to /proc reaches procfs or nothing; the host's settings are read-only."""
    types = place.shell(level, 'stat -f -c %T /proc /proc/self /sys /dev/pts; awk \'$2=="/proc"||$2=="/sys" {print $3}\' /proc/mounts')
    assert types.split() == ["proc", "proc", "sysfs", "devpts", "proc", "sysfs"], types
    files = "/proc/sysrq-trigger /proc/sys/kernel/core_pattern /proc/sys/kernel/hostname /proc/sys/vm/drop_caches /proc/irq/default_smp_affinity"
    script = f"for f in {files}; do echo $f >> $f; done; true"
    done = place.run(level, "sh", "-c", "echo > /dev/null; " + script)
    refusals = re.findall("Read-only file system|Permission denied|nonexistent", done.stderr.decode())
    assert len(refusals) == 5, done.stderr
    with pytest.raises(BulleError):
        place.run(level, "true", volumes=(bulle.VolumeOption("/usr", "/proc/self/attr"),))


@pytest.fixture
def features(place: Machine, level: Level) -> frozenset[Feature]:
    return usable(level, place.home)


def test_control_groups_are_read_only(place: Machine, level: Level, features: frozenset[Feature]) -> None:
    """Attack 27, last part."""
    script = "grep cgroup /proc/mounts; mkdir /sys/fs/cgroup/x /sys/fs/cgroup/memory/x; find /sys/fs/cgroup -name cgroup.procs -maxdepth 3"
    script += " | while read f; do echo 1 > $f; done; mount -o remount,rw /sys/fs/cgroup; true"
    done = place.run(level, "sh", "-c", script, memory_bytes=64 << 20 if Feature.MEMORY_LIMIT in features else 0)
    for line in done.stdout.decode().splitlines():
        assert "ro" in line.split()[3].split(","), line
    assert done.exit_code == 0


# 6, 7: the working directory


def test_working_directory_through_links(place: Machine, level: Level, load: Callable[..., str], busybox_layer: bytes, victim: Path) -> None:
    """Attack 6: made inside, never where the link points on the host."""
    layer = LayerTar().symlink("link", str(victim)).symlink("climb", "../" * 30 + str(victim).lstrip("/")).symlink("loop", "loop")
    image = load(place, busybox_layer, bytes(layer), config={"WorkingDir": "/link/new"})
    refused_or_harmless(lambda: place.run(level, "touch", "made", image=image))
    for path in ("/link", "/climb/new/deep", "/loop/x", "/link/../x", "/tmp/../../../x", f"{victim}/new"):
        refused_or_harmless(lambda path=path: place.run(level, "touch", "made", image=image, working_directory=path))
    with place.running(level, image=image, working_directory="/") as container:
        for path in ("/link/exec", "/climb/exec", f"{victim}/exec"):
            refused_or_harmless(lambda path=path: place.execute(container, "touch", "made", working_directory=path))


MAGIC = [*(f"/proc/self/fd/{number}" for number in range(40)), "/proc/self/cwd/x", "/proc/self/root/tmp", "/proc/1/root", "/proc/self/fd/../fd/7/x"]


def test_working_directory_through_magic_links(place: Machine, level: Level, load: Callable[..., str], busybox_layer: bytes) -> None:
    """Attack 7: a descriptor that is still open must not become the working directory, from the command line, the image or exec."""
    layer = bytes(LayerTar().symlink("way", "/proc/self/fd/7").symlink("ways", "/proc/self"))
    image = load(place, busybox_layer, layer, config={"WorkingDir": "/way"})
    with pytest.raises(BulleError, match="/way"):
        place.run(level, "pwd", image=image)
    with place.running(level, image=image, working_directory="/") as container:
        for path in [*MAGIC, "/way", "/way/x", "/ways/fd/8", "/ways/root/tmp"]:
            # A number that is no open descriptor at that moment is merely a name that cannot be made in /proc.
            with pytest.raises(BulleError):
                place.execute(container, "pwd", working_directory=path)
    for path in ("/proc/self/fd/3", "/proc/self/fd/8", "/proc/self/fd/12", "/ways/cwd"):
        with pytest.raises(BulleError):
            place.run(level, "pwd", image=image, working_directory=path)


def test_no_descriptor_of_the_engine_is_inherited(place: Machine, level: Level, features: frozenset[Feature]) -> None:
    """Attack 7, second part: nothing but 0, 1 and 2; ls itself has 3 open."""
    need_several_ids(place)
    listing = ("ls", "/proc/self/fd")
    wanted = b"0\n1\n2\n3\n"
    variants: list[dict[str, Any]] = [{}, {"user": "33"}, {"security_options": ("no-new-privileges",)}]
    if Feature.MEMORY_LIMIT in features:
        variants.append({"memory_bytes": 64 << 20})
    if Feature.INIT in features:
        variants.append({"init": True})
    if os.geteuid() == 0:
        variants.append({"privileged": True})
    for options in variants:
        assert place.run(level, *listing, **options).stdout == wanted, options
    if Feature.TERMINAL in features:
        assert place.run(level, *listing, terminal=True).stdout.split() == wanted.split()
    with place.running(level, init=Feature.INIT in features) as container:
        assert place.execute(container, *listing).stdout == wanted
        assert place.execute(container, *listing, input=b"x").stdout == wanted
        if Feature.TERMINAL in features:
            assert place.execute(container, *listing, terminal=True).stdout.split() == wanted.split()
        assert place.execute(container, "ls", "/proc/1/fd").stdout.split() == wanted.split()[:3] or Feature.OWN_PROCESSES not in features


# 9: the console


def test_the_console_is_bound_in_a_dev_of_ours(
    place: Machine, level: Level, load: Callable[..., str], busybox_layer: bytes, victim: Path, tmp_path: Path, features: frozenset[Feature]
) -> None:
    """Attack 9: /dev/console as a link of the image, and in a volume over /dev where it is swapped all the time: it covers nothing else."""
    if Feature.TERMINAL not in features:
        return
    image = load(place, busybox_layer, bytes(LayerTar().symlink("dev/console", "/etc/passwd").symlink("dev/pts", "/etc")))
    device = tmp_path / "dev"
    (device / "console").mkdir(parents=True)
    script = "grep -v ' /dev' /proc/self/mountinfo | grep -e devpts -e console; head -c 4 /etc/passwd; echo done"
    with swapping(device / "console", ["/etc/passwd", str(victim / "keep"), "/proc/self/fd/1"]):
        done = place.run(level, "sh", "-c", script, image=image, terminal=True)
        assert done.stdout.replace(b"\r", b"") == b"rootdone\n", done
        for _ in range(6):
            options = {"terminal": True, "volumes": (bulle.VolumeOption(str(device), "/dev"),)}
            refused_or_harmless(lambda options=options: place.run(level, "sh", "-c", script, **options))
    assert os.listdir(device / "console") == []


# 11: races


def exchange(one: str, other: str) -> None:
    """renameat2(2) with RENAME_EXCHANGE."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, one.encode(), -100, other.encode(), 2):
        raise OSError(ctypes.get_errno(), "renameat2")


@contextmanager
def swapping(directory: Path, links: list[str]) -> Iterator[None]:
    """While it lasts, a directory and links to somewhere else take each other's place without a pause."""
    going = True

    def swap() -> None:
        other = directory.with_name("other")
        for number in range(10**9):
            if not going:
                break
            other.symlink_to(links[number % len(links)])
            for _ in range(6):
                exchange(str(directory), str(other))
            other.unlink()

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        going = False
        thread.join()


def test_volume_target_swapped_during_start(place: Machine, level: Level, victim: Path, tmp_path: Path) -> None:
    """Attack 11: the target of a volume lies in another volume, where somebody swaps a directory and a link to the host (or /proc) all the time."""
    shared, source = tmp_path / "shared", tmp_path / "source"
    (shared / "target").mkdir(parents=True)
    source.mkdir()
    (source / "mine").write_text("mine")
    links = [str(victim), "/proc/self/attr", "../" * 30 + str(victim).lstrip("/"), "/proc/self/fd/5"]
    volumes = (bulle.VolumeOption(str(shared), "/shared"), bulle.VolumeOption(str(source), "/shared/target/sub/new"))
    outcomes = set()
    with swapping(shared / "target", links):
        for _ in range(12):
            try:
                outcomes.add(place.run(level, "ls", "/shared/target/sub/new", volumes=volumes).stdout)
            except BulleError as error:
                outcomes.add(type(error).__name__.encode())
    assert outcomes <= {b"mine\n", b"", b"InvalidInput", b"BulleError"}, outcomes
    assert sorted(os.listdir(source)) == ["mine"]


def test_part_of_a_volume_swapped_during_start(place: Machine, level: Level, victim: Path) -> None:
    """Attack 11 on the side of the source: what is mounted is a path in a volume, in which somebody swaps a directory and a link to the host."""
    place.engine.volumes.create("swapped")
    data = place.home / "volumes/swapped/_data"
    (data / "part/sub").mkdir(parents=True)
    (data / "part/sub/mine").write_text("mine")
    links = [str(victim), "/proc/self/root/etc", "../" * 30 + str(victim).lstrip("/"), "/proc/self/cwd"]
    part = bulle.MountOption(kind="volume", source="swapped", target="/part", subpath="part/sub")
    outcomes = set()
    try:
        with swapping(data / "part", links):
            for _ in range(12):
                try:
                    outcomes.add(place.run(level, "sh", "-c", "ls /part; echo > /part/inner; rm /part/inner", mounts=(part,)).stdout)
                except BulleError as error:
                    outcomes.add(type(error).__name__.encode())
    finally:
        place.engine.volumes.remove("swapped")
    assert outcomes <= {b"mine\n", b"NotFound", b"InvalidInput"}, outcomes
    assert b"mine\n" in outcomes


def test_volumes_are_filled_from_the_image_only(place: Machine, level: Level, load: Callable[..., str], busybox_layer: bytes, victim: Path) -> None:
    """Attacks 1 and 11 by way of what a new volume is filled with: links of the image lead to the image's own files, or nowhere."""
    layer = LayerTar().symlink("out", str(victim)).symlink("climb", "../" * 30 + str(victim).lstrip("/")).symlink("magic", "/proc/self/root")
    layer.directory("full").symlink("full/out", str(victim)).symlink("full/keep", f"{victim}/keep").add("full/mine", content=b"mine")
    image = load(place, busybox_layer, bytes(layer), config={"Volumes": {"/out": {}}})
    try:
        for number, target in enumerate(("/out/sub", "/climb", "/magic/etc", "/full/out", "/../full/../out", "/full")):
            mounts = (bulle.MountOption(kind="volume", source=f"volume{number}", target=target, change_owner=True),)
            refused_or_harmless(lambda mounts=mounts: place.run(level, "sh", "-c", "true", image=image, user="1:1", mounts=mounts))
            found = place.home / "volumes" / f"volume{number}" / "_data"
            assert not found.exists() or sorted(os.listdir(found)) == (["keep", "mine", "out"] if target == "/full" else [])
        assert (found / "keep").is_symlink()
        assert (found / "out").is_symlink()
    finally:
        place.engine.volumes.prune(every=True)


def test_tars_of_volumes_do_not_leave_them(place: Machine, level: Level, victim: Path) -> None:
    """Attack 14 for ``volume import``, ``export`` and ``clone``: a directory and a link to the host are swapped meanwhile, in both directions."""
    volumes = place.engine.volumes
    volumes.create("swapped")
    data = place.home / "volumes/swapped/_data"
    (data / "part").mkdir(parents=True)
    (data / "part/mine").write_text("mine")
    tar = bytes(LayerTar().directory("part").add("part/keep", content=b"overwritten").add("part/new", content=b"1").directory("part/sub"))
    imported = 0
    try:
        with swapping(data / "part", [str(victim), "../" * 30 + str(victim).lstrip("/")]):
            for turn in range(8):
                with suppress(BulleError):
                    volumes.import_archive("swapped", io.BytesIO(tar))
                    imported += 1
                out = io.BytesIO()
                with suppress(BulleError):
                    volumes.export("swapped", out)
                    assert b"kept" not in out.getvalue()
                with suppress(BulleError):
                    volumes.clone("swapped", f"clone{turn}")
                    found = place.home / "volumes" / f"clone{turn}" / "_data"
                    assert not any(path.read_bytes() == b"kept" for path in found.rglob("*") if path.is_file() and not path.is_symlink())
    finally:
        volumes.prune(every=True)
    assert imported


def test_volume_targets_through_links(
    place: Machine, level: Level, load: Callable[..., str], busybox_layer: bytes, victim: Path, tmp_path: Path
) -> None:
    """Directories and files, existing and not, through links of the image that lead out of the root."""
    layer = LayerTar().symlink("out", str(victim)).symlink("climb", "../" * 30 + str(victim).lstrip("/")).symlink("tofile", f"{victim}/keep")
    layer.symlink("magic", "/proc/self/root/tmp").symlink("attr", "/proc/self/attr").symlink("dangling", f"{victim}/made")
    image = load(place, busybox_layer, bytes(layer))
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("mine")
    for target in ("/out", "/out/new", "/climb/new", "/out/sub", "/dangling", "/magic/x", "/attr", "/proc/self/root/tmp/x", "/../../x"):
        refused_or_harmless(lambda target=target: place.run(level, "true", image=image, volumes=(bulle.VolumeOption(str(source), target),)))
    for target in ("/tofile", "/out/keep", "/out/new", "/dangling", "/climb/keep", "/attr/x", "/magic/y"):
        volume = (bulle.VolumeOption(f"{source}/file", target),)
        refused_or_harmless(lambda volume=volume: place.run(level, "sh", "-c", f"echo run > {volume[0].container_path}", image=image, volumes=volume))
    refused_or_harmless(lambda: place.run(level, "touch", "/out/x", image=image, tmpfs=(("/out/tmpfs", ""), ("/climb/tmpfs", ""))))
    assert (source / "file").read_text() in ("mine", "run\n")


# 12: the engine's own program


EXE_LAYER = (
    LayerTar()
    .symlink("bin/self", "/proc/self/exe")
    .symlink("bin/far", "self")
    .add("bin/script", content=b"#!/proc/self/exe\n", mode=0o755)
    .add("bin/script2", content=b"#!/bin/self -x\n", mode=0o755)
    .add("bin/script3", content=b"#!/bin/script\n", mode=0o755)
    .symlink("bin/fd", "/proc/self/fd/3")
)


@pytest.mark.parametrize("privileged", [False, True], ids=["plain", "privileged"])
def test_the_engines_program_is_not_executed(place: Machine, level: Level, load: Callable[..., str], busybox_layer: bytes, privileged: bool) -> None:
    """Attack 12: /proc/self/exe as entrypoint, behind links and behind #!, by start and by exec."""
    if privileged and os.geteuid() != 0:
        pytest.skip("only root has privileges to give")
    commands = ["/proc/self/exe", "/bin/self", "far", "/bin/script", "script2", "/bin/script3", "/proc/self/fd/3", "/bin/fd", "/proc/1/exe"]
    image = load(place, busybox_layer, bytes(EXE_LAYER), config={"Entrypoint": ["/proc/self/exe"]})
    with pytest.raises(CommandNotExecutable, match="link of /proc"):
        place.run(level, image=image, privileged=privileged)
    with place.running(level, "1000", image=image, entrypoint=("sleep",), privileged=privileged) as container:
        for command in commands:
            for attempt in (
                lambda command=command: place.run(level, image=image, entrypoint=(command,), privileged=privileged),
                lambda command=command: place.execute(container, command),
            ):
                try:
                    code = attempt().exit_code
                except BulleError as error:
                    code = error.exit_code
                assert code in (126, 127), command


def test_program_swapped_for_the_engines_own(place: Machine, level: Level, tmp_path: Path, attacker: str) -> None:
    """Attack 12 as a race: the command is a link that is exchanged with one to /proc/self/exe between check and execution, and the image's dynamic
    loader is the attacker's: were the interpreter executed, the loader would hold its file.
    """
    tmp_path.chmod(0o755)
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "program").symlink_to("/attacker/attacker")
    (shared / "other").symlink_to("/proc/self/exe")
    going = True

    def swap() -> None:
        while going:
            exchange(str(shared / "program"), str(shared / "other"))

    thread = threading.Thread(target=swap)
    seen = set()
    volumes = (bulle.VolumeOption(str(shared), "/shared"), bulle.VolumeOption(attacker, "/attacker", True))
    loader = (bulle.VolumeOption(f"{attacker}/attacker", dynamic_loader(), True),)
    with place.running(level, volumes=volumes + loader) as container:
        assert place.execute(container, "/attacker/attacker", "exe").stdout == b"exe /attacker/attacker\n"
        thread.start()
        try:
            for _ in range(25):
                try:
                    done = place.execute(container, "/shared/program", "exe")
                    seen.add(done.stdout + done.stderr)
                except BulleError as error:
                    seen.add(str(error).encode())
        finally:
            going = False
            thread.join()
    assert b"exe /attacker/attacker\n" in seen, seen
    # In a user namespace of root's making the interpreter's file belongs to nobody and cannot be written; elsewhere it must not even be executed.
    if level.options or os.geteuid() != 0:
        assert not [text for text in seen if b"exe " in text and b"python" in text], seen


def dynamic_loader() -> str:
    """The loader that this interpreter's file names (PT_INTERP)."""
    with open(os.path.realpath(sys.executable), "rb") as program:
        head = program.read(65536)
    found = re.search(rb"/lib[0-9a-z/_.-]*/ld-[0-9a-zA-Z_.-]+\.so\.[0-9]", head)
    assert found
    return found.group().decode()


def test_nothing_of_the_engine_is_seen_while_it_enters(place: Machine, level: Level, attacker: str) -> None:
    """Attack 12 from inside: while commands enter the container, a program in it looks at all processes for the interpreter, environment, files."""
    volume = (bulle.VolumeOption(attacker, "/attacker", True),)
    # In a user namespace of its own the right to trace reaches no further than the container; elsewhere it is given for the host, so not here.
    # A machine's kernel is its own, but the engine's agent is in it.
    own_users = place.create(level, "true")
    rights = ("SYS_PTRACE",) if own_users.plan.security.user_namespace == "own" and Feature.OWN_KERNEL not in usable(level, place.home) else ()
    own_users.remove()
    with place.running(level, "/attacker/attacker", "watch", "2", volumes=volume, cap_add=rights) as container:
        wait_for(lambda: any(entry.data == b"watching\n" for entry in container.logs()), "the watcher")
        while container.state().status == "running":
            try:
                place.execute(container, "true")
            except BulleError:
                break
        assert container.wait() == 0
        said = {entry.data.decode().strip() for entry in container.logs()}
    own = {line for line in said if line in ("watching", "watched")}
    assert own == {"watching", "watched"}
    if Feature.OWN_PROCESSES not in usable(level, place.home):
        # By definition it sees the host's processes; and root may trace those in the user namespaces of its own making, the containers'.
        return
    leaked = {line for line in said - own if not re.fullmatch(r"fd (/proc.*|pipe:.*|/dev/null)", line)}
    assert not leaked, sorted(leaked)[:10]


def test_host_processes_stay_closed_without_the_right_to_trace(place: Machine, level: Level, attacker: str) -> None:
    """Also where processes are shared: no environment, executable or root of the engine's processes can be opened."""
    marker = f"BULLE_MARK_{time.monotonic_ns()}"
    environment = place.environment | {marker: "secret"}
    script = f"cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n' | grep -c {marker}"
    script += f"; for p in /proc/[0-9]*; do ls $p/root/{place.home.name} $p/cwd/bulle.db; done 2>/dev/null; true"
    done = subprocess.run(
        [*_command(place), "run", "--rm", *level.flags, "busybox", "sh", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stdout) == (0, "0\n"), done


def _command(place: Machine) -> list[str]:
    from bulle_testing import places

    return places.command_line()


# 13: users


BAD_PASSWD = b"root:x:0:0:root:/root:/bin/sh\nwrap:x:4294967296:0::/:\nminus:x:-1:0::/:\n"
BAD_PASSWD += b"nobody:x:4294967295:4294967295::/:\nodd:x:0x10:0::/:\ngroup:x:7:4294967296::/:\n"


def test_users_never_wrap_around_to_root(place: Machine, level: Level, load: Callable[..., str], busybox_layer: bytes) -> None:
    """Attack 13: by flag, by the image's USER, by its passwd and group files."""
    groups = b"root:x:0:\nwrap:x:4294967296:wrap\nhalf:x:4294967297:root\n"
    passwd = bytes(LayerTar().add("etc/passwd", content=BAD_PASSWD).add("etc/group", content=groups))
    for user in ("4294967296", "4294967295", "18446744073709551616", "0:4294967296", "wrap", "minus", "nobody", "odd", "group", "0:wrap"):
        image = load(place, busybox_layer, passwd, config={"User": user})
        with pytest.raises(BulleError):
            place.run(level, "id", image=image)
        if user not in ("nobody",):  # a user of that image
            with pytest.raises(BulleError):
                place.run(level, "id", image="busybox", user=user)
    with place.running(level) as container:
        for user in ("4294967296", "0:4294967296", "4294967295"):
            with pytest.raises(BulleError):
                place.execute(container, "id", user=user)


@pytest.mark.parametrize("kind", ["fifo", "endless", "magic", "host", "directory", "device"])
def test_strange_files_of_users(place: Machine, level: Level, load: Callable[..., str], busybox_layer: bytes, tmp_path: Path, kind: str) -> None:
    """An image's /etc/passwd that blocks, never ends or leads to the engine's descriptors neither hangs a start nor names a user."""
    need_several_ids(place)
    secret = tmp_path / "passwd"
    secret.write_text("secret:x:77:77::/:\n")
    layer = LayerTar().add("etc/.wh.passwd")
    over = LayerTar()
    for name in ("etc/passwd", "etc/group"):
        if kind == "fifo":
            over.add(name, tarfile.FIFOTYPE)
        elif kind == "endless":
            over.symlink(name, "/dev/zero")
        elif kind == "magic":
            over.symlink(name, "/proc/self/fd/5")
        elif kind == "host":
            over.symlink(name, str(secret))
        elif kind == "directory":
            over.directory(name)
        else:
            over.add(name, tarfile.CHRTYPE, devmajor=1, devminor=9)
    image = load(place, busybox_layer, bytes(layer), bytes(over))
    own_ids = ("grep", "^Uid", "/proc/self/status")  # id(1) would itself wait for such a file
    assert place.run(level, *own_ids, image=image).stdout.split()[1:] == [b"0"] * 4
    assert place.run(level, *own_ids, image=image, user="77").stdout.split()[1:] == [b"77"] * 4
    with pytest.raises(InvalidInput):
        place.run(level, "id", image=image, user="secret")


# 18 and archives end to end (19, 20 have their own suites below the engine)


def test_image_without_layers(place: Machine, level: Level, load: Callable[..., str]) -> None:
    """Attack 18."""
    image = load(place)
    with pytest.raises(InvalidInput, match="no layers"):
        place.run(level, "/bin/true", image=image)
    empty = load(place, bytes(LayerTar()))
    with pytest.raises(BulleError) as caught:
        place.run(level, "/bin/true", image=empty)
    assert caught.value.exit_code == 127


def test_bombs_through_load(module_machine: Machine, tmp_path: Path) -> None:
    """Attack 19 end to end: a compressed layer that would fill the disk is refused, with the home as before."""
    import gzip
    import hashlib

    part = gzip.compress(bytes(64 << 20), 9)  # members one after the other are one stream
    head = LayerTar().add("bomb", content=b"")
    size = 8 << 30
    member = tarfile.TarInfo("bomb")
    member.size = size
    blob = gzip.compress(member.tobuf()) + part * (size // (64 << 20)) + gzip.compress(bytes(1024))
    assert len(bytes(head)) < len(blob) < 10 << 20
    layout = tmp_path / "layout"
    (layout / "blobs/sha256").mkdir(parents=True)

    def put(content: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        (layout / "blobs/sha256" / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]}}
    oci = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2, "mediaType": f"{oci}.manifest.v1+json", "config": put(json.dumps(config).encode(), f"{oci}.config.v1+json"),
        "layers": [put(blob, f"{oci}.layer.v1.tar+gzip")],
    }  # fmt: skip
    described = put(json.dumps(manifest).encode(), f"{oci}.manifest.v1+json")
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    before = disk_use(module_machine.home)
    done = module_machine.command("pull", f"oci:{layout}", timeout_s=120)
    assert done.returncode == 1 or done.returncode == 125, done
    assert "times" in done.stderr or "larg" in done.stderr or "ratio" in done.stderr, done.stderr
    assert abs(disk_use(module_machine.home) - before) < 1 << 20, "nothing is left"


def disk_use(directory: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*") if path.suffix not in (".db-wal", ".db-shm"))


@pytest.mark.parametrize("damage", ["diff_id", "truncated", "garbage", "no config"])
def test_corrupt_archives_through_load(module_machine: Machine, tmp_path: Path, busybox_layer: bytes, damage: str) -> None:
    """Attack 20 end to end: one sentence, an exit code, and the store as before."""
    archive = tmp_path / "image.tar"
    layer = bytes(LayerTar().add("unique", content=damage.encode()))
    peers.docker_archive(archive, [busybox_layer, layer], tags=["damaged:1"])
    content = archive.read_bytes()
    if damage == "diff_id":
        content = content.replace(b"diff_id".ljust(8, b"\0"), b"diff_iD".ljust(8, b"\0"))
        assert content != archive.read_bytes()
    elif damage == "truncated":
        content = content[: len(content) * 2 // 3]
    elif damage == "garbage":
        content = os.urandom(100_000)
    else:
        content = content.replace(b'"Config"', b'"Konfig"')
    archive.write_bytes(content)
    images = listing(module_machine)
    before = disk_use(module_machine.home)
    done = module_machine.command("load", "-i", archive)
    assert done.returncode in (1, 125), done
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr, done.stderr
    assert listing(module_machine) == images
    assert abs(disk_use(module_machine.home) - before) < 1 << 20
    with pytest.raises(CorruptImage):
        module_machine.engine.images.load(archive)
    module_machine.settle()


# 26: system calls


SYSCALL_SCRIPT = """
import ctypes, json, mmap, os, sys
calls = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
found = {}
for name, number, arguments in calls:
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(a & (1 << 64) - 1) for a in arguments))
    found[name] = -ctypes.get_errno() if result == -1 else result
if len(sys.argv) > 2:
    code = bytes.fromhex("53 4989f8 418b00 418b5804 418b4808 418b500c 418b7010 418b7814 cd80 4898 5b c3")
    memory = mmap.mmap(-1, 4096, prot=7)
    memory.write(code)
    gate = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
    for name, number, arguments in json.loads(sys.argv[2]):
        block = (ctypes.c_uint32 * 6)(number, *(a & (1 << 32) - 1 for a in (arguments + [0] * 5)[:5]))
        found["32 " + name] = gate(ctypes.addressof(block))
print(json.dumps(found))
"""

DANGEROUS: list[tuple[str, list[int]]] = [
    ("socket", [38, 5, 0]),  # AF_ALG
    ("socket", [40, 1, 0]),  # AF_VSOCK
    ("keyctl", [0, -3, 0]),
    ("add_key", [0, 0, 0, 0, -3]),
    ("request_key", [0, 0, 0, 0]),
    ("bpf", [0, 0, 0]),
    ("userfaultfd", [0]),
    ("io_uring_setup", [1, 0]),
    ("io_uring_enter", [-1, 0, 0, 0, 0]),
    ("io_uring_register", [-1, 0, 0, 0]),
    ("perf_event_open", [0, 0, -1, -1, 0]),
    ("unshare", [0x10000000]),
    ("setns", [-1, 0]),
    ("mount", [0, 0, 0, 0, 0]),
    ("umount2", [0, 0]),
    ("pivot_root", [0, 0]),
    ("open_by_handle_at", [-1, 0, 0]),
    ("kexec_load", [0, 0, 0, 0]),
    ("init_module", [0, 0, 0]),
    ("finit_module", [-1, 0, 0]),
    ("delete_module", [0, 0]),
    ("reboot", [0, 0, 0, 0]),
    ("swapon", [0, 0]),
    ("open_tree", [-1, 0, 0]),
    ("move_mount", [-1, 0, -1, 0, 0]),
    ("fsopen", [0, 0]),
    ("mount_setattr", [-1, 0, 0, 0, 0]),
    ("syslog", [3, 0, 0]),
    ("personality", [0x0200000]),
]
EPERM, ENOSYS = 1, 38


def test_dangerous_calls_are_refused_in_a_container(place: Machine, level: Level) -> None:
    """Attack 26 end to end; natively, and on x86_64 through the gate of 32-bit programs. By start and by exec."""
    need_several_ids(place)
    if not Path("/usr/bin/python3").exists():
        tiers.give_up("programs", "not installed: python3")
    if not any(image.references and "host" in image.references[0] for image in place.engine.images.list()):
        place.engine.images.pull("host")
    native, compat = numbers(platform.machine()), numbers("i386")
    arguments = [json.dumps([(f"{name} {values}", native[name], values) for name, values in DANGEROUS if name in native])]
    if platform.machine() == "x86_64":
        arguments.append(json.dumps([(f"{name} {values}", compat[name], values) for name, values in DANGEROUS if name in compat]))
    command = ("/usr/bin/python3", "-I", "-S", "-c", SYSCALL_SCRIPT, *arguments)
    with place.running(level, image="host") as container:
        as_user = place.run(level, *command, image="host", user="1000")
        for done in (place.run(level, *command, image="host"), as_user, place.execute(container, *command)):
            assert done.exit_code == 0, done.stderr
            answers = json.loads(done.stdout)
            assert len(answers) >= len(DANGEROUS)
            allowed = {name: answer for name, answer in answers.items() if answer not in (-EPERM, -ENOSYS)}
            assert not allowed, allowed
    # Without the filter the same calls answer otherwise: it is the filter that was seen.
    done = place.run(level, *command, image="host", security_options=("seccomp=unconfined",))
    answers = json.loads(done.stdout)
    assert len({name for name, answer in answers.items() if answer not in (-EPERM, -ENOSYS)}) > 10


def test_the_hosts_keyring_is_not_visible(place: Machine, level: Level) -> None:
    """Attack 26, keyctl where it is allowed: a key in the caller's session keyring is not found from inside."""
    if not Path("/usr/bin/python3").exists():
        tiers.give_up("programs", "not installed: python3")
    if not any(image.references and "host" in image.references[0] for image in place.engine.images.list()):
        place.engine.images.pull("host")
    table = numbers(platform.machine())
    join, search = table["keyctl"], 10
    script = (
        "import ctypes; c = ctypes.CDLL(None, use_errno=True)\n"
        f"print(c.syscall(ctypes.c_long({join}), {search}, ctypes.c_long(-3), b'user', b'bulle-secret', 0), ctypes.get_errno())"
    )
    libc = ctypes.CDLL(None, use_errno=True)

    def own_keyring() -> None:
        libc.syscall(ctypes.c_long(join), 1, b"bulle-test")
        if libc.syscall(ctypes.c_long(table["add_key"]), b"user", b"bulle-secret", b"secret", ctypes.c_size_t(6), ctypes.c_long(-3)) < 0:
            os._exit(99)

    here = subprocess.run(["/usr/bin/python3", "-c", script], preexec_fn=own_keyring, capture_output=True, text=True)
    if here.returncode == 99 or here.stdout.startswith("-1"):
        pytest.skip("this machine has no keyrings")
    command = place.start_command(
        "run", "--rm", *level.flags, "--security-opt", "seccomp=unconfined", "host", "/usr/bin/python3", "-c", script,
        env=place.environment | {"BULLE_NO_SPAWNER": "1"}, preexec_fn=own_keyring, stdout=subprocess.PIPE,
    )  # fmt: skip
    output, _ = command.communicate(timeout=240)
    assert output.startswith(b"-1 "), output


# The host through the back door


def test_the_root_has_no_way_up(place: Machine, level: Level, attacker: str, tmp_path: Path, features: frozenset[Feature]) -> None:
    """Neither by /proc/1/root, nor by climbing, nor by a second chroot is a file of the host reached."""
    marker = tmp_path / "marker"
    marker.write_text("host")
    marker.chmod(0o644)
    process = "1" if Feature.OWN_PROCESSES in features else "self"
    ways = f"/ /proc/{process}/root /proc/self/root /proc/self/cwd /proc/{process}/cwd"
    script = f"for p in {ways}; do cat $p/{marker} $p/../../../..{marker}; done 2>&1 | grep -v 'can.t open'; ls /proc/1/root/{tmp_path.parent}; true"
    done = place.run(level, "sh", "-c", script)
    assert b"host" not in done.stdout and b"marker" not in done.stdout, done
    volume = (bulle.VolumeOption(attacker, "/attacker", True),)
    names = place.run(level, "/attacker/attacker", "escape", volumes=volume)
    assert names.exit_code == 0, names
    assert "attacker" in names.stdout.decode().split(), "it only ever sees its own root"


def test_engine_directory_is_not_reachable_from_a_container(place: Machine, level: Level) -> None:
    """The container's own writable layer, log and state are not in any of its mounts' names."""
    text = place.shell(level, "cat /proc/self/mountinfo; cat /proc/mounts")
    own = [line for line in text.splitlines() if " - overlay " in line]
    assert own, text
    assert "/bulle.db" not in text
    done = place.run(level, "sh", "-c", f"ls {place.home}")
    assert done.exit_code != 0


def devices_of_the_host() -> list[tuple[str, int, int]]:
    """Devices that root of this machine can open: kind, major and minor; the disk under / is the one that matters."""
    found = []
    for path in ("/dev/fuse", "/dev/loop-control", "/dev/net/tun", "/dev/vda", "/dev/sda", "/dev/nvme0n1"):
        with suppress(OSError):
            status = os.stat(path)
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
            found.append(("c" if stat.S_ISCHR(status.st_mode) else "b", os.major(status.st_rdev), os.minor(status.st_rdev)))
    return found


OPENING = "for f in /node*; do (: < $f) 2>/dev/null && echo opened $f; done; [ -e /node0 ] && echo there"


def test_devices_of_the_host_cannot_be_made(place: Machine, level: Level) -> None:
    """A device node made inside opens nothing."""
    devices = devices_of_the_host()
    if os.geteuid() != 0 or not devices:
        pytest.skip("no device here that this user could open")
    making = "; ".join(f"mknod /node{number} {kind} {major} {minor}" for number, (kind, major, minor) in enumerate(devices))
    done = place.run(level, "sh", "-c", f"{making}; {OPENING}; true")
    assert b"opened" not in done.stdout, done


def test_device_nodes_of_an_image_are_closed(place: Machine, level: Level, load: Callable[..., str], busybox_layer: bytes) -> None:
    """Nor does one that the image brings."""
    devices = devices_of_the_host()
    if os.geteuid() != 0 or not devices:
        pytest.skip("no device here that this user could open")
    layer = LayerTar()
    for number, (kind, major, minor) in enumerate(devices):
        layer.add(f"node{number}", tarfile.CHRTYPE if kind == "c" else tarfile.BLKTYPE, devmajor=major, devminor=minor, mode=0o666)
    image = load(place, busybox_layer, bytes(layer))
    assert place.run(level, "sh", "-c", OPENING, image=image).stdout == b"there\n"
    if Feature.OWN_KERNEL in usable(level, place.home):
        return  # who may mount opens the machine's own devices, which are no others than its layers and its disk
    # Who may mount takes the flag away that keeps them closed.
    script = f"mount -o remount,dev / || mount -o remount,bind,dev /; {OPENING}"
    done = place.run(level, "sh", "-c", script, image=image, cap_add=("SYS_ADMIN",), security_options=("seccomp=unconfined",))
    assert done.stdout == b"there\n", done


def test_device_nodes_in_a_volume_are_closed(place: Machine, level: Level, tmp_path: Path) -> None:
    devices = devices_of_the_host()
    if os.geteuid() != 0 or not devices:
        pytest.skip("no device here that this user could open")
    for number, (kind, major, minor) in enumerate(devices):
        os.mknod(tmp_path / f"node{number}", 0o666 | (stat.S_IFCHR if kind == "c" else stat.S_IFBLK), os.makedev(major, minor))
    script = OPENING.replace("/node", "/v/node")
    assert place.run(level, "sh", "-c", script, volumes=(bulle.VolumeOption(str(tmp_path), "/v"),)).stdout == b"there\n"


def test_terminal_output_of_a_container_comes_from_its_own_terminals(place: Machine, level: Level, features: frozenset[Feature]) -> None:
    """Attack 9's neighbour: an exec's terminal is not taken from what the container put at /dev/pts/ptmx."""
    if Feature.TERMINAL not in features:
        pytest.skip("no terminals here")
    with place.running(level, cap_add=("SYS_ADMIN",), security_options=("seccomp=unconfined",)) as container:
        script = "umount /dev/pts; rm -rf /dev/pts; mkdir /dev/pts; mkfifo /dev/pts/ptmx; ln -sf /proc/self/fd/1 /dev/console"
        place.execute(container, "sh", "-c", script)
        try:
            attachment = container.execute(bulle.ExecOptions(command=("true",), terminal=True))
        except BulleError:
            return
        assert attachment is not None
        follow(attachment)
