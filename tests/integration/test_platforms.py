"""Images for several platforms: chosen, kept under one name, run with a word of warning, built under emulation, pushed and pulled back."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from bulle.linux import binary_formats, emulators, mount, namespaces
from bulle_testing import foreign, peers
from bulle_testing.peers import Registry

pytestmark = pytest.mark.slow

NATIVE = "linux/" + {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
WARNING = "WARNING: the image is for linux/arm64, this machine is"
RUN = ("run", "--rm", "--network", "none")


@pytest.fixture
def images(bulle: Any, arm64_image: Path, busybox_image: Path) -> None:
    """``arm64`` and ``busybox``, each for one processor."""
    for archive in (arm64_image, busybox_image):
        bulle("load", "-q", "-i", archive, check=True)


@pytest.fixture
def several(bulle: Any, images: None, riscv64_image: Path, armhf_image: Path) -> str:
    """The index ``several`` of images for four processors."""
    for archive in (riscv64_image, armhf_image):
        bulle("load", "-q", "-i", archive, check=True)
    bulle("manifest", "create", "several", "busybox", "arm64", "riscv64", "armhf", check=True)
    return "several"


def publish(bulle: Any, registry: Registry, name: str, *images: str) -> str:
    """An index of images in the registry alone: nothing of it is here afterwards."""
    address = f"{registry.address}/{name}"
    bulle("manifest", "create", address, *images, check=True)
    bulle("manifest", "push", "--purge", address, check=True)
    for image in bulle("images", "-q", check=True).stdout.split():
        bulle("rmi", "-f", image, check=True)
    return address


@pytest.mark.parametrize("architecture", foreign.PLATFORMS)
def test_the_programs_of_each_processor_run(bulle: Any, request: pytest.FixtureRequest, architecture: str) -> None:
    bulle("load", "-q", "-i", request.getfixturevalue(f"{architecture}_image"), check=True)
    platform, machine = foreign.PLATFORMS[architecture][:2]
    done = bulle(*RUN, "--platform", platform, architecture, "uname", "-m", check=True)
    assert (done.stdout, done.stderr) == (f"{machine}\n", "")


def test_whoever_asks_for_no_platform_is_told(bulle: Any, images: None) -> None:
    done = bulle(*RUN, "arm64", "uname", "-m", check=True)
    assert done.stdout == "aarch64\n"
    assert done.stderr.startswith(WARNING)
    assert bulle(*RUN, "busybox", "true", check=True).stderr == ""
    assert json.loads(bulle("run", "--dry-run", "arm64", "true", check=True).stdout)["platform"] == "linux/arm64"
    assert json.loads(bulle("run", "--dry-run", "busybox", "true", check=True).stdout)["platform"] == ""
    created = bulle("create", "--name", "later", "arm64", "uname", "-m", check=True)
    assert created.stderr.startswith(WARNING)
    assert bulle("start", "-a", "later", check=True).stdout == "aarch64\n"
    bulle("rm", "later", check=True)


def test_an_emulator_that_is_missing_is_named(bulle: Any, images: None) -> None:
    """The container can be made; what it needs can be installed later."""
    if any(entry.name == "qemu-aarch64" for entry in binary_formats.entries()):
        pytest.skip("this machine's own table has the emulator")
    without = {"PATH": "/nonexistent"}
    done = bulle("run", "--name", "box", "--platform", "linux/arm64", "arm64", "uname", "-m", environment=without)
    assert done.returncode == 125
    assert "the emulator qemu-aarch64-static is not installed; install it: apt-get install qemu-user-static" in done.stderr
    assert "qemu-aarch64-static is not installed" in bulle("why", "box", check=True).stdout
    assert "no emulation programs of no other processor can be run" in " ".join(bulle("doctor", environment=without).stdout.split())
    assert "yes emulation containers can run programs for arm, arm64, " in " ".join(bulle("doctor").stdout.split())
    assert bulle("start", "-a", "box", check=True).stdout == "aarch64\n"
    bulle("rm", "box", check=True)


def test_an_emulator_that_no_other_root_can_load_is_refused(bulle: Any, images: None, tmp_path: Path) -> None:
    """One that needs libraries would need them in every image."""
    (tmp_path / "qemu-aarch64").symlink_to(os.path.realpath(sys.executable))
    if any(entry.name == "qemu-aarch64" for entry in binary_formats.entries()):
        pytest.skip("this machine's own table has the emulator")
    done = bulle(*RUN, "--platform", "linux/arm64", "arm64", "true", environment={"PATH": str(tmp_path)})
    assert done.returncode == 125
    assert f"{tmp_path}/qemu-aarch64 needs libraries, which no other root has" in done.stderr


def test_a_library_that_is_missing_is_named(bulle: Any, images: None) -> None:
    done = bulle("run", "--name", "box", "--platform", "linux/arm64", "arm64", "sh", "-c", "rm /lib/ld-linux-aarch64.so.1; exec pigz")
    assert done.returncode == 255
    words = "could not run its program, made for linux/arm64, because a library is missing: /lib/ld-linux-aarch64.so.1 (No such file or directory)"
    assert words in bulle("why", "box", check=True).stdout
    bulle("rm", "box", check=True)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EPERM, "gives a user namespace no table of binary formats of its own (Operation not permitted), as Linux does since 6.7"),
        (errno.ENODEV, "this kernel has no binfmt_misc; load it: modprobe binfmt_misc"),
    ],
)
def test_what_an_older_kernel_lacks_is_said(bulle: Any, images: None, home: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    import bulle as library

    def refuse() -> int:
        raise OSError(number, os.strerror(number))

    if any(entry.name == "qemu-aarch64" for entry in binary_formats.entries()):
        pytest.skip("this machine's own table has the emulator")
    monkeypatch.setattr(binary_formats, "new_table", refuse)
    monkeypatch.setenv("BULLE_NO_SPAWNER", "1")
    with pytest.raises(library.BulleError) as raised:
        library.run("arm64", ["true"], home=home, platform="linux/arm64", network="none")
    assert words in str(raised.value)


def test_a_platform_without_an_image_or_emulator(bulle: Any, images: None) -> None:
    done = bulle(*RUN, "--pull", "never", "--platform", "linux/riscv64", "arm64", "true")
    assert done.returncode == 125
    assert "image arm64 is not here for linux/riscv64: it is for linux/arm64; pull it with --platform" in done.stderr
    assert "is not a platform" in bulle(*RUN, "--platform", "linux/ar m64", "arm64", "true").stderr


def test_platforms_stay_beside_each_other(bulle: Any, registry: Registry, images: None) -> None:
    """As in Docker's store of containerd: one name, what each platform has pulled; by itself it means this machine's."""
    name = publish(bulle, registry, "beside:1", "busybox", "arm64")
    assert bulle("pull", "-q", "--platform", "linux/arm64", name, check=True).stdout == f"{name}\n"
    done = bulle(*RUN, "--pull", "never", name, "uname", "-m", check=True)
    assert done.stdout == "aarch64\n" and done.stderr.startswith(WARNING)
    bulle("pull", "-q", name, check=True)
    assert bulle(*RUN, "--pull", "never", name, "uname", "-m", check=True).stdout == f"{os.uname().machine}\n"
    assert bulle(*RUN, "--pull", "never", "--platform", "linux/arm64", name, "uname", "-m", check=True).stdout == "aarch64\n"
    tree = [line.split() for line in bulle("images", "--tree", check=True).stdout.splitlines()]
    assert {line[2] for line in tree if line[0] == name} == {NATIVE, "linux/arm64"}
    form = "{{.Os}}/{{.Architecture}}"
    assert bulle("image", "inspect", "-f", form, name, check=True).stdout.strip() == NATIVE
    assert bulle("image", "inspect", "-f", form, "--platform", "linux/arm64", name, check=True).stdout.strip() == "linux/arm64"
    assert "it is for" in bulle("image", "inspect", "--platform", "linux/s390x", name).stderr
    assert "Total reclaimed space: 0B" in bulle("image", "prune", "-f", check=True).stdout, "none of them is without a name"
    bulle("pull", "-q", "--platform", "linux/arm64", name, check=True)
    assert bulle("images", "-q", check=True).stdout.count("\n") == 2
    removed = bulle("rmi", name, check=True).stdout
    assert removed.count("Deleted: sha256:") == 4, "both images and their layers"
    assert bulle("images", "-q", check=True).stdout == ""


def test_what_is_used_of_several_stays(bulle: Any, registry: Registry, images: None) -> None:
    name = publish(bulle, registry, "beside:4", "busybox", "arm64")
    for platform in (NATIVE, "linux/arm64"):
        bulle("pull", "-q", "--platform", platform, name, check=True)
    bulle("create", "--name", "box", "--platform", "linux/arm64", name, "uname", "-m", check=True)
    assert "uses it" in bulle("rmi", name).stderr
    bulle("image", "prune", "-af", check=True)
    assert bulle("images", "--format", "{{.Repository}}:{{.Tag}}", check=True).stdout == f"{name}\n"
    assert bulle("start", "-a", "box", check=True).stdout == "aarch64\n"
    assert bulle("image", "inspect", "-f", "{{.Architecture}}", name, check=True).stdout == "arm64\n"
    bulle("rm", "box", check=True)


def test_one_of_several_goes_and_the_name_stays(bulle: Any, registry: Registry, images: None) -> None:
    name = publish(bulle, registry, "beside:2", "busybox", "arm64")
    for platform in (NATIVE, "linux/arm64"):
        bulle("pull", "-q", "--platform", platform, name, check=True)
    own = bulle("image", "inspect", "-f", "{{.Id}}", name, check=True).stdout.strip()
    bulle("rmi", own, check=True)
    assert bulle(*RUN, "--pull", "never", name, "uname", "-m", check=True).stdout == "aarch64\n"
    bulle("tag", name, "other:1", check=True)
    bulle("pull", "-q", "--platform", NATIVE, name, check=True)
    bulle("tag", "other:1", name, check=True)
    assert bulle(*RUN, "--pull", "never", name, "uname", "-m", check=True).stdout == "aarch64\n", "a name that is given means one thing"


def test_the_image_for_a_platform_goes_out(bulle: Any, registry: Registry, images: None, tmp_path: Path) -> None:
    name = publish(bulle, registry, "beside:3", "busybox", "arm64")
    for platform in (NATIVE, "linux/arm64"):
        bulle("pull", "-q", "--platform", platform, name, check=True)
    bulle("save", "--platform", "linux/arm64", "-o", tmp_path / "arm64.tar", name, check=True)
    target = f"{registry.address}/alone:1"
    bulle("push", "-q", "--platform", "linux/arm64", name, target, check=True)
    bulle("rmi", name, check=True)
    for bring in (("load", "-q", "-i", tmp_path / "arm64.tar"), ("pull", "-q", "--platform", "linux/arm64", target)):
        bulle(*bring, check=True)
    for there in (name, target):
        assert bulle("image", "inspect", "-f", "{{.Architecture}}", there, check=True).stdout == "arm64\n"


def test_an_index_of_this_store(bulle: Any, several: str) -> None:
    for platform, machine, _suite, _emulator in foreign.PLATFORMS.values():
        assert bulle(*RUN, "--platform", platform, several, "uname", "-m", check=True).stdout == f"{machine}\n"
    assert bulle(*RUN, several, "uname", "-m", check=True).stdout == f"{os.uname().machine}\n"
    bulle("manifest", "create", "others", "riscv64", "arm64", check=True)
    done = bulle(*RUN, "others", "uname", "-m", check=True)
    assert done.stdout == "riscv64\n" and "is for linux/riscv64" in done.stderr


def test_a_build_for_several_platforms(bulle: Any, registry: Registry, several: str, tmp_path: Path) -> None:
    """RUN under emulation, a stage on this machine's own processor, BuildKit's arguments; pushed and pulled back for each."""
    (tmp_path / "Containerfile").write_text(
        f"FROM --platform=$BUILDPLATFORM {several} AS tool\n"
        "ARG TARGETPLATFORM TARGETARCH TARGETVARIANT BUILDPLATFORM\n"
        'RUN echo "$TARGETPLATFORM $TARGETARCH$TARGETVARIANT $BUILDPLATFORM $(uname -m)" > /words\n'
        f"FROM {several}\nARG TARGETARCH\nCOPY --from=tool /words /words\n"
        "RUN uname -m > /machine && [ -n $TARGETARCH ] && su -s /bin/sh www-data -c 'id -u' >> /machine\n"
        'CMD ["cat", "/words", "/machine"]\n'
    )
    name = f"{registry.address}/built/under-emulation:1"
    platforms = {NATIVE: os.uname().machine} | {one[0]: one[1] for one in foreign.PLATFORMS.values()}
    ids = bulle("build", "-q", "--push", "-t", name, "--platform", ",".join(platforms), tmp_path, check=True, timeout_s=300).stdout.split()
    assert len(set(ids)) == len(platforms)
    again = bulle("build", "-q", "--platform", ",".join(platforms), tmp_path, check=True, timeout_s=300).stdout.split()
    assert again == ids, "all of it is in the cache"
    bulle("manifest", "rm", name, check=True)
    bulle("image", "prune", "-af", check=True)
    for platform, machine in platforms.items():
        words = f"{platform} {platform.removeprefix('linux/').replace('/', '')} {NATIVE} {os.uname().machine}\n{machine}\n33\n"
        assert bulle(*RUN, "-q", "--platform", platform, name, check=True).stdout == words
    names = [line.split()[0] for line in bulle("images", check=True).stdout.splitlines()]
    assert names.count(name.rpartition(":")[0]) == len(platforms), "each of them has the name"


def test_what_is_built_has_its_name_alone(bulle: Any, registry: Registry, images: None, tmp_path: Path) -> None:
    (tmp_path / "Containerfile").write_text("FROM arm64\nENV A=1\n")
    name = f"{registry.address}/built/alone:1"
    for native in ("busybox", ""):
        built = bulle("build", "-q", "--platform", "linux/arm64", "-t", name, tmp_path, check=True).stdout.strip()
        assert bulle("image", "inspect", "-f", "{{.Id}}", name, check=True).stdout.strip() == built
        if native:
            bulle("push", native, name, check=True)
            bulle("pull", "-q", "--platform", NATIVE, name, check=True)
            assert bulle("image", "inspect", "-f", "{{.Id}}", name, check=True).stdout.strip() != built
            assert bulle("images", name, check=True).stdout.count("built/alone") == 2


def test_a_step_that_fails_under_emulation(bulle: Any, images: None, tmp_path: Path) -> None:
    (tmp_path / "Containerfile").write_text("FROM arm64\nRUN uname -m && exit 9\n")
    done = bulle("build", "--progress", "plain", "--platform", "linux/arm64", tmp_path)
    assert done.returncode == 1
    assert "RUN ended with exit code 9" in done.stderr and "aarch64" in done.stderr
    (tmp_path / "Containerfile").write_text("FROM arm64\nRUN uname -m > /machine\n")
    image = bulle("build", "-q", tmp_path, check=True).stdout.strip()
    assert bulle("image", "inspect", "-f", "{{.Architecture}}", image, check=True).stdout == "arm64\n", "a base that is here for one platform only"


def test_a_committed_container_keeps_its_platform(bulle: Any, images: None) -> None:
    bulle("create", "--name", "box", "--platform", "linux/arm64", "arm64", "true", check=True)
    bulle("rmi", "-f", "arm64", check=True)
    bulle("commit", "box", "again:1", check=True)
    assert bulle("image", "inspect", "-f", "{{.Architecture}}", "again:1", check=True).stdout == "arm64\n"
    bulle("rm", "box", check=True)


@pytest.mark.root
@pytest.mark.debian_mirror
def test_a_debian_of_another_processor(bulle: Any) -> None:
    """Its packages are set up by their own programs, which the machine's table knows nothing of."""
    foreign.need_emulator("arm64")
    before = sorted(entry.name for entry in binary_formats.entries())
    assert bulle("pull", "-q", "--platform", "linux/arm64", "deb:bookworm", check=True, timeout_s=900).stdout == "docker.io/library/deb:bookworm\n"
    assert sorted(entry.name for entry in binary_formats.entries()) == before
    script = "uname -m; dpkg --print-architecture; dpkg --audit; ls /usr/bin/qemu* 2>/dev/null; perl -e 'print 6*7'"
    assert bulle(*RUN, "--platform", "linux/arm64", "deb:bookworm", "sh", "-c", script, check=True).stdout == "aarch64\narm64\n42"


