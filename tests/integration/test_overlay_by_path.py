"""The overlay of kernels before 6.15, which refuse layers that are mounted nowhere: the same root, by the other way."""

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


def refuse(_fs_fd: int, key: str, _value_fd: int) -> None:
    raise OSError(errno.EINVAL, "fsconfig", key)


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


@pytest.mark.parametrize("own_users", [True, False])
def test_layers_are_attached_for_a_moment(own_users: bool, place_on_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = place_on_disk
    for name in ("lower/one", "upper/root/upper", "upper/root/work"):
        (home / name).mkdir(parents=True)
    (home / "lower/one/file").write_text("from below")
    layers = (LayerMount("directory", "x", str(home / "lower/one")),)
    root = RootFilesystem(layers, str(home / "upper/root"))
    security = Security(id_mappings=MAPPING if own_users else ())
    plan = RunPlan("0" * 64, "container", "x", str(home / "upper"), root, Process(("true",)), security=security)
    helper, ending = in_a_user_namespace()
    monkeypatch.setattr(mount, "fsconfig_set_fd", refuse)
    monkeypatch.setattr(mount, "open_tree", only_attached)
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
            assert os.read(found, 20) == b"from below"
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


@pytest.mark.parametrize("own_users", [True, False])
def test_parts_of_images_are_found_where_they_are_attached(own_users: bool, place_on_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = place_on_disk
    for name in ("one/part", "two/part"):
        (home / name).mkdir(parents=True)
        (home / name / name[:3]).write_text(name)
    image = Mount("image", "/v", image="x", layer_host_paths=(str(home / "one"), str(home / "two")), read_only=True, subpath="/part")
    plan = RunPlan("0" * 64, "container", "x", str(home), RootFilesystem((), str(home)), Process(("true",)))
    helper, ending = in_a_user_namespace()
    monkeypatch.setattr(mount, "fsconfig_set_fd", refuse)
    monkeypatch.setattr(mount, "open_tree", only_attached)
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
