"""The overlay of kernels before 6.15, which refuse layers that are mounted nowhere, and before 6.7, which take no single ones: the same root."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from bulle.isolation import host_mounts, root_filesystem
from bulle.linux import mount, namespaces, user_namespace
from bulle.model.run_plan import IdMapping, LayerMount, Mount, Process, RootFilesystem, RunPlan, Security

pytestmark = pytest.mark.root
MAPPING = (IdMapping(0, 1 << 24, 65536),)


def pretend(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    """Refuse what such a kernel refuses, with its error."""
    number = {"6.14": errno.EINVAL, "6.12": errno.EBADF, "6.1": errno.EOPNOTSUPP}[kernel]
    real_set_string = mount.fsconfig_set_string

    def set_descriptor(_context: int, key: str, _value: int) -> None:
        raise OSError(number, "fsconfig", key)

    def set_string(context: int, key: str, value: mount.Path) -> None:
        if key == "lowerdir+":
            raise OSError(errno.EINVAL, "fsconfig", key)
        real_set_string(context, key, value)

    monkeypatch.setattr(mount, "fsconfig_set_fd", set_descriptor)
    monkeypatch.setattr(mount, "open_tree", only_attached)
    if kernel == "6.1":
        monkeypatch.setattr(mount, "fsconfig_set_string", set_string)


KERNELS = pytest.mark.parametrize("kernel", ["6.14", "6.12", "6.1"])


def in_a_user_namespace() -> tuple[int, int]:
    """A process that waits in a user namespace with the mapping, and the write end that ends it."""
    waiting, ending = os.pipe()
    ready, telling = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ending)
        namespaces.unshare(namespaces.CLONE_NEWUSER)
        os.write(telling, b"!")
        os.read(waiting, 1)
        os._exit(0)
    os.close(waiting)
    os.close(telling)
    os.read(ready, 1)
    os.close(ready)
    user_namespace.write_maps(pid, MAPPING, MAPPING)
    return pid, ending


@KERNELS
@pytest.mark.parametrize("own_users", [True, False])
def test_layers_are_attached_for_a_moment(own_users: bool, kernel: str, place_on_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = place_on_disk
    many = range(40)  # their paths are longer than one option of fsconfig(2) may be, and mean something in options
    for name in (*(f"lower,a:b/{number}" for number in many), "upper/root/upper", "upper/root/work"):
        (home / name).mkdir(parents=True)
    for number in many:
        (home / f"lower,a:b/{number}/{number}").write_text("from below")
        (home / f"lower,a:b/{number}/file").write_text(f"from {number}")
    layers = tuple(LayerMount("directory", "x", str(home / f"lower,a:b/{number}")) for number in many)
    root = RootFilesystem(layers, str(home / "upper/root"))
    security = Security(id_mappings=MAPPING if own_users else ())
    plan = RunPlan("0" * 64, "container", "x", str(home / "upper"), root, Process(("true",)), security=security)
    helper, ending = in_a_user_namespace()
    pretend(monkeypatch, kernel)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            namespaces.unshare(namespaces.CLONE_NEWNS)
            mount.mount(None, "/", flags=mount.MS_REC | mount.MS_SLAVE)
            users = os.open(f"/proc/{helper}/ns/user", os.O_RDONLY) if own_users else None
            mounts = root_filesystem.detached_mounts(plan_without_files(plan), users)
            assert mount.filesystem_type(mounts.root) == mount.OVERLAYFS_SUPER_MAGIC
            found = os.open("file", os.O_RDONLY, dir_fd=mounts.root)
            assert os.read(found, 20) == b"from 39"
            descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=mounts.root)
            assert {*os.listdir(descriptor)} == {"file", *map(str, many)}
            if not own_users:
                os.mkdir("made", dir_fd=descriptor)
                assert (home / "upper/root/upper/made").is_dir()
            assert os.fstat(found).st_uid == (1 << 24 if own_users else 0)
            with open("/proc/self/mountinfo") as file:
                assert "/stage/" not in file.read()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    os.close(ending)
    os.waitpid(helper, 0)
    assert status == 0


def only_attached(dirfd: int, path: mount.Path, flags: int = mount.OPEN_TREE_CLONE | mount.OPEN_TREE_CLOEXEC) -> int:
    """open_tree(2) as kernels before 6.15 have it: what is not in the caller's namespace is not copied."""
    if path == "" and flags & mount.OPEN_TREE_CLONE:
        identifier = next(line.split()[1] for line in Path(f"/proc/self/fdinfo/{dirfd}").read_text().splitlines() if line.startswith("mnt_id:"))
        if not any(line.split()[0] == identifier for line in Path("/proc/self/mountinfo").read_text().splitlines()):
            raise OSError(errno.EINVAL, "open_tree")
    return real_open_tree(dirfd, path, flags)


real_open_tree = mount.open_tree


@KERNELS
@pytest.mark.parametrize("own_users", [True, False])
def test_parts_of_images_are_found_where_attached(own_users: bool, kernel: str, place_on_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = place_on_disk
    for name in ("one/part", "two/part"):
        (home / name).mkdir(parents=True)
        (home / name / name[:3]).write_text(name)
    image = Mount("image", "/v", image="x", layer_host_paths=(str(home / "one"), str(home / "two")), read_only=True, subpath="/part")
    plan = RunPlan("0" * 64, "container", "x", str(home), RootFilesystem((), str(home)), Process(("true",)))
    helper, ending = in_a_user_namespace()
    pretend(monkeypatch, kernel)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            namespaces.unshare(namespaces.CLONE_NEWNS)
            mount.mount(None, "/", flags=mount.MS_REC | mount.MS_SLAVE)
            users = os.open(f"/proc/{helper}/ns/user", os.O_RDONLY) if own_users else None
            shown = host_mounts.detached(plan, image, users, [])
            descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=shown)
            assert sorted(os.listdir(descriptor)) == ["one", "two"]
            assert os.stat("one", dir_fd=descriptor).st_uid == (1 << 24 if own_users else 0)
            with open("/proc/self/mountinfo") as file:
                assert "/stage/" not in file.read()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    os.close(ending)
    os.waitpid(helper, 0)
    assert status == 0


def plan_without_files(plan: RunPlan) -> RunPlan:
    for path in root_filesystem.identity_files(plan):
        Path(path).write_text("x")
    return plan


@pytest.fixture
def place_on_disk(home: Path) -> Path:
    """A directory on a real disk, as the home is."""
    place = home / "overlay"
    place.mkdir(parents=True)
    return place