def test_the_machines_table_is_understood(tmp_path: Path) -> None:
    """As the kernel prints it, of entries that the kernel took: in a namespace of its own, where it stands for the machine's."""
    foreign.need_emulator("arm64")
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, json.dumps(_looked_at()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        found = json.load(answer)
    os.waitpid(pid, 0)
    # Without F, and switched off, an entry serves no other root.
    assert found == {"arm64": True, "riscv64": False, "s390x": False}


def _looked_at() -> dict[str, bool]:
    user, group = os.geteuid(), os.getegid()
    namespaces.unshare(namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWNS)
    namespaces.write_file("/proc/self/setgroups", "deny")
    namespaces.write_file("/proc/self/uid_map", f"0 {user} 1")
    namespaces.write_file("/proc/self/gid_map", f"0 {group} 1")
    mount.mount(None, "/", flags=mount.MS_REC | mount.MS_SLAVE)
    table = binary_formats.new_table()
    for architecture, flags in (("arm64", "POF"), ("riscv64", "P"), ("s390x", "F")):
        entry = emulators.find(f"linux/{architecture}").entry
        binary_formats.register(table, binary_formats.Entry(entry.name, entry.magic, entry.mask, entry.interpreter, flags))
    mount.attach_mount(table, binary_formats.MACHINE_TABLE)
    Path(binary_formats.MACHINE_TABLE, "qemu-s390x").write_text("0")
    return {architecture: emulators.find(f"linux/{architecture}").registered for architecture in ("arm64", "riscv64", "s390x")}


def test_the_heads_of_programs_are_told_apart() -> None:
    """Each emulator gets the programs of its processor and no others."""
    foreign.need_emulator("arm64")
    entries = {architecture: emulators.find(f"linux/{architecture}").entry for architecture in emulators.architectures()}
    taken = {one: [name for name, entry in entries.items() if entry.matches(entries[one].magic)] for one in entries}
    assert taken == {one: [one] for one in entries}
    program = Path(peers.static_busybox()).read_bytes()[:64]
    assert [name for name, entry in entries.items() if entry.matches(program)] == [NATIVE.removeprefix("linux/")]
